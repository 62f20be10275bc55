"""A URL that is no run's root, a restore that is no call between two steps, a manager that is handed on."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

import ckptflow
from ckptflow import CheckpointManager, StorageError, UsageError
from tests.manager.states import Weights


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with CheckpointManager(tmp_path / "run", {"w": Weights()}) as manager:
        manager.save(1)
    return tmp_path / "run"


OPENERS: dict[str, Callable[[Any], object]] = {
    "manager": lambda url: CheckpointManager(url, {"w": Weights()}),
    "reader": lambda url: CheckpointManager(url, {"w": Weights()}, read_only=True),
    "list": ckptflow.list_checkpoints,
}


@pytest.mark.parametrize("opener", OPENERS)
def test_a_checkpoint_is_no_root(root: Path, opener: str) -> None:
    """A run that began in it would be deleted with it."""
    (checkpoint,) = ckptflow.list_checkpoints(root)
    before = sorted(root.rglob("*"))
    for url in (checkpoint.url, checkpoint.url + "/", Path(checkpoint.url)):
        with pytest.raises(UsageError, match=rf"is one checkpoint's folder; the run's root is {root}"):
            OPENERS[opener](url)
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("below", ["", "/run"])
def test_a_file_is_no_root(tmp_path: Path, below: str) -> None:
    (tmp_path / "model.keras").write_bytes(b"x")
    url = f"{tmp_path}/model.keras{below}"
    with pytest.raises(StorageError, match="model\\.keras is a file; a directory was expected"):
        ckptflow.list_checkpoints(url)
    with (
        CheckpointManager(url, {"w": Weights()}, read_only=True) as manager,
        pytest.raises(StorageError, match="is a file; a directory was expected"),
    ):
        manager.restore_latest()
    with (
        CheckpointManager(url, {"w": Weights()}) as manager,
        pytest.raises(StorageError, match="is a file; a directory was expected"),
    ):
        manager.save(1)
    assert (tmp_path / "model.keras").read_bytes() == b"x"


def test_bytes_are_a_path_and_no_path_has_a_nul(root: Path) -> None:
    assert [each.step for each in ckptflow.list_checkpoints(bytes(root))] == [1]  # type: ignore[arg-type]
    for opener in OPENERS.values():
        with pytest.raises(ValueError, match="NUL"):
            opener(f"{root}\0x")


def test_a_restore_comes_between_two_steps(root: Path) -> None:
    """In a graph it would be traced: run again, it would give the values of then."""
    weights = Weights()
    with CheckpointManager(root, {"w": weights}) as manager:
        for restore in (manager.restore_latest, lambda: manager.restore(1), lambda: manager.rollback(1)):
            with pytest.raises(UsageError, match="between two steps"):
                tf.function(restore, autograph=False)()
            with tf.Graph().as_default(), pytest.raises(UsageError, match="between two steps"):
                restore()
        manager.restore_latest()
        manager.save(2)


@pytest.mark.parametrize("hand_on", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_manager_is_not_handed_on(root: Path, hand_on: Callable[[Any], Any]) -> None:
    with CheckpointManager(root, {"w": Weights()}) as manager:
        with pytest.raises(UsageError, match="make another one"):
            hand_on(manager)
        manager.restore_latest()
        manager.save(2)
