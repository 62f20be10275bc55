"""Small states for the manager's tests, and how to look at them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import tensorflow as tf

import ckptflow.job.session
from ckptflow.events import Tell, tell_nobody
from ckptflow.storage.opening import open_store
from ckptflow.storage.store import Store


class Weights(tf.Module):  # type: ignore[misc]
    """Two float vectors and a counter, each filled from one number: a mixture of two checkpoints shows."""

    def __init__(self, count: int = 3, length: int = 1000) -> None:
        super().__init__()
        self.layers = [tf.Variable(tf.zeros([length]), name=f"layer_{i}") for i in range(count)]
        self.counter = tf.Variable(0, dtype=tf.int64)

    def fill(self, value: float) -> None:
        for i, layer in enumerate(self.layers):
            layer.assign(tf.fill(layer.shape, tf.cast(value + i / 16, tf.float32)))
        self.counter.assign(int(value))

    def value(self) -> float:
        """The number that everything was filled from; fails where parts disagree."""
        value = float(self.layers[0][0])
        for i, layer in enumerate(self.layers):
            np.testing.assert_array_equal(layer.numpy(), np.full(layer.shape, value + i / 16, np.float32))
        assert int(self.counter) == int(value)
        return value


class PlainState:
    """Plain Python state."""

    def __init__(self) -> None:
        self.seen: Any = 0

    def get_state(self) -> Any:
        return {"seen": self.seen}

    def set_state(self, state: Any) -> None:
        self.seen = state["seen"]


def folders(root: Path) -> list[str]:
    """The checkpoint folders of a local root, committed or not."""
    return sorted(p.name for p in root.iterdir() if p.is_dir() and p.name not in ("lineage", "pins"))


def committed(root: Path) -> list[str]:
    return [name for name in folders(root) if (root / name / "manifest.json").exists()]


S = TypeVar("S", bound=Store)


def wrap_store(monkeypatch: pytest.MonkeyPatch, wrap: Callable[[Store], S]) -> list[S]:
    """Every manager made from here on works on a wrapped store; the wrappers appear in the returned list."""
    real = open_store
    made: list[S] = []

    def open_wrapped(url: str, storage_options: dict[str, Any] | None = None, tell: Tell = tell_nobody) -> Store:
        made.append(wrap(real(url, storage_options, tell)))
        return made[-1]

    monkeypatch.setattr(ckptflow.job.session, "open_store", open_wrapped)
    return made
