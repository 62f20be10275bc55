"""What was measured of each setting, how sure that is, and what to measure next: pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import comb
from statistics import median

from ckptflow.bench.grid import Setting

PERCENTILES = (50, 95, 99)
CONFIDENCE = 0.9  # about, that a median's interval has the true one in it
NARROW = 0.1  # of the median, to either side: what is nearer is repeated no more
CONTENDERS = 3  # that are repeated, beside the defaults and the fastest
_AS_FAST = 0.8  # of the fastest: so much one round may say less of a setting that is as fast


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Two of the values between which the true median lies, at `CONFIDENCE`; None for fewer than five.

    By order statistics, which assume nothing of how values are spread: of n rounds the k lowest are all below the true
    median's lower side with the chance that a coin falls so often. That holds for a number of rounds that was fixed
    before; where they go on until it is narrow (`next_point`), it is about so.
    """
    ordered, count = sorted(values), len(values)
    outside, chance = 0, 2 / 2**count
    while chance <= 1 - CONFIDENCE:
        outside += 1
        chance += 2 * comb(count, outside) / 2**count
    return (ordered[outside - 1], ordered[count - outside]) if outside else None


@dataclass(slots=True)
class Rates:
    """Bytes per second in each round, of all workers together until the slowest is done, and of the raw client.

    Beside it the CPU seconds of ours per GiB, how long each request of ours for a shard took, how many were under way
    at the end of the last round, and in each round how much longer the slowest worker took than the one in the middle.
    """

    ours: list[float] = field(default_factory=list)
    raw: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    request_s: list[float] = field(default_factory=list)
    streams: int = 0
    slowest: list[float] = field(default_factory=list)

    def request_percentile_s(self, percent: int) -> float:
        """So many requests of a hundred took no longer; 0 where there was none."""
        ordered = sorted(self.request_s)
        return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else 0.0

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of the median of ours."""
        return median_interval(self.ours)

    @property
    def spread(self) -> float | None:
        """Half of that interval, as a part of the median; None while there is none."""
        found = self.interval
        return None if found is None else (found[1] - found[0]) / 2 / self.bytes_per_s

    @property
    def is_narrow(self) -> bool:
        return self.spread is not None and self.spread <= NARROW

    @property
    def bytes_per_s(self) -> float:
        return median(self.ours)

    @property
    def raw_bytes_per_s(self) -> float:
        return median(self.raw)

    @property
    def cpu_s_per_gib(self) -> float:
        return median(self.cpu_s)

    @property
    def slowest_ratio(self) -> float:
        return median(self.slowest)

    @property
    def share_of_raw(self) -> float:
        """The median of the rounds' own ratios: a storage's speed drifts between rounds."""
        return median(ours / raw for ours, raw in zip(self.ours, self.raw, strict=True))


@dataclass(slots=True)
class Point:
    """One setting, and what has been measured of it so far."""

    setting: Setting
    save: Rates = field(default_factory=Rates)
    restore: Rates = field(default_factory=Rates)

    @property
    def rounds(self) -> int:
        return len(self.restore.ours)

    @property
    def is_narrow(self) -> bool:
        return self.save.is_narrow and self.restore.is_narrow


def next_point(points: Sequence[Point]) -> Point | None:
    """The one to measure next; None once more rounds would say nothing new.

    Each once, in their order. Then the defaults and the contenders in turns, all of them until the intervals of all are
    narrow: medians are compared that are of the same minutes, since a storage's speed drifts.
    """
    for point in points:
        if not point.rounds:
            return point
    repeated = [point for point in points if point.setting.is_default] + _contenders(points)
    if all(point.is_narrow for point in repeated):
        return None
    return min(repeated, key=lambda point: point.rounds)


def _contenders(points: Sequence[Point]) -> list[Point]:
    """The one that saved fastest, and of those that saved about as fast the few that take the least memory.

    Not the few fastest: which of several that are equally good had the best round is chance, and would be another one
    each time that somebody measures. By their first rounds alone, which were soon after one another: they stay the same
    ones, whatever the storage does later.
    """
    others = [point for point in points if not point.setting.is_default]
    if not others:
        return []
    fastest = max(others, key=lambda point: point.save.ours[0])
    good = [point for point in others if point.save.ours[0] >= _AS_FAST * fastest.save.ours[0]]
    least = sorted(good, key=lambda point: (point.setting.memory_bytes, point.setting))[:CONTENDERS]
    return least if fastest in least else [*least, fastest]
