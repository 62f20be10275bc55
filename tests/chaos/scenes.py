"""Real roots for the damage campaign, and what is known of each: the values of every checkpoint, and which count.

The state is small and every value in it follows from one number, so that a mixture of two checkpoints shows. Newer
checkpoints of one scene hold more than older ones: the model has grown, and a metric has come.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import ckptflow
from ckptflow import CheckpointManager, KeepLast
from ckptflow.format.layout import Folder, parse_folder
from tests.protocol.invariants import counting_in

AS_MADE = -1.0
SAVING: dict[str, Any] = {"shard_bytes": 2**16, "memory_budget_bytes": 2**18, "commit_timeout_s": 1.0}
KEEP_ALL = KeepLast(99)


class Part(tf.Module):  # type: ignore[misc]
    """A few variables, three shards' worth."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = [tf.Variable(tf.zeros([10_000])) for _ in range(count)]
        self.counter = tf.Variable(0, dtype=tf.int64)


class Python:
    """Plain Python state."""

    seen: Any = AS_MADE

    def get_state(self) -> Any:
        return {"seen": self.seen}

    def set_state(self, state: Any) -> None:
        self.seen = state["seen"]


class State:
    """What is saved and restored; `grown` has a part and a metric more."""

    def __init__(self, *, grown: bool) -> None:
        self.base, self.python = Part(4), Python()
        self.extra: Part | None = Part(1) if grown else None
        self.metric: Any = keras.metrics.Mean() if grown else None
        newer = {"added": self.extra, "average": self.metric} if grown else {}  # their names, and shards, come first
        self.objects: dict[str, Any] = newer | {"base": self.base, "python": self.python}
        self.fill(AS_MADE)

    def fill(self, value: float) -> None:
        for variable, expected in self._expected(value, value):
            variable.assign(expected)
        self.python.seen = value

    def problem(self, value: float, *, is_grown: bool) -> str | None:
        """How this differs from a checkpoint of `value`, of which only a grown one has the newer parts; or None."""
        expected = self._expected(value, value if is_grown else AS_MADE)
        wrong = [v.path if hasattr(v, "path") else v.name for v, e in expected if not np.array_equal(v.numpy(), e)]
        if self.python.seen != value:
            wrong.append(f"python ({self.python.seen})")
        return f"not the values of {value}: {wrong}" if wrong else None

    def _expected(self, base: float, extra: float) -> Iterator[tuple[Any, Any]]:
        for part, value in ((self.base, base), (self.extra, extra)):
            if part is not None:
                yield part.counter, np.int64(value)
                for i, layer in enumerate(part.layers):
                    yield layer, np.full(layer.shape, value + i / 16, np.float32)
        if self.metric is not None:
            for i, variable in enumerate(self.metric.variables):
                yield variable, np.float32(extra + i / 16)


@dataclass(frozen=True)
class Scene:
    """A root, and what is true of it before anything is damaged. `counting`: newest first."""

    path: Path
    values: Mapping[Folder, float]
    grown: frozenset[Folder]
    counting: tuple[Folder, ...]
    pinned: frozenset[Folder]
    content: Mapping[str, bytes]
    other: Scene | None = None  # the same story, of another run

    def problem(self, state: State, found: ckptflow.Checkpoint) -> str | None:
        """Whether `state` holds the values of `found`, and of nothing else."""
        folder = as_folder(found)
        values = {self.values.get(folder)} | ({self.other.values.get(folder)} if self.other else set())
        if found.metadata not in values:
            return f"{folder} is none of this root's: {found.metadata}"
        return state.problem(found.metadata, is_grown=folder in self.grown)


def as_folder(found: ckptflow.Checkpoint) -> Folder:
    folder = parse_folder(found.url.rpartition("/")[2])
    assert folder is not None
    return folder


def read_all(root: Path) -> dict[str, bytes]:
    """Every regular file below `root`, by its key."""
    paths = [Path(above, name) for above, _, names in os.walk(root) for name in names]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths if path.is_file()}


class Writer:
    """Writes a scene: the values of a save are a number that no other save of any scene has."""

    def __init__(self, root: Path, run: int) -> None:
        self.root, self._run = root, run
        self.values: dict[Folder, float] = {}
        self.grown: set[Folder] = set()

    def life(self, *steps: int, grown: bool = False, back_to: int | None = None) -> None:
        """One run attempt that resumes, or goes back, and saves `steps`."""
        state = State(grown=grown)
        with CheckpointManager(self.root, state.objects, keep=KEEP_ALL, **SAVING) as manager:
            manager.restore_latest(partial=True) if back_to is None else manager.rollback(back_to, partial=True)
            for step in steps:
                value = float(self._run * 10_000 + len(self.values) * 100 + step)
                state.fill(value)
                folder = as_folder(manager.save(step, metadata=value).result())
                self.values[folder] = value
                self.grown |= {folder} if grown else set()

    def scene(self, other: Scene | None) -> Scene:
        for found in ckptflow.list_checkpoints(self.root):  # what a rollback saved again
            self.values.setdefault(as_folder(found), found.metadata)
        content = read_all(self.root)
        pins = frozenset(folder for folder in self.values if f"pins/{folder}" in content)
        counting = tuple(sorted(counting_in(content), reverse=True))
        return Scene(self.root, self.values, frozenset(self.grown), counting, pins, content, other)


def _two_saves(writer: Writer) -> None:
    writer.life(10, 20)


def _restarts(writer: Writer) -> None:
    writer.life(10, 20, 30)
    writer.life(40, 50)
    writer.life(60)


def _grown(writer: Writer) -> None:
    writer.life(10, 20)
    writer.life(30)
    writer.life(40, grown=True)


def _rollback(writer: Writer) -> None:
    writer.life(10, 20, 30, 40)
    writer.life(25, 35, back_to=20)


def _crashes(writer: Writer) -> None:
    """A save that was never committed, a pin, and an attempt that has claimed and saved nothing."""
    writer.life(10, 20, 30)
    for folder in [folder for folder in writer.values if folder.step == 30]:
        os.unlink(writer.root / str(folder) / "manifest.json")
        del writer.values[folder]
    writer.life(30, 40)
    with CheckpointManager(writer.root, State(grown=False).objects) as manager:
        manager.pin(10)
        manager.restore_latest()


STORIES: dict[str, Callable[[Writer], None]] = {
    "two saves": _two_saves,
    "restarts": _restarts,
    "grown": _grown,
    "rollback": _rollback,
    "crashes": _crashes,
}


def make_scenes(folder: Path) -> dict[str, Scene]:
    """Every story, written below `folder` by the real manager; each with the same story of another run."""
    scenes: dict[str, Scene] = {}
    for name, story in STORIES.items():
        other: Scene | None = None
        for run in (2, 1):
            writer = Writer(folder / f"{name}-{run}", run)
            story(writer)
            other = writer.scene(other)
        assert other is not None
        scenes[name] = other
    return scenes
