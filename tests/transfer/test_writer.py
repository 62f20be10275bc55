"""What is written is what the plan says: bytes, checksums, releases, back-pressure, and errors that stop it."""

from __future__ import annotations

import threading
import tracemalloc

import crc32c
import numpy as np
import psutil
import pytest
import safetensors

from ckptflow.errors import StorageFullError
from ckptflow.format import dtypes
from ckptflow.format.spec import Bytes1D, TensorSpec
from ckptflow.transfer import writer
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.plan import plan_shards
from ckptflow.transfer.streams import Streams
from ckptflow.transfer.writer import replica_digests, write_shards
from tests.transfer.helpers import FOLDER, ArraySource, DictStore, arrays_for, write_checkpoint
from tests.transfer.test_buffers import all_free

SPECS = [
    TensorSpec("kernel", "float32", (300, 1000)),
    TensorSpec("wide", "bfloat16", (3, 50_000)),
    TensorSpec("phase", "complex128", (3, 9, 700)),
    TensorSpec("scalar", "bool", ()),
    TensorSpec("empty", "int64", (0, 3)),
    TensorSpec("odd", "uint8", (77,)),
    TensorSpec("sum", "float64", (5, 5), components="sum"),
]


def sources(world_size: int) -> list[ArraySource]:
    shared = arrays_for(SPECS)
    own = [arrays_for(SPECS, seed=w + 1) for w in range(world_size)]
    return [
        ArraySource(SPECS, [own[w][i] if spec.components else shared[i] for i, spec in enumerate(SPECS)])
        for w in range(world_size)
    ]


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("chunk_bytes", [512, 2**20])
def test_every_checksum_is_that_of_the_bytes(
    world_size: int, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "CHUNK_BYTES", chunk_bytes)
    store = DictStore()
    manifest = write_checkpoint(store, sources(world_size), small_bytes=2**10)
    for shard in manifest.shards:
        data = store.objects[FOLDER.key(shard.name)]
        assert (len(data), crc32c.crc32c(data)) == (shard.size_bytes, shard.crc32c)
        safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    for tensor in manifest.tensors:
        for piece in tensor.slices:
            size = int(np.prod(piece.shape, dtype=np.int64)) * dtypes.item_size_bytes(tensor.dtype)
            data = store.objects[FOLDER.key(manifest.shards[piece.shard].name)][piece.offset : piece.offset + size]
            assert crc32c.crc32c(data) == piece.crc32c
    assert any(len(tensor.slices) > 1 and tensor.slices[0].start[0] == tensor.slices[1].start[0]
               for tensor in manifest.tensors)  # fmt: skip  # some are cut along a later axis: no single run


def test_the_same_state_gives_the_same_files() -> None:
    first, second = DictStore(), DictStore()
    write_checkpoint(first, sources(2), small_bytes=0)
    write_checkpoint(second, sources(2), small_bytes=0)
    assert first.objects == second.objects


def test_every_tensor_is_released_once_and_early() -> None:
    workers = sources(3)
    write_checkpoint(DictStore(), workers, small_bytes=2**10)
    for worker in workers:
        assert sorted(worker.released) == list(range(len(SPECS)))
    unused = plan_shards(SPECS, worker=1, world_size=3, shard_bytes=2**16, small_bytes=2**10).unused
    assert unused
    assert tuple(workers[1].released[: len(unused)]) == unused  # what it writes nothing of goes first


def test_a_reference_is_dropped_before_its_shard_is_sent() -> None:
    specs = [TensorSpec(f"t{i}", "uint8", (40_000,)) for i in range(3)]
    source = ArraySource(specs, arrays_for(specs))
    seen: list[int] = []

    class Watching(DictStore):
        def put(self, key: str, data: memoryview) -> None:
            seen.append(len(source.released))
            super().put(key, data)

    plan = plan_shards(specs, worker=0, world_size=1, shard_bytes=2**16)
    write_shards(Watching(), FOLDER, plan, source, BufferPool(2**16, 2**16), streams=Streams(1, fixed=1))
    assert seen == [1, 3]  # the second is cut: it goes with its last part


