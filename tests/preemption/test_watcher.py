"""One process: which step is saved, what is raised, what the log says. Real signals, a real manager."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tensorflow as tf
import tf_keras

import ckptflow
from ckptflow.errors import StorageUnavailableError
from tests.waiting import HANG_S, until


def tell(watcher: ckptflow.PreemptionWatcher) -> None:
    """SIGTERM, and back once it was heard."""
    os.kill(os.getpid(), signal.SIGTERM)
    until(lambda: watcher.is_preempted, HANG_S)


def folders(root: Path) -> list[str]:
    return sorted(path.parent.name for path in root.glob("*/manifest.json"))


@pytest.fixture(autouse=True)
def _handlers_are_put_back() -> Iterator[None]:
    yield
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1


def make_manager(root: Path, **more: object) -> ckptflow.CheckpointManager:
    manager = ckptflow.CheckpointManager(root, {"v": tf.Variable([1.0, 2.0])}, **more)  # type: ignore[arg-type]
    manager.restore_latest()
    return manager


def commit_when(
    is_due: Callable[[], bool], manager: ckptflow.CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = manager.session.store.create

    def late(key: str, data: memoryview) -> None:
        if key.endswith("manifest.json"):
            until(is_due, HANG_S)
        create(key, data)

    monkeypatch.setattr(manager.session.store, "create", late)


def leave(watcher: ckptflow.PreemptionWatcher, step: int, **more: object) -> object:
    with pytest.raises(SystemExit) as left:
        watcher.check(step, **more)  # type: ignore[arg-type]
    os.kill(os.getpid(), signal.SIGTERM)  # one that comes late
    assert signal.signal(signal.SIGTERM, signal.SIG_DFL) is signal.SIG_IGN
    return left.value.code


def test_told_between_steps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def train() -> None:
        with make_manager(tmp_path) as manager, ckptflow.PreemptionWatcher(manager, grace_period_s=20) as watcher:
            for step in range(1, 4):
                watcher.check(step)
            assert not watcher.is_preempted
            assert folders(tmp_path) == []
            tell(watcher)
            watcher.check(4, {"loss": float("nan"), "accuracy": 0.5}, {"epoch": b"1"})

    with pytest.raises(SystemExit) as left:
        train()
    assert left.value.code == 75
    assert signal.signal(signal.SIGTERM, signal.SIG_DFL) is signal.SIG_IGN
    (saved,) = ckptflow.list_checkpoints(tmp_path)
    assert (saved.step, saved.metrics, saved.metadata) == (4, {"accuracy": 0.5}, {"epoch": b"1"})

    def said() -> list[str]:
        return sorted(each for record in caplog.records if "told to leave" in (each := record.getMessage()))

    until(lambda: len(said()) == 3, HANG_S)  # from two threads, in any order
    assert any("of 20 s of the grace period left" in each for each in said())
    assert any("worker 0 was told to leave by SIGTERM" in each for each in said())
    (last,) = (each for each in said() if "step 4 was saved and committed after" in each)
    for part in ("worker 0 by SIGTERM ", "of 20 s", "exit code 75"):
        assert part in last


def test_the_end_of_the_grace_period_is_said_when_it_comes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with make_manager(tmp_path) as manager, ckptflow.PreemptionWatcher(manager, grace_period_s=0.05) as watcher:
        tell(watcher)  # in a step that is too long
        until(lambda: "the grace period of 0.05 s is over" in caplog.text, HANG_S)
        assert leave(watcher, 1) == 75
    assert caplog.text.count("the grace period of 0.05 s is over") == 1
    assert ckptflow.list_checkpoints(tmp_path)[-1].step == 1


def test_a_grace_period_without_an_end(tmp_path: Path) -> None:
    """Where something else ends the process."""
    with make_manager(tmp_path) as manager, ckptflow.PreemptionWatcher(manager, grace_period_s=math.inf) as watcher:
        tell(watcher)
        until(lambda: watcher.is_preempted, HANG_S)
        assert leave(watcher, 1) == 75


def test_told_before_the_first_check_and_by_a_function(tmp_path: Path) -> None:
    manager = make_manager(tmp_path)
    with manager, ckptflow.PreemptionWatcher(manager, notice=lambda: True, exit_code=9) as watcher:
        until(lambda: watcher.is_preempted, HANG_S)
        assert leave(watcher, 0) == 9
    with make_manager(tmp_path) as manager, ckptflow.PreemptionWatcher(manager) as watcher:
        tell(watcher)
        assert leave(watcher, 0) == 75  # an evaluation before the first step: nothing new to save
    assert folders(tmp_path) == ["000000000000-i0001"]


def test_told_before_the_first_batch_has_built_the_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing was trained, and nothing is lost: it is a preemption like any other."""
    model = tf_keras.Sequential([tf_keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with ckptflow.CheckpointManager(tmp_path, {"model": model}) as manager:
        manager.restore_latest()
        with ckptflow.PreemptionWatcher(manager) as watcher:
            tell(watcher)
            assert leave(watcher, 0) == 75
    assert folders(tmp_path) == []
    assert "step 0 has nothing to save yet (model (Sequential) is not built" in caplog.text


def test_a_save_under_way_is_waited_for_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with make_manager(tmp_path) as manager, ckptflow.PreemptionWatcher(manager, grace_period_s=0.2) as watcher:
        commit_when(lambda: "the grace period of 0.2 s is over" in caplog.text, manager, monkeypatch)
        pending = manager.save(7)
        tell(watcher)
        assert leave(watcher, 7) == 75
        assert pending.done()
    assert folders(tmp_path) == ["000000000007-i0001"]
    said = [record.getMessage() for record in caplog.records]
    over = next(i for i, text in enumerate(said) if "the grace period of 0.2 s is over" in text)
    left = next(i for i, text in enumerate(said) if "step 7 had been saved and committed" in text)
    assert over < left


def test_a_failed_last_save_raises_and_a_next_check_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(key: str, data: memoryview) -> None:
        raise StorageUnavailableError("503 from the test")

    with make_manager(tmp_path, on_save_error="log") as manager, ckptflow.PreemptionWatcher(manager) as watcher:
        manager.save(1)
        manager.wait()
        with monkeypatch.context() as patch:
            patch.setattr(manager.session.store, "put", fail)
            manager.save(2).wait()
            tell(watcher)
            with pytest.raises(ckptflow.SaveFailedError, match="503 from the test"):
                watcher.check(2)
        assert any("step 2 could not be saved" in record.getMessage() for record in caplog.records)
        assert leave(watcher, 2) == 75
    assert [c.step for c in ckptflow.list_checkpoints(tmp_path)] == [1, 2]


def test_being_fenced_is_no_reason_to_start_again(tmp_path: Path) -> None:
    def train() -> None:
        with make_manager(tmp_path) as older, ckptflow.PreemptionWatcher(older) as watcher:
            older.save(1)
            older.wait()
            with make_manager(tmp_path):
                tell(watcher)
                watcher.check(2)

    with pytest.raises(ckptflow.FencedError):
        train()


def test_told_when_the_training_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with make_manager(tmp_path) as manager, ckptflow.PreemptionWatcher(manager) as watcher:
        is_due = threading.Event()
        commit_when(is_due.is_set, manager, monkeypatch)
        watcher.check(1)
        pending = manager.save(1)
        tell(watcher)
        threading.Timer(0.2, is_due.set).start()  # while the next line waits for it
        watcher.__exit__(None, None, None)
        assert pending.done()  # before the default handler could end the process
    assert "was told to leave when the training was over" in caplog.text
    manager = make_manager(tmp_path)
    with ckptflow.PreemptionWatcher(manager), manager:  # the other way round, the manager is closed first
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"signals": [signal.SIGKILL]}, "SIGKILL cannot be caught"),
        ({"signals": [999]}, "999 is not a signal"),
        ({"grace_period_s": 0}, "grace_period_s"),
        ({"exit_code": 256}, "exit_code"),
        ({"notice": True}, "notice"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str, tmp_path: Path) -> None:
    with make_manager(tmp_path) as manager, pytest.raises(ValueError, match=message):
        ckptflow.PreemptionWatcher(manager, **arguments)  # type: ignore[arg-type]


def test_bad_use(tmp_path: Path) -> None:
    with make_manager(tmp_path) as manager:
        errors: list[Exception] = []

        def elsewhere() -> None:
            try:
                ckptflow.PreemptionWatcher(manager)
            except ckptflow.UsageError as error:
                errors.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert "main thread" in str(errors)
        with ckptflow.PreemptionWatcher(manager) as watcher:
            with pytest.raises(ValueError, match="a step is"):
                watcher.check(-1)
            with pytest.raises(ValueError, match="metric 'loss' is no number"):
                watcher.check(1, {"loss": "low"})  # type: ignore[dict-item]
            with pytest.raises(ckptflow.UnsupportedStateError, match="metadata"):
                watcher.check(1, metadata=object())
    with make_manager(tmp_path, read_only=True) as reader, pytest.raises(ckptflow.UsageError, match="read_only"):
        ckptflow.PreemptionWatcher(reader)
    with pytest.raises(ckptflow.UsageError, match="closed"):
        ckptflow.PreemptionWatcher(manager)
