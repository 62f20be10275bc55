"""The turns of transfers: as many at once as the number, none after an error, and none lost."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptflow.commit.copying import copy_checkpoint
from ckptflow.errors import StorageUnavailableError
from ckptflow.format.spec import TensorSpec, Wanted
from ckptflow.job.arguments import DEFAULT_MEMORY_BUDGET_BYTES, default_shard_bytes
from ckptflow.storage.retry import RetryingStore
from ckptflow.storage.store import Store
from ckptflow.storage.throttling import MOST_AT_ONCE
from ckptflow.storage.wrappers import LatencyStore, ProgressStore
from ckptflow.testing import MemoryStore
from ckptflow.transfer.buffers import Buffer, BufferPool
from ckptflow.transfer.packing import MIN_SHARD_BYTES
from ckptflow.transfer.pipeline import run
from ckptflow.transfer.plan import plan_shards
from ckptflow.transfer.reader import read_tensors
from ckptflow.transfer.stream_count import FAR_S, FIRST, FIRST_READING, Transfer
from ckptflow.transfer.streams import (
    ON_DISK,
    PIECE_BYTES,
    StoppedError,
    Streams,
    Turns,
    pieces,
    pool_for_reading,
    streams_for,
)
from ckptflow.transfer.verify import verify_checkpoint
from ckptflow.transfer.writer import write_shards
from tests.interrupts import Ended, interrupted
from tests.transfer.helpers import FOLDER, ArraySource, ArrayTarget, DictStore, arrays_for, write_checkpoint
from tests.transfer.test_buffers import all_free
from tests.waiting import HANG_S, until

MIB = 2**20


def never() -> bool:
    return False


def all_back(streams: Streams) -> bool:
    """Whether every turn can be had."""
    return streams.under_way == 0


# ---- how many


def store_of(*, is_object_store: bool) -> Store:
    return DictStore(is_object_store=is_object_store)


def test_as_many_as_the_memory_takes_two_on_a_disk_and_never_more_than_the_clients_can() -> None:
    pool, large = BufferPool(32 * 8 * MIB, 8 * MIB), BufferPool(4 * 65 * MIB, 65 * MIB)
    cloud, disk = store_of(is_object_store=True), store_of(is_object_store=False)
    assert (streams_for(cloud, pool).count, streams_for(cloud, pool).most) == (FIRST_READING, 64)
    writing = streams_for(cloud, pool, is_for_reading=False)
    assert (writing.count, writing.most) == (FIRST, 32)
    assert streams_for(cloud, large).most == 4 * len(pieces(65 * MIB)) == 64
    assert streams_for(cloud, large, is_for_reading=False).most == 4
    assert streams_for(cloud, BufferPool(2**30, 2**16)).most == MOST_AT_ONCE
    assert streams_for(cloud, BufferPool(2**30, 2**16), 10_000).count == MOST_AT_ONCE
    assert streams_for(cloud, pool, 5).count == streams_for(cloud, pool, 5).most == 5
    assert streams_for(disk, pool).count == streams_for(disk, pool).most == ON_DISK
    assert streams_for(disk, pool, 5).count == 5


def test_a_storage_that_is_far_away_is_begun_with_all_there_may_be() -> None:
    """As far as the requests before the first transfer have shown, whatever wrappers are around them."""

    def streams_after(latency_s: float) -> tuple[int, int]:
        far = LatencyStore(store_of(is_object_store=True), latency_s)
        store = ProgressStore(RetryingStore(far), lambda: None)
        reading = streams_for(store, BufferPool(4 * 8 * MIB, 8 * MIB))
        writing = streams_for(store, BufferPool(32 * MIB, MIB), is_for_reading=False)
        assert (Turns(reading).streams.count, Turns(writing).streams.count) == (8, FIRST)  # nothing is known yet
        store.delete([])
        store.list()
        assert store.quickest_s is not None
        assert store.quickest_s >= latency_s
        return Turns(reading).streams.count, Turns(writing).streams.count

    assert streams_after(FAR_S) == (8, 32)


def test_who_only_reads_takes_the_same_memory_in_smaller_buffers_for_more_requests() -> None:
    pools = {is_remote: pool_for_reading(store_of(is_object_store=is_remote)) for is_remote in (False, True)}
    assert {pool.count * pool.buffer_bytes for pool in pools.values()} == {64 * MIB}
    assert pools[True].count >= FIRST
    assert pools[False].count == 4


@given(st.integers(1, 2**31))
def test_pieces_are_alike_and_none_is_small(size_bytes: int) -> None:
    found = pieces(size_bytes)
    assert found[0][0] == 0
    assert found[-1][1] == size_bytes
    assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(found))
    assert all(begin % 4096 == 0 for begin, _ in found)
    sizes = [end - begin for begin, end in found]
    assert max(sizes) <= 1.5 * PIECE_BYTES + 4096
    assert len(sizes) == 1 or min(sizes) > PIECE_BYTES * 0.45  # the last, by as much as the others are rounded up


def test_a_little_more_than_a_piece_is_one_request() -> None:
    assert [len(pieces(size)) for size in (1, 4 * MIB, 5 * MIB, 8 * MIB - 1, 9 * MIB, 65 * MIB)] == [1, 1, 1, 2, 2, 16]
    assert [pieces(65 * MIB, most)[-1][1] for most in (1, 3)] == [65 * MIB] * 2
    assert [len(pieces(65 * MIB, most)) for most in (1, 3, 100)] == [1, 3, 16]
    assert len(pieces(65 * MIB, piece_bytes=MIB)) == 65


@given(st.integers(MIN_SHARD_BYTES, 2 * DEFAULT_MEMORY_BUDGET_BYTES), st.booleans())
def test_every_budget_holds_a_shard_of_the_default_size(budget_bytes: int, is_object_store: bool) -> None:
    size_bytes = default_shard_bytes(is_object_store=is_object_store, memory_budget_bytes=budget_bytes)
    pool = BufferPool(budget_bytes, size_bytes)
    assert pool.count >= 1
    assert pool.count * pool.buffer_bytes <= budget_bytes
    assert size_bytes >= MIN_SHARD_BYTES


# ---- turns


def test_no_more_are_under_way_than_the_number() -> None:
    streams = Streams(4)
    seen: list[int] = []
    barrier = threading.Barrier(12)

    def transfer() -> None:
        turns = Turns(streams)
        barrier.wait()
        for _ in range(50):
            turns.transfer(1, lambda: seen.append(streams.under_way))

    threads = [threading.Thread(target=transfer) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 12 * 50
    assert 1 <= min(seen) <= max(seen) <= 4
    assert all_back(streams)


def test_an_error_gives_its_turn_back_and_stops_those_that_wait() -> None:
    streams = Streams(1, fixed=1)
    for _ in range(3):
        turns = Turns(streams)
        with pytest.raises(OSError, match="gone"):
            turns.transfer(1, lambda: failing(OSError("gone")))
        assert all_back(streams)
        assert turns.is_stopped
        with pytest.raises(StoppedError):
            turns.transfer(1, lambda: failing(AssertionError("it began")))
        with pytest.raises(OSError, match="gone"):
            turns.raise_first()
        turns.raise_first()  # it is not held


def failing(error: BaseException) -> None:
    raise error


def test_what_waits_gives_up_though_nothing_else_ends() -> None:
    streams = Streams(1, fixed=1)
    streams.begin(Transfer(), never)  # another pipeline's, which goes on
    turns = Turns(streams)
    given_up: list[int] = []

    def wait(number: int) -> None:
        try:
            turns.transfer(1, lambda: None)
        except StoppedError:
            given_up.append(number)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    turns.stop()
    for thread in threads:
        thread.join(HANG_S)
    assert sorted(given_up) == list(range(5))
    assert streams.under_way == 1


# ---- pipelines


def test_after_the_first_error_nothing_that_waits_is_sent() -> None:
    """With their retries that would take minutes, while the storage is gone."""
    pool, streams = BufferPool(8 * 2**12, 2**12), Streams(1, fixed=1)
    turns = Turns(streams)
    all_there = threading.Barrier(8)
    sent: list[int] = []

    def work(number: int, buffer: Buffer) -> None:
        all_there.wait(HANG_S)
        turns.transfer(1, lambda: send(number))

    def send(number: int) -> None:
        sent.append(number)
        raise StorageUnavailableError("gone")

    with pytest.raises(StorageUnavailableError, match="gone"):
        run(pool, 8, work, turns=turns, threads=8)
    assert len(sent) == 1
    assert all_back(streams)
    assert all_free(pool)


def test_after_ctrl_c_nothing_that_waits_is_sent() -> None:
    pool, streams = BufferPool(8 * 2**12, 2**12), Streams(1, fixed=1)
    turns = Turns(streams)
    all_there = threading.Barrier(7)  # what has not begun by then is left without having waited
    is_sending = threading.Event()
    sent: list[int] = []
    given_up: list[int] = []

    def work(number: int, buffer: Buffer) -> None:
        if number == 0:
            return
        all_there.wait(HANG_S)
        try:
            turns.transfer(1, lambda: send(number))
        except StoppedError:
            given_up.append(number)
            raise

    def send(number: int) -> None:
        sent.append(number)
        is_sending.set()
        until(lambda: len(given_up) == 6, HANG_S)  # they do not wait for this one's end

    def consume(number: int, buffer: Buffer, result: None) -> None:
        is_sending.wait(HANG_S)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(pool, 8, work, consume, turns=turns, threads=8)
    assert len(sent) == 1
    assert len(given_up) == 6
    assert all_back(streams)
    assert all_free(pool)


def test_ctrl_c_at_any_line_of_a_pipeline_leaves_no_turn_taken() -> None:
    """The streams are those of the next save, too."""
    streams = Streams(2, fixed=2)

    def once(at: int | None) -> Ended:
        pool, turns = BufferPool(4 * 2**12, 2**12), Turns(streams)

        def work(number: int, buffer: Buffer) -> None:
            turns.transfer(1, lambda: None)

        ended = interrupted(lambda: run(pool, 8, work, lambda number, buffer, result: None, turns=turns, threads=4), at)
        assert ended.error is None or isinstance(ended.error, KeyboardInterrupt)
        assert all_back(streams), ended.struck
        return ended

    count = once(None).line_count
    struck = {once(at).struck for at in range(count + 20)}
    assert len(struck) > 15


SPECS = [TensorSpec(f"t{i}", "float32", (15_000,)) for i in range(24)]


def test_a_save_ends_with_its_first_error() -> None:
    """Whatever has been packed and waits for its turn stays here."""
    puts: list[str] = []

    class Gone(DictStore):
        def put(self, key: str, data: memoryview) -> None:
            puts.append(key)
            raise StorageUnavailableError("gone")

    plan = plan_shards(SPECS, worker=0, world_size=1, shard_bytes=2**16)
    source = ArraySource(SPECS, arrays_for(SPECS))
    with pytest.raises(StorageUnavailableError, match="gone"):
        write_shards(
            Gone(is_object_store=True), FOLDER, plan, source, BufferPool(2**20, 2**16), streams=Streams(1, fixed=1)
        )
    assert len(puts) == 1


def test_a_restore_ends_with_its_first_error() -> None:
    store = DictStore(is_object_store=True)
    manifest = write_checkpoint(store, [ArraySource(SPECS, arrays_for(SPECS))])
    gets: list[str] = []

    def get(key: str, into: memoryview, start: int = 0) -> int:
        gets.append(key)
        raise StorageUnavailableError("gone")

    store.get = get  # type: ignore[method-assign]
    target = ArrayTarget(manifest)
    wanted = [Wanted(index) for index in range(len(SPECS))]
    with pytest.raises(StorageUnavailableError, match="gone"):
        read_tensors(store, FOLDER, manifest, wanted, target, BufferPool(2**20, 2**16), streams=Streams(1, fixed=1))
    assert len(gets) == 1


class OfThreads(Streams):
    """Ctrl-C comes to the main thread."""

    def begin(self, transfer: Transfer, is_stopped: Callable[[], bool]) -> None:
        assert threading.current_thread().name.startswith("ckptflow-transfer")
        super().begin(transfer, is_stopped)


def test_what_the_calling_thread_has_read_again_takes_no_turn() -> None:
    """Parts that came wrong, while threads may wait for their turns."""
    specs = [TensorSpec("large", "float32", (100_000,))]
    store = DictStore(is_object_store=True)
    manifest = write_checkpoint(store, [ArraySource(specs, arrays_for(specs))], shard_bytes=2**19)
    reread: list[bool] = []

    def get(key: str, into: memoryview, start: int = 0) -> int:
        count = DictStore.get(store, key, into, start)
        is_again = not threading.current_thread().name.startswith("ckptflow-transfer")
        reread.append(is_again)
        if not is_again:
            into[count - 1] ^= 1
        return count

    store.get = get  # type: ignore[method-assign]
    target = ArrayTarget(manifest)
    read_tensors(store, FOLDER, manifest, [Wanted(0)], target, BufferPool(2**17, 2**16), streams=OfThreads(2))
    assert True in reread
    assert list(target.arrays) == ["large"]


# ---- a storage that asks for less


class Busy:
    """Each request for a shard is refused the first time, as by S3."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, str]] = set()
        self._guard = threading.Lock()

    def __call__(self, verb: str, key: str) -> None:
        with self._guard:
            is_new = "shard-" in key and (verb, key) not in self._seen
            self._seen.add((verb, key))
        if is_new:
            error = StorageUnavailableError("SlowDown")
            error.asks_for_less = True
            raise error


