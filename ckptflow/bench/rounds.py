"""Rounds of saves and restores through our own path and through the raw client, in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from statistics import median
from typing import TypeVar

from ckptflow.bench.folder import finished
from ckptflow.bench.grid import TENSOR_BYTES, Point, Rates, Setting
from ckptflow.bench.state import RandomState, ReusedMemory
from ckptflow.commit.assembly import Draft, assemble
from ckptflow.commit.lineage import Held
from ckptflow.commit.resume import Start
from ckptflow.format.layout import Folder
from ckptflow.format.manifest import Manifest, Receipt, TensorRecord
from ckptflow.format.spec import Wanted
from ckptflow.storage.faults import from_client_error
from ckptflow.storage.local import PAGE_BYTES
from ckptflow.storage.raw import RawClient, raw_client
from ckptflow.storage.retry import Retries
from ckptflow.storage.store import Store
from ckptflow.storage.wrappers import StoreWrapper
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.plan import WorkerPlan, plan_shards
from ckptflow.transfer.reader import read_tensors
from ckptflow.transfer.streams import Streams, streams_for
from ckptflow.transfer.writer import write_shards

_SMALL = bytes(2048)  # about a receipt
_LATENCY_ROUNDS = 10
_Result = TypeVar("_Result")
_HELD = Held(1, "bench", "bench")


def latencies(store: Store) -> dict[str, float]:
    """The median time, in seconds, of what a commit is made of: creating, reading and listing something small."""
    taken: dict[str, list[float]] = {"create": [], "get": [], "list": []}
    buffer = memoryview(bytearray(len(_SMALL)))
    for number in range(_LATENCY_ROUNDS):
        key = f"small/{number}"
        calls: dict[str, Callable[[], object]] = {
            "create": lambda key=key: store.create(key, memoryview(_SMALL)),  # type: ignore[misc]
            "get": lambda key=key: store.get(key, buffer),  # type: ignore[misc]
            "list": lambda: store.list("small/"),
        }
        for name, call in calls.items():
            taken[name].append(finished(lambda call=call: _seconds(call)))  # type: ignore[misc]
    return {name: median(values) for name, values in taken.items()}


def _seconds(do: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    do()
    return time.perf_counter() - start_s


def save_rate(store: Store, enough_s: float, most_bytes: int) -> float:
    """About how many bytes a second a save takes: one tensor, then as many as that leaves time and room for, sixteen at
    most."""
    state = RandomState(1)
    taken_s = _seconds(lambda: _probe(store, state))
    count = min(16, int(enough_s / taken_s), most_bytes // TENSOR_BYTES)
    if count > 1:
        state = RandomState(count)
        taken_s = _seconds(lambda: _probe(store, state))
    return state.size_bytes / taken_s


def _probe(store: Store, state: RandomState) -> None:
    with closing(BufferPool(4 * (TENSOR_BYTES + 2**17), TENSOR_BYTES + 2**16)) as pool:
        plan = plan_shards(state.specs, worker=0, world_size=1, shard_bytes=pool.buffer_bytes)
        write_shards(store, Folder(0, 1), plan, state, pool, streams=Streams(4, fixed=4))
    store.delete([entry.key for entry in store.list()])


class _Timed(StoreWrapper):
    """`store`, with the seconds noted that each write and each read took, retries and their pauses among them."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.taken_s: list[float] = []

    def run(self, verb: str, key: str, call: Callable[[], _Result]) -> _Result:
        start_s, taken_s = time.perf_counter(), self.taken_s  # one that is not waited for ends in another's time
        result = call()
        if verb in ("put", "get"):
            taken_s.append(time.perf_counter() - start_s)
        return result


