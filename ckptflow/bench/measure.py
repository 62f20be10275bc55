"""The measurement as a whole: what is tried on a storage, for how long, and what was found."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckptflow.bench.crew import Crew, crew_of, run_round
from ckptflow.bench.folder import bench_folder, free_bytes, free_memory_bytes
from ckptflow.bench.grid import MIB, TENSOR_BYTES, Setting, settings, whole_tensors
from ckptflow.bench.rates import Point, next_point
from ckptflow.bench.rounds import latencies, save_rate
from ckptflow.storage.redaction import redact_url
from ckptflow.storage.store import Store

_WANTED_ROUNDS = 3  # of each setting, for which there is to be time: one of each, the rest for those that matter
_PASSES = 4  # of a round over its bytes: save and restore, ours and raw
_MAX_BYTES = 2**30
# Beside its buffers: 64 MiB of random bytes, an interpreter with its clients (60 to 110 MiB), tensors that are read.
_WORKER_BYTES = 192 * MIB


@dataclass(slots=True)
class Measured:
    """All that was found. `unmeasured` are the settings for which time did not suffice, or memory.

    `is_sure` says that the intervals of the defaults and of the fastest settings are as narrow as they are to be.
    """

    url: str
    client: str
    size_bytes: int
    worker_count: int
    latency_s: dict[str, float]
    points: list[Point]
    unmeasured: list[tuple[Setting, str]] = field(default_factory=list)
    is_sure: bool = False


def measure(
    url: str,
    storage_options: dict[str, Any],
    *,
    seconds: float,
    memory_bytes: int,
    concurrencies: Sequence[int] = (),
    shard_mib: Sequence[int] = (),
    size_bytes: int | None = None,
    worker_count: int = 1,
    tell: Callable[[str, int, int], None] = lambda doing, done, total: None,
) -> Measured:
    """Rounds of the defaults and of each setting, repeated until what matters is sure; none begins after `seconds`,
    but for the very first.

    Without `size_bytes`, a save is as large as lets every setting have some rounds in that time, 1 GiB at most; where
    that is too little, settings that have more than that under way at once are left out, unless they were asked for.
    Sizes and memory are those of each worker. `tell` hears what is being done, how many seconds have passed, and of how
    many. Raises ValueError, before anything large is written, if memory or the disk's free space does not hold what
    is to be tried.
    """
    begin_s = time.monotonic()
    with bench_folder(url, storage_options) as folder:
        store = folder.store
        tell("how far away it is", 0, round(seconds))
        latency_s = latencies(store)
        most_bytes, limit = _memory(memory_bytes, worker_count)
        fitting, too_large = settings(
            is_object_store=store.is_object_store,
            memory_bytes=most_bytes,
            concurrencies=concurrencies,
            shard_mib=shard_mib,
        )
        if all(setting.is_default for setting in fitting):
            raise ValueError(f"{limit} holds none of the settings to be tried")
        too_much = f"a save of {(size_bytes or 0) // MIB:,} MiB does not have so much under way"
        if size_bytes is None:
            tell("how fast it is", 0, round(seconds))
            is_asked = bool(concurrencies or shard_mib)
            size_bytes = _size_in_time(url, store, seconds, fitting, worker_count, is_asked=is_asked)
            too_much = f"{seconds:g} s are too short for it here"
        size_bytes = whole_tensors(size_bytes)
        points = [Point(each) for each in fitting if each.under_way_bytes <= size_bytes]
        _check_room(url, size_bytes, worker_count)
        with crew_of(worker_count, store, folder.url, storage_options, size_bytes) as crew:
            is_sure = _repeat(crew, points, begin_s, seconds, tell)
            client = crew.client
    unmeasured = [(each, f"{limit} does not hold its buffers") for each in too_large]
    unmeasured += [(each, too_much) for each in fitting if each.under_way_bytes > size_bytes]
    unmeasured += [(point.setting, f"{seconds:g} s were over") for point in points if not point.rounds]
    measured = [point for point in points if point.rounds]
    return Measured(redact_url(url), client, size_bytes, worker_count, latency_s, measured, unmeasured, is_sure=is_sure)


def _repeat(
    crew: Crew, points: Sequence[Point], begin_s: float, seconds: float, tell: Callable[[str, int, int], None]
) -> bool:
    """Rounds of what `next_point` says, until it says nothing, which is returned, or the time is over."""
    passed_s, is_first = 0.0, True
    while passed_s < seconds or is_first:
        point = next_point(points)
        if point is None:
            return True
        tell(str(point.setting), round(passed_s), round(seconds))
        run_round(crew, point)
        passed_s, is_first = time.monotonic() - begin_s, False
    return next_point(points) is None


def _size_in_time(
    url: str, store: Store, seconds: float, fitting: Sequence[Setting], worker_count: int, *, is_asked: bool
) -> int:
    """How many bytes each worker saves, for the settings to have some rounds in that time: by how fast a save is."""
    _check_room(url, TENSOR_BYTES, worker_count)
    free = free_bytes(url)
    most = _MAX_BYTES if free is None else min(_MAX_BYTES, free // (3 * worker_count))
    rate = save_rate(store, seconds / 20, most) / worker_count
    return _size(rate * seconds, fitting, most, is_asked=is_asked)


def _memory(memory_bytes: int, worker_count: int) -> tuple[int, str]:
    """How much each worker's buffers may take, and what says so. All together half of what is free at most: clients
    hold copies of what they send. Of several workers each takes more than its buffers; nothing may be left for these.
    """
    free = free_memory_bytes()
    if free is None:
        return memory_bytes, f"--memory-mib {memory_bytes // MIB}"
    is_alone = worker_count == 1
    share_bytes = max(0, free // 2 // worker_count - (0 if is_alone else _WORKER_BYTES))
    if share_bytes >= memory_bytes:
        return memory_bytes, f"--memory-mib {memory_bytes // MIB}"
    each = f", for {worker_count} workers that take {_WORKER_BYTES // MIB} MiB each without buffers,"
    return share_bytes, f"half of this machine's free memory ({free // 2 // MIB:,} MiB){'' if is_alone else each}"


def _size(bytes_in_time: float, fitting: Sequence[Setting], most: int, *, is_asked: bool) -> int:
    """How many bytes a save has. What was asked for has room in it; else as many settings as there is time for, two of
    them at least where each can have one round."""
    each_pass = bytes_in_time / _PASSES
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


def _check_room(url: str, size_bytes: int, worker_count: int) -> None:
    free, written_bytes = free_bytes(url), 2 * size_bytes * worker_count  # ours and the raw client's
    if free is not None and free < 1.1 * written_bytes:
        raise ValueError(
            f"{url}: {free // MIB:,} MiB are free, and a round writes {written_bytes // MIB:,} MiB: "
            "give a smaller --size-mib, or another folder"
        )
