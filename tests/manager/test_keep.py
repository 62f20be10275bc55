"""What `keep=` takes: what would delete all but the newest without being asked to, or nothing ever, is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from ckptflow import CheckpointCallback, CheckpointManager, KeepBest, KeepEvery, KeepLast

EMPTY = r"keep: .* has no policy in it; keep=1 retains only the newest checkpoint"
REFUSED: dict[str, tuple[Any, str]] = {
    "list": ([], EMPTY),
    "tuple": ((), EMPTY),
    "dict": ({}, EMPTY),
    "text": ("", EMPTY),
    "set": (set(), EMPTY),
    "class": (KeepLast, r"keep: KeepLast is a class, not a policy; call it"),
    "class among policies": ([KeepLast(1), KeepBest], r"keep: KeepBest is a class"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_policy_is_refused_before_anything_is_written(tmp_path: Path, kind: str) -> None:
    keep, why = REFUSED[kind]
    with pytest.raises(ValueError, match=why):
        CheckpointCallback(tmp_path, every_epochs=1, keep=keep)
    with pytest.raises(ValueError, match=why):
        CheckpointManager(tmp_path, {"v": tf.Variable(1.0)}, keep=keep)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keep", [0, 1, KeepLast(0), lambda checkpoints: [None] * len(checkpoints)])
def test_only_the_newest_is_kept_where_that_is_said(tmp_path: Path, keep: Any) -> None:
    with CheckpointManager(tmp_path, {"v": tf.Variable(1.0)}, keep=keep) as manager:
        for step in range(3):
            manager.save(step)
        manager.wait()
        assert [each.step for each in manager.checkpoints()] == [2]


@pytest.mark.parametrize("keep", [2, (KeepLast(1), KeepEvery(steps=2)), {KeepLast(2)}])
def test_one_and_several(tmp_path: Path, keep: Any) -> None:
    with CheckpointManager(tmp_path, {"v": tf.Variable(1.0)}, keep=keep) as manager:
        for step in (1, 2, 3):
            manager.save(step)
        manager.wait()
        assert [each.step for each in manager.checkpoints()] == [2, 3]