class BenchRounds:
    """Measures settings one round after another, so that a storage that gets slower does so for all of them."""

    def __init__(self, store: Store, size_bytes: int) -> None:
        self._store = store
        self._timed_store = _Timed(store)
        self._raw: RawClient = raw_client(store)
        self._state = RandomState(size_bytes // TENSOR_BYTES)
        self._target = ReusedMemory()
        self._number = 0

    @property
    def client(self) -> str:
        """The raw client's name."""
        return self._raw.name

    def run(self, point: Point) -> None:
        """One round of one setting: save and restore through ours and through the raw client; all deleted again.

        Who begins changes from round to round.
        """
        setting = point.setting
        self._number += 1
        self._state.next_round()
        plan = plan_shards(self._state.specs, worker=0, world_size=1, shard_bytes=setting.shard_bytes)
        folder = Folder(self._number, 1)
        turns = [self._ours, self._raw_client]
        with closing(BufferPool(setting.memory_bytes, setting.shard_bytes)) as pool:
            _touch(pool)
            finished(lambda: self._store.put(f"{folder}/begin", memoryview(b"\n")))  # the raw client makes no folders
            for turn in turns if point.rounds % 2 == 0 else reversed(turns):
                turn(folder, plan, pool, point)
        self._store.delete([entry.key for entry in self._store.list(f"{folder}/")])

    def _ours(self, folder: Folder, plan: WorkerPlan, pool: BufferPool, point: Point) -> None:
        manifest: list[Manifest] = []
        self._timed(point.save, lambda: manifest.append(self._save(folder, plan, pool, point.setting)))
        self._timed(point.restore, lambda: self._restore(folder, manifest[0], pool, point.setting))

    def _raw_client(self, folder: Folder, plan: WorkerPlan, pool: BufferPool, point: Point) -> None:
        # Whole pages, as direct writes need them; the odd bytes of the header's end are nothing to a network.
        sizes = [shard.size_bytes // PAGE_BYTES * PAGE_BYTES for shard in plan.shards]
        names = [f"{folder}/raw-{i}" for i in range(len(sizes))]
        put_s = _each(point.setting, pool, names, sizes, self._raw.put, "write")
        get_s = _each(point.setting, pool, names, sizes, self._raw.get, "read")
        point.save.raw.append(sum(sizes) / put_s)
        point.restore.raw.append(sum(sizes) / get_s)

    def _timed(self, rates: Rates, do: Callable[[], object]) -> None:
        self._timed_store.taken_s = rates.request_s
        start_s, cpu_s = time.perf_counter(), time.process_time()
        do()
        size_bytes = self._state.size_bytes
        rates.ours.append(size_bytes / (time.perf_counter() - start_s))
        rates.cpu_s.append((time.process_time() - cpu_s) / size_bytes * 2**30)

    def _save(self, folder: Folder, plan: WorkerPlan, pool: BufferPool, setting: Setting) -> Manifest:
        written = write_shards(
            self._timed_store,
            folder,
            plan,
            self._state,
            pool,
            streams=streams_for(self._store, pool, setting.concurrency, is_for_reading=False),
        )
        receipt = Receipt(
            folder=str(folder),
            writer_id=_HELD.writer_id,
            worker=0,
            world_size=1,
            shards=written.shards,
            slices=written.slices,
        )
        tensors = tuple(
            TensorRecord(name=spec.name, dtype=spec.dtype, shape=spec.shape, slices=()) for spec in self._state.specs
        )
        draft = Draft(folder=folder, world_size=1, tensors=tensors)
        return assemble(draft, [receipt], Start(_HELD), _HELD, self._store.url)

    def _restore(self, folder: Folder, manifest: Manifest, pool: BufferPool, setting: Setting) -> None:
        wanted = [Wanted(index) for index in range(len(manifest.tensors))]
        read_tensors(
            self._timed_store,
            folder,
            manifest,
            wanted,
            self._target,
            pool,
            streams=streams_for(self._store, pool, setting.concurrency),
        )


def _touch(pool: BufferPool) -> None:
    """Takes the memory before the clock runs, as a job that has saved once has it."""
    buffers = [pool.acquire() for _ in range(pool.count)]
    for buffer in buffers:
        buffer.array[::PAGE_BYTES] = 1
    for buffer in buffers:
        pool.release(buffer)


def _each(
    setting: Setting,
    pool: BufferPool,
    names: Sequence[str],
    sizes: Sequence[int],
    do: Callable[[str, memoryview], None],
    doing: str,
) -> float:
    """The seconds that it takes to do it for each name, `concurrency` at once, from pooled memory.

    What may succeed is tried again, as ours is: one lost connection is not the end of a measurement.
    """
    retries = Retries()

    def once(name: str, view: memoryview) -> None:
        try:
            do(name, view)
        except Exception as error:  # whatever a client raises
            raise from_client_error(error, doing, f"the raw client: {name}") from None

    def one(number: int) -> None:
        with pool.buffer() as buffer:
            retries.run(lambda: once(names[number], buffer.view[: sizes[number]]))

    start_s = time.perf_counter()
    with ThreadPoolExecutor(setting.concurrency) as threads:
        list(threads.map(one, range(len(sizes))))
    return time.perf_counter() - start_s
