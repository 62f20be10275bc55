"""A shard that is the same in every checkpoint: copied where it can be, by the real helper, else written anew.

In place of the writer that finds out what has not changed.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

import crc32c
import msgspec

from ckptflow.commit.assembly import Draft
from ckptflow.commit.catalog import read_manifest
from ckptflow.commit.reuse import Reuse
from ckptflow.errors import CorruptCheckpointError, ObjectNotFoundError
from ckptflow.format.layout import parse_folder, parse_tag, shard_name
from ckptflow.format.manifest import Manifest, Receipt, ReceiptSlice, ShardRecord, TensorRecord
from ckptflow.storage.store import Store
from ckptflow.transfer.copies import Copies

STILL = b"still"
_CHECKSUM = crc32c.crc32c(STILL)

Stills = dict[str, ShardRecord]  # by folder: of those that this process has written or restored


def remember_still(stills: Stills, manifest: Manifest) -> None:
    for shard in manifest.shards:
        if shard.version is not None:
            stills[manifest.folder] = shard


def find_still(store: Store, stills: Stills, source: str) -> ShardRecord | None:
    """The record of the shard in `source`, by its manifest where this process did not see it before."""
    folder = parse_folder(source)
    if source not in stills and folder is not None:
        with contextlib.suppress(ObjectNotFoundError, CorruptCheckpointError):
            remember_still(stills, read_manifest(store, folder))
    return stills.get(source)


def add_still(store: Store, stills: Stills, reuse: Reuse, draft: Draft, receipt: Receipt) -> tuple[Draft, Receipt]:
    """Makes the shard durable and says so in the receipt."""
    name = shard_name(0, 1, 1, parse_tag(receipt.shards[0].name))
    key = draft.folder.key(name)
    source = find_still(store, stills, reuse.source) if reuse.source is not None else None
    version = copied_from = None
    if source is not None and source.version is not None:
        copied_from = f"{reuse.source}/{source.name}"
        version = Copies(store).copy(copied_from, key, source.version)
    if version is None:
        copied_from = None
        version = store.put(key, memoryview(STILL))
    record = ShardRecord(
        name=name, size_bytes=len(STILL), crc32c=_CHECKSUM, version=version, content="0" * 32, copied_from=copied_from
    )
    stills[str(draft.folder)] = record
    piece = ReceiptSlice(tensor="still", shard=1, offset=0, start=(0,), shape=(len(STILL),), crc32c=_CHECKSUM)
    tensor = TensorRecord(name="still", dtype="uint8", shape=(len(STILL),), slices=())
    return (
        replace(draft, tensors=(*draft.tensors, tensor), family=reuse.family),
        msgspec.structs.replace(receipt, shards=(*receipt.shards, record), slices=(*receipt.slices, piece)),
    )
