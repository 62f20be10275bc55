"""Objects that refuse what a restore gives them, and a restore of one beside variables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from ckptflow import CheckpointManager
from tests.manager.states import Weights


def saved(root: Path, obj: Any) -> None:
    weights = Weights()
    weights.fill(1)
    with CheckpointManager(root, {"w": weights, "obj": obj}) as manager:
        manager.save(1)


def restored(root: Path, obj: Any, **how: Any) -> Weights:
    weights = Weights()
    with CheckpointManager(root, {"w": weights, "obj": obj}, read_only=True) as manager:
        manager.restore_latest(**how)
    return weights


class Kind(tf.__internal__.tracking.AutoTrackable):  # type: ignore[misc]
    """A trackable that refuses what was saved of another kind, in the same dtypes and shapes."""

    def __init__(self, kind: str, number: int) -> None:
        self.kind, self.number = kind, number

    def _serialize_to_tensors(self) -> dict[str, Any]:
        return {"kind": tf.constant(self.kind), "number": tf.constant(self.number)}

    def _restore_from_tensors(self, tensors: dict[str, Any]) -> None:
        self.number = int(tensors["number"])
        if tensors["kind"].numpy().decode() != self.kind:
            raise ValueError("another kind")


class Iterators:
    """How an iterator fails that TensorFlow does not know: with any exception. It fails with each in turn, and again
    with the last."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: Callable[[int], bool], *errors: BaseException) -> None:
        self.iterator = iter(tf.data.Dataset.range(5))
        real, number = self.iterator._restore_from_tensors, iter(range(100))
        left = list(errors or [RuntimeError("another TensorFlow")])

        def restore(tensors: Any) -> Any:
            if fails(next(number)):
                raise left.pop(0) if len(left) > 1 else left[0]
            return real(tensors)

        monkeypatch.setattr(self.iterator, "_restore_from_tensors", restore)
