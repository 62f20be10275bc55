"""Which settings are tried, and what was found at each: pure data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

MIB = 2**20
TENSOR_BYTES = 16 * MIB
HEADER_ROOM_BYTES = 2**16  # beside whole tensors in a shard, so that none is cut for the header's sake
PERCENTILES = (50, 95, 99)
_CONCURRENCIES = {False: (1, 2, 4), True: (1, 4, 8, 16, 32)}
_SHARD_MIB = {False: (16, 64, 128), True: (8, 16, 32, 64)}


def whole_tensors(size_bytes: int) -> int:
    """The bytes of as many tensors as hold so much."""
    return -(-size_bytes // TENSOR_BYTES) * TENSOR_BYTES


@dataclass(frozen=True, order=True, slots=True)
class Setting:
    """What is adjustable: how many shards are under way at once, and how long each is at most."""

    concurrency: int
    shard_bytes: int

    @property
    def memory_bytes(self) -> int:
        """The budget that it takes: one more shard is packed while the others are under way."""
        return (self.concurrency + 1) * self.shard_bytes

    @property
    def under_way_bytes(self) -> int:
        """What a state has at least to have, for so many shards of that size to be under way at once."""
        return self.concurrency * (self.shard_bytes - HEADER_ROOM_BYTES)

    def __str__(self) -> str:
        return f"{self.concurrency} at once of {self.shard_bytes // MIB} MiB"


@dataclass(slots=True)
class Rates:
    """Bytes per second in each round, ours and the raw client's in the same round; CPU seconds of ours per GiB; and how
    long each request of ours for a shard took."""

    ours: list[float] = field(default_factory=list)
    raw: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    request_s: list[float] = field(default_factory=list)

    def request_percentile_s(self, percent: int) -> float:
        """So many requests of a hundred took no longer; 0 where there was none."""
        ordered = sorted(self.request_s)
        return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else 0.0

    @property
    def spread(self) -> float:
        """How far the rounds lie to either side of their median, as a part of it: what chance makes of the figure."""
        return (max(self.ours) - min(self.ours)) / 2 / median(self.ours)

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


def settings(
    *,
    is_object_store: bool,
    memory_bytes: int,
    concurrencies: Sequence[int] = (),
    shard_mib: Sequence[int] = (),
) -> tuple[list[Setting], list[Setting]]:
    """What to try, and what would take more memory than that; the defaults of this kind of storage, or those given.

    What stands in the middle comes first: where time runs out, the ends are what is left.
    """
    found = [
        Setting(concurrency, mib * MIB + HEADER_ROOM_BYTES)
        for concurrency in dict.fromkeys(concurrencies or _CONCURRENCIES[is_object_store])
        for mib in dict.fromkeys(shard_mib or _SHARD_MIB[is_object_store])
    ]
    fitting = [setting for setting in found if setting.memory_bytes <= memory_bytes]
    middle = Setting(16, 8 * MIB + HEADER_ROOM_BYTES) if is_object_store else Setting(2, 64 * MIB + HEADER_ROOM_BYTES)
    fitting.sort(key=lambda setting: (_distance(setting, middle), setting))
    return fitting, [setting for setting in found if setting not in fitting]


def _distance(setting: Setting, middle: Setting) -> float:
    """How many doublings away."""
    ratios = (setting.concurrency / middle.concurrency, setting.shard_bytes / middle.shard_bytes)
    return sum(max(ratio, 1 / ratio) for ratio in ratios)
