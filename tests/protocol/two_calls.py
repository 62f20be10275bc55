"""Two workers and one step that is saved twice: the first call is given up while a slow worker's job lives on.

The coordinator is the real one; worker 1's two jobs are processes of their own, so that the late one can overtake.
"""

from __future__ import annotations

import crc32c

from ckptflow.commit.assembly import Draft
from ckptflow.commit.catalog import Summaries
from ckptflow.commit.coordinator import Coordinator
from ckptflow.commit.lineage import Held
from ckptflow.commit.resume import Start
from ckptflow.commit.retention import KeepLast
from ckptflow.errors import SaveFailedError
from ckptflow.format.layout import Folder, claim_key, receipt_name, shard_name
from ckptflow.format.manifest import Claim, Receipt, ReceiptSlice, ShardRecord, TensorRecord, encode
from ckptflow.storage.store import Store
from tests.protocol.explorer import Budget, Explorer, Report, State, Storage, ViolationError, search
from tests.protocol.invariants import manifests_in
from tests.protocol.process import Process, YieldingStore

HELD = Held(1, "run", "writer")
CLAIM = encode(
    Claim(number=1, run_id="run", writer_id="writer", reason="start", host="host", pid=1, created_at="2026-01-01")
)
SECOND_CALL_BEGUN = "second call"


def data_of(call: int, worker: int) -> bytes:
    return f"call {call}, worker {worker}".encode()


def write_part(store: Store, call: int, worker: int) -> Receipt:
    """One worker's shard, half of the one tensor."""
    folder, data = Folder(500, 1, call), data_of(call, worker)
    name, checksum = shard_name(worker, 2, 0, HELD.tag), crc32c.crc32c(data)
    store.put(folder.key(name), memoryview(data))
    piece = ReceiptSlice(
        tensor="value", shard=0, offset=0, start=(worker * len(data),), shape=(len(data),), crc32c=checksum
    )
    return Receipt(
        folder=str(folder),
        writer_id=HELD.writer_id,
        worker=worker,
        world_size=2,
        shards=(ShardRecord(name=name, size_bytes=len(data), crc32c=checksum),),
        slices=(piece,),
    )


def chief(process: Process) -> None:
    store = YieldingStore(process)
    coordinator = Coordinator(store, Start(HELD), Summaries(store), [KeepLast(1)], commit_timeout_s=0.06)
    tensor = TensorRecord(name="value", dtype="uint8", shape=(2 * len(data_of(1, 0)),), slices=())
    for call in (1, 2):
        if call == 2:
            store.put(SECOND_CALL_BEGUN, memoryview(b"1"))
        own = write_part(store, call, 0)
        try:
            coordinator.commit(Draft(folder=Folder(500, 1, call), world_size=2, tensors=(tensor,)), own)
        except SaveFailedError:
            continue
        coordinator.prune()
        return


def job(call: int) -> object:
    """Worker 1's background job of one call."""

    def program(process: Process) -> None:
        store = YieldingStore(process)
        if call == 2:
            process.call("wait", SECOND_CALL_BEGUN)
        receipt = write_part(store, call, 1)
        store.put(Folder(500, 1, call).key(receipt_name(1, 2, HELD.tag)), memoryview(encode(receipt)))

    return program


def explore_two_calls() -> Report:
    storage = Storage()
    explorer = Explorer(storage, lambda before, after, by: after)
    programs = [chief, job(1), job(2)]
    processes = [Process(i, name, program) for i, (name, program) in enumerate(zip(NAMES, programs, strict=True))]  # type: ignore[arg-type]
    nodes = tuple(process.root for process in processes)
    start = State(storage.intern({claim_key(1): CLAIM}), nodes, frozenset(), frozenset(), frozenset(), Budget())

    def check(before: State | None, after: State, by: int) -> None:
        content = storage.contents[after.content]
        for folder, manifest in manifests_in(content).items():
            if manifest is None:
                raise ViolationError(f"mixed: the manifest of {folder} cannot be read")
            parts = [content.get(folder.key(shard.name), b"") for shard in manifest.shards]
            sound = [crc32c.crc32c(part) == shard.crc32c for part, shard in zip(parts, manifest.shards, strict=True)]
            if len({part.partition(b",")[0] for part in parts}) != 1 or not all(sound):
                raise ViolationError(f"mixed: {folder} holds {parts}")

    return search(explorer, start, check, max_states=100_000)


NAMES = ("chief", "worker 1, call 1", "worker 1, call 2")
