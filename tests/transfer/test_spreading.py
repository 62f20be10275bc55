"""How many requests a restore makes of its ranges: as many as there are streams, until the end."""

from __future__ import annotations

from collections import Counter

import pytest

from ckptflow.format.spec import TensorSpec, Wanted
from ckptflow.transfer import attempts, reader, streams
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.reader import read_tensors
from ckptflow.transfer.stream_count import Count
from ckptflow.transfer.streams import streams_for
from tests.transfer.helpers import FOLDER, ArraySource, ArrayTarget, DictStore, arrays_for, same_bits, write_checkpoint
from tests.waiting import HANG_S

LARGE = [TensorSpec("large", "float32", (11 * 2**14 - 2**9,))]  # eleven ranges of 64 KiB, with the shard's header


@pytest.fixture(autouse=True)
def _nothing_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a busy machine makes slow is not requested twice: requests are counted here."""
    monkeypatch.setattr(attempts, "LEAST_S", HANG_S)


def requests(concurrency: int | None, *, count: int, choice: Count | None = None) -> list[int]:
    """How many there are for each range of `LARGE`, in order, through so many buffers of 64 KiB, where what was decided
    before is this `choice`."""
    store = DictStore(is_object_store=True)
    arrays = arrays_for(LARGE)
    manifest = write_checkpoint(store, [ArraySource(LARGE, arrays)], shard_bytes=2**20)
    pool, target = BufferPool(count * 2**16, 2**16), ArrayTarget(manifest)
    store.gets.clear()
    found_streams = streams_for(store, pool, concurrency)
    if choice is not None:
        found_streams._meter.choice = choice
    read_tensors(store, FOLDER, manifest, [Wanted(0)], target, pool, streams=found_streams)
    assert same_bits(target.arrays["large"], arrays[0])
    found = Counter(start // 2**16 for _, start, _ in store.gets)
    return [found[number] for number in range(len(found))]


def test_there_are_as_many_requests_as_streams_and_the_last_ranges_are_spread_over_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "PIECE_BYTES", 2**15)
    monkeypatch.setattr(reader, "LEAST_PIECE_BYTES", 2**13)
    # Two streams for each buffer. Three buffers leave two ranges for the six streams, two buffers leave one for four.
    assert requests(None, count=3) == 9 * [2] + 2 * [3]
    assert requests(None, count=2) == 10 * [2] + [4]
    # No more streams than buffers: a range is one request, but for the last.
    assert requests(3, count=3) == 11 * [1]
    assert requests(4, count=4) == 11 * [1]
    assert requests(10, count=10) == 10 * [1] + [8]
    # All of it at once.
    assert requests(None, count=20) == 11 * [3]


def test_a_storage_that_has_asked_for_fewer_is_not_asked_more_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "LEAST_PIECE_BYTES", 2**13)
    throttled = Count(2, base=2, base_bytes_per_s=1e12, is_doubling=False, ceiling=2, ceiling_s=3600)
    assert requests(None, count=3, choice=throttled) == 11 * [1]