def test_no_more_shards_are_under_way_than_buffers_and_threads() -> None:
    class Slow(DictStore):
        now = most = 0

        def put(self, key: str, data: memoryview) -> None:
            with self._lock:
                self.now += 1
                self.most = max(self.most, self.now)
            threading.Event().wait(0.002)
            super().put(key, data)
            with self._lock:
                self.now -= 1

    specs = [TensorSpec("t", "uint8", (2**20,))]
    plan = plan_shards(specs, worker=0, world_size=1, shard_bytes=2**16)
    for is_object_store, buffers, most in ((False, 8, 2), (True, 8, 8), (True, 3, 3)):
        store = Slow(is_object_store=is_object_store)
        write_shards(store, FOLDER, plan, ArraySource(specs, arrays_for(specs)), BufferPool(buffers * 2**16, 2**16))
        assert 1 <= store.most <= most
        assert len(store.objects) == len(plan.shards)


def test_the_first_error_is_raised_as_it_is_and_ends_the_rest() -> None:
    class Full(DictStore):
        def put(self, key: str, data: memoryview) -> None:
            with lock:
                if len(self.objects) == 3:
                    raise StorageFullError("no space")
                super().put(key, data)

    lock = threading.Lock()
    specs = [TensorSpec("t", "uint8", (2**22,))]
    plan = plan_shards(specs, worker=0, world_size=1, shard_bytes=2**16)
    store, pool = Full(), BufferPool(4 * 2**16, 2**16)
    with pytest.raises(StorageFullError, match="no space"):
        write_shards(store, FOLDER, plan, ArraySource(specs, arrays_for(specs)), pool)
    assert len(store.objects) == 3 < len(plan.shards)
    assert all_free(pool)


def test_a_failing_source_is_raised_too() -> None:
    class Gone(ArraySource):
        def data(self, index: int) -> Bytes1D:
            raise RuntimeError("device lost")

    specs = [TensorSpec("t", "uint8", (2**18,))]
    plan = plan_shards(specs, worker=0, world_size=1, shard_bytes=2**16)
    pool = BufferPool(2 * 2**16, 2**16)
    with pytest.raises(RuntimeError, match="device lost"):
        write_shards(DictStore(), FOLDER, plan, Gone(specs, arrays_for(specs)), pool)
    assert all_free(pool)


def test_a_shard_longer_than_a_buffer_is_refused() -> None:
    specs = [TensorSpec("t", "uint8", (2**18,))]
    plan = plan_shards(specs, worker=0, world_size=1, shard_bytes=2**17)
    with pytest.raises(ValueError, match="longer than a buffer"):
        write_shards(DictStore(), FOLDER, plan, ArraySource(specs, arrays_for(specs)), BufferPool(2**17, 2**16))


def test_digests_tell_copies_apart() -> None:
    specs = [TensorSpec("a", "float32", (10,)), TensorSpec("e", "float32", (0,)), TensorSpec("b", "int8", (3,))]
    first, second = ArraySource(specs, arrays_for(specs)), ArraySource(specs, arrays_for(specs, seed=1))
    assert replica_digests(first, [0, 1, 2]) == replica_digests(ArraySource(specs, arrays_for(specs)), [0, 1, 2])
    told, other = replica_digests(first, [0, 1]), replica_digests(second, [0, 1])
    assert told["a"] == crc32c.crc32c(first.data(0).tobytes())
    assert told["a"] != other["a"]
    assert told["e"] == other["e"] == 0
    assert not first.released


class Null(DictStore):
    def put(self, key: str, data: memoryview) -> None:
        pass


def test_nothing_is_allocated_once_warm() -> None:
    """Twenty saves of 64 MiB: neither Python's memory nor the process's grows after the first ones."""
    specs = [TensorSpec(f"t{i}", "float32", (2**20,)) for i in range(16)]
    arrays = arrays_for(specs)
    plan = plan_shards(specs, worker=0, world_size=1, shard_bytes=2**24)
    pool, store, process = BufferPool(2**25, 2**24), Null(), psutil.Process()

    def save() -> None:
        write_shards(store, FOLDER, plan, ArraySource(specs, arrays), pool)

    save()
    with pool.buffer() as one, pool.buffer() as other:  # as they are when two saves' threads meet
        one.array[:] = other.array[:] = 1
    resident_bytes = process.memory_info().rss
    tracemalloc.start()
    try:
        save()
        held_bytes = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(19):
            save()
        now_bytes, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert now_bytes - held_bytes < 2**17
    assert peak_bytes - held_bytes < 2**20
    assert process.memory_info().rss - resident_bytes < 2**23
