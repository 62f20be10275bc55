"""A manager whose other workers are gone, or whose own program calls it at the wrong moment."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ckptflow import CheckpointManager, CommitTimeoutError, PeerError, StorageUnavailableError, UsageError
from ckptflow.commit.catalog import Checkpoint
from ckptflow.job.pending import PendingCheckpoint
from ckptflow.peers.cluster import Cluster
from ckptflow.peers.team import Call
from ckptflow.storage.opening import open_store
from ckptflow.storage.wrappers import StoreWrapper
from tests.manager.states import Weights, committed
from tests.speed.team import Team
from tests.waiting import HANG_S, until


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


_Result = TypeVar("_Result")


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

    def look(timeout_s: float) -> Any:
        states.append(is_open)
        return None

    future = Noting()
    future.set_result(None)
    pending = PendingCheckpoint(1, future, look, HANG_S, waiting)
    pending.result()
    pending.exception()
    assert pending.wait()
    assert states == [True, True, True]


class Silent(StoreWrapper):
    """It does not answer who looks for a manifest, until `speaks`; then once with an error."""

    def __init__(self, url: str) -> None:
        super().__init__(open_store(url))
        self.speaks = threading.Event()

    def run(self, verb: str, key: str, call: Callable[[], _Result]) -> _Result:
        if verb == "get" and "manifest" in key and not self.speaks.is_set():
            assert self.speaks.wait(HANG_S)
            raise StorageUnavailableError("503 from the test")
        return call()


def test_a_result_comes_in_time_whatever_the_storage_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a worker other than the chief, which looks for the manifest."""
    stores: list[Silent] = []

    def opened(url: str) -> Silent:
        stores.append(Silent(url))
        return stores[-1]

    def work(number: int) -> None:
        manager = CheckpointManager(str(tmp_path), {"w": Weights()})
        pending = manager.save(1)
        assert pending.wait(HANG_S)
        manager.wait()  # both have: the checkpoint is there
        if number == 1:
            for timeout_s in (0, 0.01, -1):
                with pytest.raises(TimeoutError, match="has not said in time"):
                    pending.result(timeout_s)
            assert [thread.name for thread in threading.enumerate()].count("ckptflow-look") == 1  # not one for each
            for store in stores:
                store.speaks.set()
            with contextlib.suppress(StorageUnavailableError):  # of the look that was under way, if it still is
                assert pending.result(HANG_S).step == 1
            assert pending.result(HANG_S).step == 1
            assert pending.result(0).step == 1  # what was found stays
        manager.close()

    Team(monkeypatch, opened).run(2, work)
    until(lambda: "ckptflow-look" not in [thread.name for thread in threading.enumerate()], HANG_S)


def test_a_look_that_ends_early_is_followed_by_another() -> None:
    """A short `result` leaves a look behind that gives up before the time of the next one is over."""
    committed_now, looks = threading.Event(), list[float]()
    found = Checkpoint(1, 1, {}, None, datetime.now(UTC), 0, "memory://root/1")

    def look(timeout_s: float) -> Checkpoint:
        looks.append(timeout_s)
        if len(looks) == 1:
            assert committed_now.wait(HANG_S)
            raise CommitTimeoutError("not yet")
        return found

    future: Future[Checkpoint | None] = Future()
    future.set_result(None)
    pending = PendingCheckpoint(1, future, look, HANG_S)
    with pytest.raises(TimeoutError):
        pending.result(0)
    committed_now.set()
    assert pending.result(HANG_S) is found
    assert pending.result(0) is found
    assert len(looks) == 2


@pytest.mark.parametrize("limit_s", [math.inf, 1e10, threading.TIMEOUT_MAX])
def test_no_limit_is_none(limit_s: float) -> None:
    """As an argument, or as the manager's `commit_timeout_s`, on a worker that looks for the manifest as well."""
    found = Checkpoint(1, 1, {}, None, datetime.now(UTC), 0, "memory://root/1")
    future: Future[Checkpoint | None] = Future()
    pending = PendingCheckpoint(1, future, lambda timeout_s: found, limit_s)
    with ThreadPoolExecutor(3) as threads:
        calls: list[Callable[[float], object]] = [pending.wait, pending.exception, pending.result]
        waiting = [threads.submit(call, limit_s) for call in calls]
        future.set_result(None)
        assert [each.result() for each in waiting] == [True, None, found]
    assert pending.result() is found


def test_a_limit_that_is_nan_is_refused() -> None:
    pending = PendingCheckpoint(1, Future(), lambda timeout_s: None, HANG_S)  # type: ignore[arg-type,return-value]
    for call in (pending.wait, pending.exception, pending.result):
        with pytest.raises(ValueError, match="not nan"):
            call(math.nan)
