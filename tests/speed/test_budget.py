"""The memory budget: whatever is saved, with whatever concurrency, goes through it, and nobody waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import tensorflow as tf

from ckptflow import CheckpointManager, SaveFailedError, StorageUnavailableError
from ckptflow.format.manifest import Manifest, TensorRecord
from ckptflow.format.spec import TensorSpec, Wanted
from ckptflow.storage.store import Store
from ckptflow.testing import FaultyStore, LatencyStore, StoreWrapper
from ckptflow.transfer import buffers, reader, streams
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.plan import plan_shards
from ckptflow.transfer.reader import read_tensors
from ckptflow.transfer.streams import Streams
from ckptflow.transfer.writer import write_shards
from tests.manager.states import wrap_store
from tests.transfer.helpers import (
    FOLDER,
    ArraySource,
    ArrayTarget,
    DictStore,
    arrays_for,
    make_manifest,
    same_bits,
)
from tests.transfer.test_buffers import all_free
from tests.waiting import HANG_S

SHARD_BYTES = 2**16
PIECES = 4  # requests that fill a buffer, of an object store
_R = TypeVar("_R")


def within_a_minute(do: Callable[[], _R]) -> _R:
    """What `do` returns or raises in a thread of its own; fails where that waits for ever."""
    results: list[_R] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(do())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(HANG_S)
    assert not thread.is_alive(), "it waits for ever"
    if errors:
        raise errors[0]
    return results[0]


class InFlight(StoreWrapper):
    """Counts how many calls with a shard's bytes are under way at once."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._guard = threading.Lock()
        self._now = 0
        self.most = 0

    def run(self, verb: str, key: str, call: Callable[[], _R]) -> _R:
        if "shard-" not in key or verb not in ("put", "get"):
            return call()
        with self._guard:
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            return call()
        finally:
            with self._guard:
                self._now -= 1


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the staging buffers that are made."""
    sizes: list[int] = []
    real = buffers.Buffer

    def make(size_bytes: int) -> buffers.Buffer:
        sizes.append(size_bytes)
        return real(size_bytes)

    monkeypatch.setattr(buffers, "Buffer", make)
    return sizes


def state() -> dict[str, tf.Variable]:
    """Tensors of 30 times the budget: long, of rows that are each longer than a buffer, of strings; and small ones."""
    numbers = np.random.default_rng(0)
    return {
        "long": tf.Variable(numbers.standard_normal(500_000, np.float32)),
        "wide": tf.Variable(numbers.standard_normal((3, 150_000), np.float32)),
        "words": tf.Variable([numbers.bytes(700) for _ in range(1_000)]),
        "scalar": tf.Variable(7, dtype=tf.int64),
        "empty": tf.Variable(tf.zeros([0, 3])),
    }


class FarAway(StoreWrapper):
    """An object store, far away: there are to be many requests, and all there may be from the first on."""

    @property
    def is_object_store(self) -> bool:
        return True

    @property
    def quickest_s(self) -> float:
        return 1.0


@pytest.mark.parametrize("concurrency", [None, 1, 64])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("wrap", [StoreWrapper, FarAway], ids=["disk", "objects"])
def test_tensors_larger_than_the_budget(
    tmp_path: Path,
    made: list[int],
    monkeypatch: pytest.MonkeyPatch,
    wrap: type[StoreWrapper],
    count: int,
    concurrency: int | None,
) -> None:
    monkeypatch.setattr(streams, "PIECE_BYTES", SHARD_BYTES // PIECES)
    monkeypatch.setattr(reader, "LEAST_PIECE_BYTES", SHARD_BYTES // PIECES // 2)
    stores = wrap_store(monkeypatch, lambda store: InFlight(wrap(LatencyStore(store, 0.0005))))
    most = count * PIECES if wrap is FarAway else count
    default = most if wrap is FarAway else 2

    def manager(held: dict[str, tf.Variable]) -> CheckpointManager:
        return CheckpointManager(
            tmp_path, held, shard_bytes=SHARD_BYTES, memory_budget_bytes=count * SHARD_BYTES, concurrency=concurrency
        )

    def save_and_restore() -> dict[str, tf.Variable]:
        with manager(state()) as saving:
            for step in (1, 2):
                saving.save(step)
        assert sum(made) <= count * SHARD_BYTES
        made.clear()
        restored = {name: tf.Variable(tf.zeros_like(variable)) for name, variable in state().items()}
        with manager(restored) as restoring:
            restoring.restore_latest()
        assert sum(made) <= count * SHARD_BYTES
        return restored

    restored = within_a_minute(save_and_restore)
    for name, variable in state().items():
        np.testing.assert_array_equal(restored[name].numpy(), variable.numpy())
    assert all(1 <= store.most <= min(most, concurrency or default) for store in stores)


def test_a_save_that_fails_gives_its_only_buffer_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = wrap_store(monkeypatch, FaultyStore)

    def fail_and_go_on() -> int:
        with CheckpointManager(
            tmp_path, state(), shard_bytes=SHARD_BYTES, memory_budget_bytes=SHARD_BYTES, concurrency=4
        ) as manager:
            manager.save(1)
            manager.wait()
            stores[0].fail("put", StorageUnavailableError("503"), key="shard-00000-of-00001-0005")
            manager.save(2)
            with pytest.raises(SaveFailedError):
                manager.wait()
            manager.save(3)
            manager.wait()
            restored = manager.restore_latest()
            assert restored is not None
            return restored.step

    assert within_a_minute(fail_and_go_on) == 3


def test_many_transfers_at_once_through_one_buffer(made: list[int]) -> None:
    """Eight writers, each with 16 threads, then eight readers and eight writers, and memory for one shard in all."""
    specs = [TensorSpec("a", "float32", (90_000,)), TensorSpec("b", "uint8", (5, 70_000)), TensorSpec("c", "bool", ())]
    arrays = arrays_for(specs)
    pool = BufferPool(SHARD_BYTES, SHARD_BYTES)
    plan = plan_shards(specs, worker=0, world_size=1, shard_bytes=SHARD_BYTES)

    def write(store: DictStore) -> None:
        written = write_shards(store, FOLDER, plan, ArraySource(specs, arrays), pool, streams=Streams(16, fixed=16))
        tensors = [TensorRecord(name=spec.name, dtype=spec.dtype, shape=spec.shape, slices=()) for spec in specs]
        manifests[id(store)] = make_manifest(FOLDER, 1, tensors, [written])

    def read(store: DictStore) -> None:
        target = ArrayTarget(manifests[id(store)])
        read_tensors(store, FOLDER, target.manifest, map(Wanted, range(3)), target, pool, streams=Streams(16, fixed=16))
        assert all(same_bits(target.arrays[spec.name], array) for spec, array in zip(specs, arrays, strict=True))
        done.append(store)

    def all_of_it() -> None:
        for work in ([(write, store) for store in stores], [(read, s) for s in stores] + [(write, s) for s in others]):
            threads = [threading.Thread(target=do, args=(store,), daemon=True) for do, store in work]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    manifests: dict[int, Manifest] = {}
    done: list[DictStore] = []
    stores, others = [DictStore() for _ in range(8)], [DictStore() for _ in range(8)]
    within_a_minute(all_of_it)
    assert len(done) == len(stores)
    assert len(manifests) == len(stores) + len(others)
    assert made == [SHARD_BYTES]
    assert all_free(pool)
