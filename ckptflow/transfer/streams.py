"""How many transfers of one store are under way at once: the number is found by watching what each round of them gave.

One connection to S3 or GCS gives some tens of MB/s after tens of milliseconds; the link of the machine gives a hundred
times that, to many. Nobody knows beforehand how many pay: so the number grows while the throughput grows with it, and
falls where the storage says that it is too much. `decide` is the rule, on numbers alone; `Streams` keeps the turns.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ckptflow.storage.store import Store
from ckptflow.transfer.buffers import BufferPool

logger = logging.getLogger("ckptflow.transfer")

ON_DISK = 2  # two large writes keep a disk busy

FIRST = 16  # to begin with: fewer would find the best number only after a save of some hundred MiB is over
GAIN = 1.3  # twice the streams must give that much more, or they are not worth their memory and requests
FEWER = 1.1  # times as much is what fewer must give: where all give the same, nothing speaks for another number
STEP = 4 / 3  # of the number, at a probe
PROBE_EVERY = 8  # rounds between two probes
CEILING_ROUNDS = 32  # for which a number that was refused is not tried again
REFUSALS = 1 / 6  # of a round's requests: a storage of many users refuses one now and then, whatever the number


@dataclass(frozen=True, slots=True)
class Round:
    """What `streams` transfers gave: the bytes of those that ended, and the seconds that they took, added up."""

    streams: int
    size_bytes: int
    busy_s: float
    refusals: int = 0  # answers that ask for fewer requests

    @property
    def is_refused(self) -> bool:
        """Whether so many were refused that it is the number."""
        return self.refusals > self.streams * REFUSALS + (1 if self.streams > 4 else 0)

    @property
    def bytes_per_s(self) -> float:
        """Of all together: as many as are under way, each as fast as the mean of them."""
        return self.streams * self.size_bytes / self.busy_s if self.busy_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Count:
    """The number from here on, and what it was decided from.

    `base` is the number that was best so far and `base_bytes_per_s` what it gave; while `streams` is another one, that
    is being tried. `ceiling` is the number below which the storage asked to stay, for `ceiling_rounds` to come.
    """

    streams: int
    reason: str = "to begin with"
    base: int = 0
    base_bytes_per_s: float = 0.0
    is_growing: bool = True
    quiet_rounds: int = 0
    tries_fewer: bool = True
    ceiling: int = 0
    ceiling_rounds: int = 0


def decide(now: Count, seen: Round, most: int) -> Count:
    """The number for the next round, between 1 and `most`.

    Refused: to seven tenths, and not above what was refused for a while. Else twice as many, as long as each doubling
    gives `GAIN` times as much; then the last number that paid stays, and now and then a third more, or a quarter
    fewer, are tried for one round.
    """
    limit = most if not now.ceiling else max(1, min(most, now.ceiling))
    if seen.is_refused:
        fewer = max(1, seen.streams * 7 // 10)
        return Count(
            fewer,
            f"{seen.refusals} answers asked for fewer requests",
            base=fewer,
            is_growing=False,
            ceiling=max(1, seen.streams - max(1, seen.streams // 8)),
            ceiling_rounds=CEILING_ROUNDS,
        )
    rounds_left = max(0, now.ceiling_rounds - 1)
    now = replace(now, ceiling_rounds=rounds_left, ceiling=now.ceiling if rounds_left else 0)
    if not now.base_bytes_per_s:  # nothing to compare with
        return _try(replace(now, base=seen.streams, base_bytes_per_s=seen.bytes_per_s), limit, seen)
    gain = seen.bytes_per_s / now.base_bytes_per_s
    if seen.streams > now.base:
        if gain >= _needed(now.base, seen.streams):
            better = replace(now, base=seen.streams, base_bytes_per_s=seen.bytes_per_s, quiet_rounds=0)
            return _try(better, limit, seen)
        return _stay(now, f"{seen.streams} gave {gain:.2f} times as much as {now.base}")
    if seen.streams < now.base:
        if gain >= FEWER:
            better = replace(now, base=seen.streams, base_bytes_per_s=seen.bytes_per_s)
            return _stay(better, f"{seen.streams} gave {gain:.2f} times as much as {now.base}")
        return _stay(now, f"{seen.streams} gave {gain:.2f} times as much as {now.base}")
    # The same again: what it gives may change with the hour.
    now = replace(
        now, base_bytes_per_s=(now.base_bytes_per_s + seen.bytes_per_s) / 2, quiet_rounds=now.quiet_rounds + 1
    )
    if now.quiet_rounds < PROBE_EVERY:
        return replace(now, streams=min(now.base, limit), reason="")
    more, less = min(limit, int(now.base * STEP + 0.5)), max(1, int(now.base / STEP))
    target = less if now.tries_fewer or more <= now.base else more
    if target == now.base:
        return replace(now, streams=now.base, reason="", quiet_rounds=0)
    return replace(now, streams=target, reason="a probe", quiet_rounds=0, tries_fewer=not now.tries_fewer)


def _needed(base: int, streams: int) -> float:
    """What more streams must give to be kept: `GAIN` for twice as many, in proportion for fewer."""
    return 1 + (GAIN - 1) * (streams / base - 1)


def _try(now: Count, limit: int, seen: Round) -> Count:
    target = min(limit, 2 * now.base) if now.is_growing else now.base
    if target <= now.base:
        return replace(now, streams=min(now.base, limit), is_growing=False, reason=f"{now.base} is the most")
    return replace(
        now, streams=target, reason=f"{seen.streams} gave {seen.bytes_per_s / 1e6:,.0f} MB/s, more may give more"
    )


def _stay(now: Count, reason: str) -> Count:
    return replace(now, streams=now.base, is_growing=False, quiet_rounds=0, reason=reason)


def streams_for(store: Store, pool: BufferPool, concurrency: int | None = None) -> Streams:
    """The streams of a store: `concurrency` of them if it is given, two on a disk, else as many as pay."""
    fixed = concurrency if concurrency is not None or store.is_object_store else ON_DISK
    return Streams(pool.count, fixed=fixed, where=store.url)


class Streams:
    """The turns of transfers of one store: no more at once than the number that is decided from those before.

    Thread-safe. One for all saves and restores of a manager: what one has found, the next begins with.
    """

    def __init__(
        self, most: int, *, fixed: int | None = None, where: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.most = max(1, min(most, fixed or most))
        self._is_fixed = fixed is not None
        self._where = where
        self._clock = clock
        self._choice = Count(max(1, min(fixed or FIRST, self.most)))
        self._turn = threading.Condition()
        self._under_way = 0
        self._began_s = clock()
        self._ended, self._bytes, self._busy_s, self._refusals = 0, 0, 0.0, 0
        self._is_full = False  # whether one had to wait: else the round says nothing of the number

    @property
    def count(self) -> int:
        """How many transfers may be under way now."""
        return self._choice.streams

    @contextlib.contextmanager
    def transfer(self, size_bytes: int) -> Iterator[None]:
        """Waits for its turn; the block, unless it raises, counts as one transfer of so many bytes."""
        with self._turn:
            while self._under_way >= self._choice.streams:
                self._is_full = True
                self._turn.wait()
            self._under_way += 1
        began_s = self._clock()
        is_done = False
        try:
            yield
            is_done = True
        finally:
            with self._turn:
                self._under_way -= 1
                if is_done:
                    self._note(size_bytes, began_s, self._clock())
                self._turn.notify_all()

    def refused(self) -> None:
        """The storage has asked for fewer requests. From any thread."""
        with self._turn:
            self._refusals += 1
            self._end_round(self._clock())

    def _note(self, size_bytes: int, began_s: float, ended_s: float) -> None:
        if self._is_fixed or began_s < self._began_s:  # of a round before, and of its number
            return
        self._ended += 1
        self._bytes += size_bytes
        self._busy_s += ended_s - began_s
        self._end_round(ended_s)

    def _end_round(self, now_s: float) -> None:
        before = self._choice
        if self._is_fixed or self._ended + self._refusals < before.streams:
            return
        seen = Round(before.streams, self._bytes, self._busy_s, self._refusals)
        if self._is_full or seen.is_refused:
            self._choice = decide(before, seen, self.most)
        if self._choice.streams != before.streams:
            logger.debug("%s: %d streams after %d: %s", self._where, self.count, before.streams, self._choice.reason)
        self._began_s, self._is_full = now_s, False
        self._ended, self._bytes, self._busy_s, self._refusals = 0, 0, 0.0, 0
