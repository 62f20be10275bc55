"""A save that fails by an error that cannot even say what it is has failed all the same."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from ckptflow import Checkpoint, CheckpointManager, SaveFailedError, list_checkpoints
from ckptflow.storage.local import LocalStore


class WithoutTextError(Exception):
    """Of a client or of a policy."""

    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


class WithoutEndError(Exception):
    def __str__(self) -> str:
        raise WithoutEndError

    __repr__ = __str__


class WithoutMercyError(BaseException):
    def __str__(self) -> str:
        raise WithoutMercyError

    __repr__ = __str__


EACH = [WithoutTextError, WithoutEndError, WithoutMercyError]


@pytest.mark.parametrize("kind", EACH)
@pytest.mark.parametrize("verb", ["put", "create"])
def test_what_cannot_be_told_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException], verb: str
) -> None:
    manager = CheckpointManager(tmp_path / "run", {"v": tf.Variable(1.0)})
    manager.save(1)
    manager.wait()

    def fail(self: LocalStore, key: str, data: memoryview) -> Any:
        raise kind

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, verb, fail)
        pending = manager.save(2)
        assert pending.wait(60)
    assert isinstance(pending.exception(), SaveFailedError)
    with pytest.raises(SaveFailedError):
        manager.wait()
    manager.save(3)
    manager.close()
    assert [each.step for each in list_checkpoints(tmp_path / "run")] == [1, 3]


@pytest.mark.parametrize("kind", EACH[:2])
def test_a_policy_that_fails_so_fails_no_save(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: type[Exception]
) -> None:
    def fail(checkpoints: Sequence[Checkpoint]) -> Sequence[str | None]:
        raise kind

    with (
        caplog.at_level(logging.WARNING, "ckptflow"),
        CheckpointManager(tmp_path / "run", {"v": tf.Variable(1.0)}, keep=[fail]) as manager,
    ):
        assert manager.save(1).result().step == 1
    assert "(it has no text)" in caplog.text