def save(store: Store, pool: BufferPool) -> None:
    plan = plan_shards(SPECS, worker=0, world_size=1, shard_bytes=2**16)
    write_shards(store, FOLDER, plan, ArraySource(SPECS, arrays_for(SPECS)), pool)


def restore(store: Store, pool: BufferPool) -> None:
    manifest = write_checkpoint(MemoryStore(), [ArraySource(SPECS, arrays_for(SPECS))])
    wanted = [Wanted(index) for index in range(len(SPECS))]
    read_tensors(store, FOLDER, manifest, wanted, ArrayTarget(manifest), pool)


def verify(store: Store, pool: BufferPool) -> None:
    manifest = write_checkpoint(MemoryStore(), [ArraySource(SPECS, arrays_for(SPECS))])
    assert verify_checkpoint(store, FOLDER, manifest, pool) == []


def copy(store: Store, pool: BufferPool) -> None:
    copied = copy_checkpoint(store, MemoryStore(), FOLDER, lambda count: None)
    assert copied.sent_bytes


@pytest.mark.parametrize("transfer", [save, restore, verify, copy])
def test_whoever_opened_the_store_makes_fewer_requests_when_it_asks_for_that(
    transfer: Callable[[Store, BufferPool], None], caplog: pytest.LogCaptureFixture
) -> None:
    memory = MemoryStore(hook=Busy())
    if transfer is not save:
        write_checkpoint(MemoryStore(memory.objects), [ArraySource(SPECS, arrays_for(SPECS))])
    store = RetryingStore(memory, first_wait_s=0.001)
    with caplog.at_level(logging.DEBUG, "ckptflow.transfer"):
        transfer(store, BufferPool(2**20, 2**16))
    assert "asked for fewer requests" in caplog.text
    assert f"{memory.url}: " in caplog.text
