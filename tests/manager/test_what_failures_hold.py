"""A save that failed leaves its error behind until that is raised, and nothing of what it would have saved."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from ckptflow import SaveFailedError
from ckptflow.state.capture import capture
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
