"""What is compared: one way to save and restore a state, in a process of its own."""

from __future__ import annotations

import mmap
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import crc32c
import numpy as np


@dataclass(frozen=True)
class Point:
    """Where on the scales a peer is measured. `url` is a folder of its own, on a disk or in a bucket.

    `options` are the storage's, and `settings` what else a peer is told: concurrency, shard size. `restores` are those
    of a round: "cold" with its files out of the page cache, "warm" as they are.
    """

    url: str
    size_bytes: int
    variable_count: int
    storage: str = "local"
    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    restores: Sequence[str] = ("cold", "warm")

    @property
    def element_count(self) -> int:
        """Of float32 in each variable."""
        return max(1, self.size_bytes // 4 // self.variable_count)


class Peer:
    """One way to save and restore. A round: `change`, `save`, `finish`, `spoil`, `restore`, `check`.

    `save` returns once training may go on, `finish` once the bytes are durable. `note` says what differs from the
    others; a raw baseline moves the same bytes and does nothing else.
    """

    note = ""
    is_limit = False

    def __init__(self, point: Point) -> None:
        raise NotImplementedError

    def change(self) -> None:
        """Gives every variable other values, as a step does, and remembers what they are."""

    def save(self, round_number: int) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        """Returns once what `save` began is durable."""

    def tidy(self) -> None:
        """Removes what was saved before, now that the new save is durable; not measured."""

    def spoil(self) -> None:
        """Overwrites every variable, so that only a restore can bring the values back."""

    def restore(self) -> None:
        raise NotImplementedError

    def check(self) -> None:
        """Raises AssertionError unless the values are the remembered ones."""

    def measure(self, number: int) -> dict[str, float] | None:
        """A round of its own kind, for a peer that is no plain save and restore; None: the round above."""
        return None

    def prove(self) -> None:
        """What such a peer shows once, after its last round: raises AssertionError unless what it saves is right."""

    def counters(self) -> dict[str, float]:
        """Counts of the round, where the peer can count honestly."""
        return {}

    def close(self) -> None:
        """Gives everything back."""


class Places:
    """A new place for each save, as a job has it: the one before is removed when the new one is durable."""

    def __init__(self, folder: str, suffix: str = "") -> None:
        self._folder, self._suffix = folder, suffix
        self._number = -1

    def next(self) -> str:
        self._number += 1
        return self.now

    @property
    def now(self) -> str:
        return f"{self._place(self._number)}/state{self._suffix}"

    def remove_old(self) -> None:
        shutil.rmtree(self._place(self._number - 1), ignore_errors=True)

    def _place(self, number: int) -> str:
        return f"{self._folder}/{number}"


class Digests:
    """The crc32c of every variable, remembered before a save and compared after a restore."""

    def __init__(self, now: Callable[[], Sequence[Any]]) -> None:
        """`now` gives the variables, as anything that NumPy takes."""
        self._now = now
        self._digests: list[int] = []

    def remember(self) -> None:
        self._digests = self._read()

    def compare(self) -> None:
        """Raises AssertionError where a single bit is another now."""
        pairs = list(zip(self._read(), self._digests, strict=True))
        wrong = [number for number, (digest, saved) in enumerate(pairs) if digest != saved]
        if wrong:
            raise AssertionError(f"{len(wrong)} of {len(pairs)} restored variables are not the saved ones: {wrong[:3]}")

    def _read(self) -> list[int]:
        return [crc32c.crc32c(np.ascontiguousarray(np.asarray(each)).view(np.uint8).data) for each in self._now()]


def divided(size_bytes: int, piece_bytes: int) -> list[int]:
    """The sizes of the pieces: all alike, but for the last."""
    whole, rest = divmod(size_bytes, piece_bytes)
    return [piece_bytes] * whole + ([rest] if rest else [])


def each_at_once(sizes: Sequence[int], buffers: Sequence[mmap.mmap], do: Callable[[int, memoryview], None]) -> None:
    """Calls `do(number, memory)` for each size, in as many threads as there are buffers, each with one of its own."""

    def run(thread: int) -> None:
        view = memoryview(buffers[thread])
        for number in range(thread, len(sizes), len(buffers)):
            do(number, view[: sizes[number]])

    with ThreadPoolExecutor(len(buffers)) as pool:
        list(pool.map(run, range(len(buffers))))
