"""A root that is held, and receipts of a save by three workers, as they would report."""

from __future__ import annotations

import crc32c

from ckptflow.commit.assembly import Draft
from ckptflow.commit.catalog import Summaries
from ckptflow.commit.coordinator import Coordinator
from ckptflow.commit.lineage import Held
from ckptflow.commit.resume import Start
from ckptflow.commit.retention import KeepLast
from ckptflow.format.layout import Folder, claim_key, receipt_name, shard_name
from ckptflow.format.manifest import (
    Claim,
    Receipt,
    ReceiptSlice,
    ShardRecord,
    TensorRecord,
    encode,
)
from ckptflow.storage.store import Store
from ckptflow.testing import MemoryStore

HELD = Held(7, "run", "writer")
FOLDER = Folder(500, 7)
WORLD_SIZE = 3
PART = b"12345678"


def claimed() -> MemoryStore:
    """A root that `HELD` holds."""
    claim = Claim(
        number=HELD.number, run_id=HELD.run_id, writer_id=HELD.writer_id, reason="start", host="", pid=1, created_at=""
    )
    return MemoryStore({claim_key(HELD.number): encode(claim)})


def coordinator(store: Store, *, timeout_s: float = 5.0) -> Coordinator:
    return Coordinator(store, Start(HELD), Summaries(store), [KeepLast(1)], commit_timeout_s=timeout_s)


def receipt(worker: int, *, folder: Folder = FOLDER, start: int | None = None, tensor: str = "value") -> Receipt:
    """Worker `worker` has written its third of the one tensor."""
    checksum = crc32c.crc32c(PART)
    first = worker * len(PART) if start is None else start
    return Receipt(
        folder=str(folder),
        writer_id=HELD.writer_id,
        worker=worker,
        world_size=WORLD_SIZE,
        shards=(ShardRecord(name=shard_name(worker, WORLD_SIZE, 0), size_bytes=len(PART), crc32c=checksum),),
        slices=(ReceiptSlice(tensor=tensor, shard=0, offset=0, start=(first,), shape=(len(PART),), crc32c=checksum),),
    )


def draft(folder: Folder = FOLDER) -> Draft:
    tensor = TensorRecord(name="value", dtype="uint8", shape=(WORLD_SIZE * len(PART),), slices=())
    return Draft(folder=folder, world_size=WORLD_SIZE, tensors=(tensor,))


def report(store: MemoryStore, *receipts: Receipt) -> None:
    for r in receipts:
        store.objects[f"{FOLDER}/{receipt_name(r.worker, WORLD_SIZE, HELD.tag)}"] = encode(r)
