"""The measurement as a whole: what is tried on a storage, for how long, and what was found."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckptflow.bench.folder import bench_folder, free_bytes, free_memory_bytes
from ckptflow.bench.grid import MIB, TENSOR_BYTES, Point, Setting, settings, whole_tensors
from ckptflow.bench.rounds import BenchRounds, latencies, save_rate
from ckptflow.storage.redaction import redact_url

MAX_ROUNDS = 3
_WANTED_ROUNDS = 2  # of each setting: one alone does not show what chance makes of it
_PASSES = 4  # of a round over its bytes: save and restore, ours and raw
_MAX_BYTES = 2**30


@dataclass(slots=True)
class Measured:
    """All that was found. `unmeasured` are the settings for which time did not suffice, or memory."""

    url: str
    client: str
    size_bytes: int
    latency_s: dict[str, float]
    points: list[Point]
    unmeasured: list[tuple[Setting, str]] = field(default_factory=list)


def measure(
    url: str,
    storage_options: dict[str, Any],
    *,
    seconds: float,
    memory_bytes: int,
    concurrencies: Sequence[int] = (),
    shard_mib: Sequence[int] = (),
    size_bytes: int | None = None,
    tell: Callable[[str, int, int], None] = lambda doing, done, total: None,
) -> Measured:
    """Up to three rounds of each setting; none begins after `seconds`, but for the very first.

    Without `size_bytes`, a save is as large as lets every setting have two rounds in that time, 1 GiB at most; where
    that is too little, settings that have more than that under way at once are left out, unless they were asked for.
    `tell` hears what is being done, and how many rounds of how many are. Raises ValueError, before anything large is
    written, where memory or the disk's free space does not hold what is to be tried.
    """
    deadline_s = time.monotonic() + seconds
    with bench_folder(url, storage_options) as store:
        tell("how far away it is", 0, 1)
        latency_s = latencies(store)
        most_bytes, limit = _memory(memory_bytes)
        fitting, too_large = settings(
            is_object_store=store.is_object_store,
            memory_bytes=most_bytes,
            concurrencies=concurrencies,
            shard_mib=shard_mib,
        )
        if not fitting:
            raise ValueError(f"{limit} holds none of the settings to be tried")
        unmeasured = [(each, f"{limit} does not hold its buffers") for each in too_large]
        if size_bytes is None:
            tell("how fast it is", 0, 1)
            _check_room(url, TENSOR_BYTES)
            free = free_bytes(url)
            rate = save_rate(store, seconds / 20, _MAX_BYTES if free is None else free // 3)
            size_bytes = _size(rate * seconds, fitting, free, is_asked=bool(concurrencies or shard_mib))
            too_much = f"{seconds:g} s are too short for it here"
        else:
            too_much = f"--size-mib {size_bytes // MIB} does not have so much under way"
        size_bytes = whole_tensors(size_bytes)
        points = [Point(each) for each in fitting if each.under_way_bytes <= size_bytes]
        unmeasured += [(each, too_much) for each in fitting if each.under_way_bytes > size_bytes]
        if not points:
            raise ValueError(f"--size-mib {size_bytes // MIB} is too small for any of the settings to be tried")
        _check_room(url, size_bytes)
        rounds = BenchRounds(store, size_bytes)
        turns = [point for _ in range(MAX_ROUNDS) for point in points]
        for number, point in enumerate(turns):
            if time.monotonic() < deadline_s or number == 0:
                tell(str(point.setting), number, len(turns))
                rounds.run(point)
        unmeasured += [(point.setting, f"{seconds:g} s were over") for point in points if not point.rounds]
        measured = [point for point in points if point.rounds]
        return Measured(redact_url(url), rounds.client, size_bytes, latency_s, measured, unmeasured)


def _memory(memory_bytes: int) -> tuple[int, str]:
    """How much may be taken, and what says so. Half of what is free at most: clients hold copies of what they send."""
    free = free_memory_bytes()
    if free is not None and free // 2 < memory_bytes:
        return free // 2, f"half of this machine's free memory ({free // 2 // MIB:,} MiB)"
    return memory_bytes, f"--memory-mib {memory_bytes // MIB}"


def _size(bytes_in_time: float, fitting: Sequence[Setting], free: int | None, *, is_asked: bool) -> int:
    """How many bytes a save has. What was asked for has room in it; else as many settings as there is time for, two of
    them at least where each can have one round."""
    each_pass = bytes_in_time / _PASSES
    most = _MAX_BYTES if free is None else min(_MAX_BYTES, free // 3)  # ours and the raw client's are there together
    under_way = sorted(each.under_way_bytes for each in fitting)

    def is_enough(size_bytes: int, rounds: int) -> bool:
        settings = bisect_right(under_way, size_bytes)
        return size_bytes <= most and rounds * settings * whole_tensors(size_bytes) <= each_pass

    least = under_way[-1] if is_asked else under_way[0]
    if not is_asked:
        for rounds in (1, _WANTED_ROUNDS):
            least = max((size for size in under_way[1:] if is_enough(size, rounds)), default=least)
    size_bytes = min(int(each_pass / (_WANTED_ROUNDS * len(fitting))), most)
    return max(size_bytes, least, TENSOR_BYTES)


def _check_room(url: str, size_bytes: int) -> None:
    free = free_bytes(url)
    if free is not None and free < 2.2 * size_bytes:
        raise ValueError(
            f"{url}: {free // MIB:,} MiB are free, and a round writes {2 * size_bytes // MIB:,} MiB: "
            "give a smaller --size-mib, or another folder"
        )
