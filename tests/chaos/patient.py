"""The process whose system calls fail: restores, saves, and says how each ended; and, healed, what it then finds.

Of what it saves a part is copied, as links.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ckptflow import CheckpointManager, CkptflowError, KeepLast
from ckptflow.transfer import regroup
from tests.chaos.gate import install
from tests.chaos.scenes import SAVING, State

OLDEST, OLDER, SAVED, NEXT, LAST = 5, 10, 20, 30, 40  # steps; the first two are there when a case begins


@dataclass(frozen=True)
class Outcome:
    """How one attempt ended: what it restored, whether its save was acknowledged, what was raised."""

    restored: int | None = None
    acknowledged: bool = False
    error: str = ""  # the class
    message: str = ""
    is_raw: bool = False
    broken: tuple[str, ...] = ()  # promises
    copied_bytes: int = 0


def serve(connection: Connection) -> None:
    """Does what it is told until it is killed: "make", "run", "look" or "go on", each on a root."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    logging.getLogger("ckptflow").setLevel(logging.CRITICAL + 1)
    with socket.socket(fileno=os.dup(connection.fileno())) as channel:
        try:
            listener = install()
        except OSError as error:
            channel.send(str(error).encode())
            return
        socket.send_fds(channel, [b"!"], [listener])  # any other call would wait for whoever gets it
    os.close(listener)
    vars(regroup)["_APART_BYTES"] = 2**10  # the backbone is copied, small as it is
    patient = _Patient()
    while True:
        order, root = connection.recv()
        connection.send(getattr(patient, order)(root))


class _WithBackbone(State):
    """The state, and a part that no save changes: it is copied."""

    def __init__(self) -> None:
        self.backbone = keras.layers.Dense(100, trainable=False)
        self.backbone.build((100,))
        super().__init__(grown=False)
        self.objects["backbone"] = self.backbone

    def fill(self, value: float) -> None:
        for variable, expected in self._expected(value, value):
            if not np.array_equal(variable.numpy(), expected):
                variable.assign(expected)
        self.python.seen = value

    def _expected(self, base: float, extra: float) -> Iterator[tuple[Any, Any]]:
        yield from super()._expected(base, extra)
        yield self.backbone.kernel.value, np.full((100, 100), min(base, 0.5), np.float32)


class _Patient:
    def __init__(self) -> None:
        self.state = _WithBackbone()
        self._manager: CheckpointManager | None = None
        self._has_restored = False

    def make(self, root: str) -> None:
        with self._open(root) as manager:
            for step in (OLDEST, OLDER):
                self.state.fill(step)
                manager.save(step).result()

    def run(self, root: str) -> Outcome:
        """A start and a save, each of whose calls may fail."""
        restored: int | None = None
        is_acknowledged = self._has_restored = False
        broken: list[str] = []
        try:
            self._manager = self._open(root)
            found = self._manager.restore_latest()
            restored = found.step if found else None
            self._has_restored = True
            if found and (problem := self.state.problem(found.step, is_grown=False)):
                broken.append(f"WRONG VALUES: {problem}")
            self.state.fill(SAVED)
            pending = self._manager.save(SAVED)
            self._manager.wait()
            is_acknowledged = pending.exception() is None
        except Exception as error:
            is_raw = not isinstance(error, CkptflowError)
            return Outcome(restored, False, type(error).__name__, str(error), is_raw, tuple(broken))
        copied_bytes = pending.result().copied_bytes if is_acknowledged else 0
        return Outcome(restored, is_acknowledged, broken=tuple(broken), copied_bytes=copied_bytes)

    def look(self, root: str) -> Outcome:
        """What another process would restore now."""
        with self._open(root, read_only=True) as manager:
            found = manager.restore_latest()
        problem = self.state.problem(found.step, is_grown=False) if found else None
        return Outcome(found.step if found else None, broken=(f"WRONG VALUES: {problem}",) if problem else ())

    def go_on(self, root: str) -> Outcome:
        """The next save of the same manager, where it may save at all, and a restart after it."""
        manager, self._manager = self._manager, None
        broken = self._next_save(manager) if manager is not None else []
        with self._open(root) as again:
            found = again.restore_latest()
            if found is None or (problem := self.state.problem(found.step, is_grown=False)):
                broken.append(f"after the next save: {found}, {problem if found else ''}")
            self.state.fill(LAST)
            again.save(LAST)
        debris = [str(path.relative_to(root)) for path in Path(root).rglob(".ckptflow-*") if not _is_manifest(path)]
        partial = [path.name for path in Path(root).glob("0*") if not (path / "manifest.json").exists()]
        broken += [f"left behind: {name}" for name in debris + partial]
        broken += [f"left open: {path}" for path in _close_all_below(root)]
        return Outcome(found.step if found else None, broken=tuple(broken))

    def _next_save(self, manager: CheckpointManager) -> list[str]:
        """After a restore that failed it restores first, as a program would that tries again."""
        try:
            if not self._has_restored and (found := manager.restore_latest()) and found.step != OLDER:
                return [f"{found.step} is restored by a second try"]
            self.state.fill(NEXT)
            manager.save(NEXT)
            manager.wait()
        except Exception as error:
            return [f"the next save failed: {type(error).__name__}: {error}"]
        finally:
            manager.close()
        return []

    def _open(self, root: str, **more: bool) -> CheckpointManager:
        self.state.fill(-1.0)
        return CheckpointManager(root, self.state.objects, keep=KeepLast(2), concurrency=1, **SAVING, **more)  # type: ignore[arg-type]


def _is_manifest(path: Path) -> bool:
    """Whether a name was left by a kill just after the manifest was linked: it goes with its checkpoint."""
    manifest = path.with_name("manifest.json")
    return manifest.exists() and path.samefile(manifest)


def _close_all_below(root: str) -> list[str]:
    """Closes what is open below `root`, when nothing should be, and says what it was."""
    found: list[str] = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            path = os.readlink(f"/proc/self/fd/{name}")
            if path.startswith(root):
                os.close(int(name))
                found.append(path)
    return found
