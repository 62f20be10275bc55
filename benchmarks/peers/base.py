"""What is compared: one way to save and restore a state, in a process of its own."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Point:
    """Where on the scales a peer is measured. `url` is a folder of its own, on a disk or in a bucket.

    `options` are the storage's, and `settings` what else a peer is told: concurrency, shard size.
    """

    url: str
    size_bytes: int
    variable_count: int
    storage: str = "local"
    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def element_count(self) -> int:
        """Of float32 in each variable."""
        return max(1, self.size_bytes // 4 // self.variable_count)


class Peer:
    """One way to save and restore. A round: `change`, `save`, `finish`, `spoil`, `restore`, `check`.

    `save` returns once training may go on, `finish` once the bytes are durable. `note` says what differs from the
    others; a limit moves the same bytes and does nothing else.
    """

    note = ""
    is_limit = False

    def __init__(self, point: Point) -> None:
        raise NotImplementedError

    def change(self) -> None:
        """Gives every variable other values, as a step does, and remembers some."""

    def save(self, round_number: int) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        """Returns once what `save` began is durable."""

    def tidy(self) -> None:
        """What a save leaves to be done once it is durable; not measured."""

    def spoil(self) -> None:
        """Overwrites every variable, so that only a restore can bring the values back."""

    def restore(self) -> None:
        raise NotImplementedError

    def check(self) -> None:
        """Raises AssertionError unless the values are the remembered ones."""

    def counters(self) -> dict[str, float]:
        """Counts of the round, where the peer can count honestly."""
        return {}

    def close(self) -> None:
        """Gives everything back."""


class Samples:
    """Some values of a state, remembered before a save and compared after a restore."""

    def __init__(self, now: Callable[[], Sequence[Any]]) -> None:
        """`now` gives the variables; the first and the last value of some of them are looked at."""
        self._now = now
        self._values: list[float] = []

    def remember(self) -> None:
        self._values = self._read()

    def compare(self) -> None:
        """Raises AssertionError where they are others now."""
        values = self._read()
        if values != self._values:
            raise AssertionError(f"the restored values are not the saved ones: {values[:3]} for {self._values[:3]}")

    def _read(self) -> list[float]:
        """Of the first variable, the last and some in between."""
        variables = self._now()
        places = sorted({round(i * (len(variables) - 1) / 7) for i in range(8)})
        return [float(variables[i][place]) for i in places for place in (0, -1)]


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
