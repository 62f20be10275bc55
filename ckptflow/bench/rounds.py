"""What one process does in a round: a save and a restore through our own path, and the same by the raw client."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from statistics import median
from typing import Literal, TypeVar

import msgspec

from ckptflow.bench.folder import finished
from ckptflow.bench.grid import TENSOR_BYTES, Setting
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
BenchPhase = Literal["begin", "save", "restore", "raw save", "raw restore", "end"]


class Taken(msgspec.Struct, frozen=True):
    """What a phase took: of ours also CPU, the time of each request for a shard, and how many may now be under way."""

    seconds: float
    cpu_s: float = 0.0
    request_s: list[float] = []
    streams: int = 0


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
    """One process's part: tensors of its own, and a folder of its own for each round.

    `do` is called with the phases of a round: "begin", the four that are measured in any order that reads what was
    written, and "end". What a setting's streams have found in one round they begin with in the next, as a manager's do.
    """

    def __init__(self, store: Store, size_bytes: int, worker: int = 0) -> None:
        self._store = store
        self._timed_store = _Timed(store)
        self._raw: RawClient = raw_client(store)
        self._state = RandomState(size_bytes // TENSOR_BYTES)
        self._target = ReusedMemory()
        self._held = Held(1 + worker, "bench", "bench")
        self._number = 0
        self._streams: dict[Setting, tuple[Streams, Streams]] = {}
        self._round: _Round | None = None

    @property
    def client(self) -> str:
        """The raw client's name."""
        return self._raw.name

    @property
    def size_bytes(self) -> int:
        return self._state.size_bytes

    def do(self, phase: BenchPhase, setting: Setting) -> Taken:
        """One phase of a round of this setting. "end" is allowed at any time, also after an error."""
        if phase == "begin":
            self._round = self._begin(setting)
            return Taken(0.0)
        now = self._round
        if now is None:
            return Taken(0.0)
        if phase == "end":
            self._round = None
            now.pool.close()
            self._store.delete([entry.key for entry in self._store.list(f"{now.folder}/")])
            return Taken(0.0)
        writing, reading = self._streams[setting]
        if phase == "save":
            return self._timed(lambda: self._save(now, writing), writing)
        if phase == "restore":
            return self._timed(lambda: self._restore(now, reading), reading)
        do, doing = (self._raw.put, "write") if phase == "raw save" else (self._raw.get, "read")
        return Taken(_each(setting.given_concurrency or writing.most, now, do, doing))

    def _begin(self, setting: Setting) -> _Round:
        self._number += 1
        self._state.next_round()
        folder = Folder(self._number, self._held.number)
        # The raw client makes no folders; and how long this takes says how far away the storage is, as a claim's does.
        finished(lambda: self._store.put(f"{folder}/begin", memoryview(b"\n")))
        pool = BufferPool(setting.memory_bytes, setting.shard_bytes)
        _fill(pool, self._state)
        if setting not in self._streams:
            concurrency = setting.given_concurrency
            self._streams[setting] = (
                streams_for(self._store, pool, concurrency, is_for_reading=False),
                streams_for(self._store, pool, concurrency),
            )
        at_once = self._streams[setting][0].by_turns  # as a manager's saves are planned, whatever was given
        plan = plan_shards(self._state.specs, worker=0, world_size=1, shard_bytes=setting.shard_bytes, at_once=at_once)
        return _Round(folder, plan, pool)

    def _timed(self, do: Callable[[], object], streams: Streams) -> Taken:
        request_s = self._timed_store.taken_s = []
        start_s, cpu_s = time.perf_counter(), time.process_time()
        do()
        return Taken(time.perf_counter() - start_s, time.process_time() - cpu_s, request_s.copy(), streams.count)

    def _save(self, now: _Round, streams: Streams) -> None:
        written = write_shards(self._timed_store, now.folder, now.plan, self._state, now.pool, streams=streams)
        receipt = Receipt(
            folder=str(now.folder),
            writer_id=self._held.writer_id,
            worker=0,
            world_size=1,
            shards=written.shards,
            slices=written.slices,
        )
        tensors = tuple(
            TensorRecord(name=spec.name, dtype=spec.dtype, shape=spec.shape, slices=()) for spec in self._state.specs
        )
        draft = Draft(folder=now.folder, world_size=1, tensors=tensors)
        now.manifest = assemble(draft, [receipt], Start(self._held), self._held, self._store.url)

    def _restore(self, now: _Round, streams: Streams) -> None:
        assert now.manifest is not None, "nothing was saved"
        wanted = [Wanted(index) for index in range(len(now.manifest.tensors))]
        read_tensors(self._timed_store, now.folder, now.manifest, wanted, self._target, now.pool, streams=streams)


@dataclass(slots=True)
class _Round:
    """What its phases share."""

    folder: Folder
    plan: WorkerPlan
    pool: BufferPool
    manifest: Manifest | None = None


def _fill(pool: BufferPool, state: RandomState) -> None:
    """Takes the memory before the clock runs, as a job that has saved once has it; what the raw client sends is in it:
    bytes that no storage can compress, other ones in each buffer."""
    buffers, numbers = [pool.acquire() for _ in range(pool.count)], itertools.count()
    for buffer in buffers:
        for begin in range(0, buffer.array.size, TENSOR_BYTES):
            part = buffer.array[begin : begin + TENSOR_BYTES]
            part[:] = state.data(next(numbers))[: part.size]
    for buffer in buffers:
        pool.release(buffer)


def _each(count: int, now: _Round, do: Callable[[str, memoryview], None], doing: str) -> float:
    """The seconds that it takes to do it for each shard, `count` at once, from pooled memory.

    What may succeed is tried again, as ours is: one lost connection is not the end of a measurement.
    """
    # Whole pages, as direct writes need them; the odd bytes of the header's end are nothing to a network.
    sizes = [shard.size_bytes // PAGE_BYTES * PAGE_BYTES for shard in now.plan.shards]
    retries = Retries()

    def once(name: str, view: memoryview) -> None:
        try:
            do(name, view)
        except Exception as error:  # whatever a client raises
            raise from_client_error(error, doing, f"the raw client: {name}") from None

    def one(number: int) -> None:
        with now.pool.buffer() as buffer:
            buffer.view[:8] = number.to_bytes(8)  # no two objects alike, also of one buffer
            retries.run(lambda: once(f"{now.folder}/raw-{number}", buffer.view[: sizes[number]]))

    start_s = time.perf_counter()
    with ThreadPoolExecutor(count) as threads:
        list(threads.map(one, range(len(sizes))))
    return time.perf_counter() - start_s
