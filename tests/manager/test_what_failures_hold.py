"""A save that failed leaves its error behind until that is raised, and nothing of what it would have saved."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from ckptflow import CheckpointManager, SaveFailedError
from ckptflow.state.capture import capture
from tests.manager.states import Weights, committed
from tests.manager.test_failed_saves import failed_manager


def test_a_kept_log_record_keeps_nothing_of_a_failed_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Handlers that keep records (queues, error reporters) must not keep what was captured, nor threads."""
    manager = failed_manager(tmp_path, monkeypatch)[0]
    with pytest.raises(SaveFailedError):
        manager.close()
    session = weakref.ref(manager.session)
    del manager
    monkeypatch.undo()  # the faults, which hold what they raised
    gc.collect()
    assert session() is None
    assert "503 from the test" in caplog.text


@pytest.mark.parametrize("on_save_error", ["raise", "log"])
def test_a_failed_save_lets_go_of_what_was_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_save_error: Any
) -> None:
    """Its error is kept until it is raised, and would keep the whole state a second time."""
    captured: list[weakref.ref[Any]] = []

    def watched(*arguments: Any, **options: Any) -> Any:
        snapshot = capture(*arguments, **options)
        captured.extend(weakref.ref(held) for held in snapshot._held if isinstance(held, tf.Tensor))
        return snapshot

    monkeypatch.setattr("ckptflow.job.live_state.capture", watched)
    manager = failed_manager(tmp_path, monkeypatch, on_save_error=on_save_error)[0]
    for variable in manager.session.live._objects["w"].variables:
        variable.assign(variable + 1)  # what TensorFlow has for itself is another value now
    gc.collect()
    assert len(captured) == 8
    assert [each() for each in captured[4:]] == [None] * 4
    with pytest.raises(SaveFailedError):
        manager.close()


def test_a_save_that_could_not_be_handed_over_and_runs_all_the_same_keeps_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An executor queues it before it starts a thread, which can fail, or be interrupted."""
    state = Weights()
    manager = CheckpointManager(tmp_path, {"w": state})
    thread = manager.session._background._thread
    queue = thread.submit
    calls: list[object] = []

    def fails_late(*arguments: Any) -> Any:
        calls.append(queue(*arguments))
        if len(calls) == 1:  # it only sees that there is a thread
            return
        monkeypatch.undo()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(thread, "submit", fails_late)
    state.fill(1)
    with pytest.raises(SaveFailedError, match=r"cannot be started \(can't start new thread\)"):
        manager.save(10)
    assert manager.session.last_step == -1
    state.fill(2)
    manager.save(10)
    manager.close()
    assert committed(tmp_path)[-1] == "000000000010-i0001-r2"
    fresh = Weights()
    with CheckpointManager(tmp_path, {"w": fresh}) as manager:
        manager.restore_latest()
    assert fresh.value() == 2
