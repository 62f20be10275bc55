"""A manager whose other workers are gone, or whose own program calls it at the wrong moment."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from ckptflow import CheckpointManager, PeerError, UsageError
from ckptflow.commit.catalog import Checkpoint
from ckptflow.job.pending import PendingCheckpoint
from ckptflow.peers.cluster import Cluster
from ckptflow.peers.team import Call
from tests.manager.states import Weights, committed


@pytest.mark.parametrize("call", [Call.CAPTURE_AGAIN, Call.SAVE_AGAIN])
@pytest.mark.parametrize("is_lost", [True, False])
def test_after_damage_a_lost_worker_is_raised_and_a_failed_save_is_not(
    is_lost: bool, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Else the program would go on into a training step that the lost worker never comes to."""
    weights = Weights()
    with CheckpointManager(tmp_path, {"w": weights}) as manager:
        for step in (1, 2):
            weights.fill(step)
            manager.save(step)
    (tmp_path / committed(tmp_path)[-1] / "manifest.json").write_bytes(b"{}")

    def fail(cluster: Cluster, where: Call, do: Any) -> Any:
        if where is call:
            raise PeerError("worker 1 is not well")
        kept = do()
        return kept[0], [kept[1]]

    monkeypatch.setattr("ckptflow.job.incarnation.agree_on", fail)
    monkeypatch.setattr("ckptflow.job.incarnation.agree", fail)
    monkeypatch.setattr(Cluster, "is_lost", is_lost)
    manager = CheckpointManager(tmp_path, {"w": weights})
    with contextlib.ExitStack() as stack, caplog.at_level(logging.WARNING):
        if is_lost:
            stack.enter_context(pytest.raises(PeerError, match="worker 1 is not well"))
        restored = manager.restore_latest()
        assert restored is not None
        assert restored.step == 1
    assert is_lost or any("nothing protects it until the next save" in text for text in caplog.messages)
    manager.close()


def test_no_call_comes_between_what_workers_say_to_one_another(tmp_path: Path) -> None:
    """As a signal's handler may try while `PreemptionWatcher.check` or a callback waits for the others."""
    with CheckpointManager(tmp_path, {"w": Weights()}) as manager:
        for inside in (lambda: manager.save(1), manager.wait, manager.restore_latest):
            with pytest.raises(UsageError, match="inside of another one"):
                manager.session.agree(Call.CHECK_NOTICES, inside)
        with pytest.raises(UsageError, match="inside of another one"):
            manager.session.chief_says(Call.LEAVE, lambda: manager.session.agree(Call.READ_CLOCK, bool), list)


def test_other_workers_wait_while_a_save_is_waited_for() -> None:
    states: list[bool] = []
    is_open = False

    @contextlib.contextmanager
    def waiting() -> Iterator[None]:
        nonlocal is_open
        is_open = True
        yield
        is_open = False

    class Noting(Future[Checkpoint | None]):
        def result(self, timeout: float | None = None) -> Checkpoint | None:
            states.append(is_open)
            return super().result(timeout)

        def exception(self, timeout: float | None = None) -> BaseException | None:
            states.append(is_open)
            return super().exception(timeout)

    def look(timeout_s: float | None) -> Any:
        states.append(is_open)
        return None

    future = Noting()
    future.set_result(None)
    pending = PendingCheckpoint(1, future, look, waiting)
    pending.result()
    pending.exception()
    assert pending.wait()
    assert states == [True, True, True]
