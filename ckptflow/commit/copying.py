"""A committed checkpoint from one root to another: shards first, each verified at both ends, its manifest last."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import crc32c

from ckptflow.commit.catalog import Summaries, list_root, read_manifest, read_sealed
from ckptflow.commit.lineage import find_run_id
from ckptflow.errors import (
    CheckpointGoneError,
    CorruptCheckpointError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageError,
    UsageError,
)
from ckptflow.format.layout import Folder
from ckptflow.format.manifest import MAX_MANIFEST_BYTES, ShardRecord
from ckptflow.storage.again import agreed, read_record
from ckptflow.storage.store import Store
from ckptflow.storage.wrappers import StoreWrapper
from ckptflow.transfer.bandwidth import Bandwidth
from ckptflow.transfer.buffers import Buffer, BufferPool
from ckptflow.transfer.pipeline import run
from ckptflow.transfer.reader import check_shards
from ckptflow.transfer.streams import Turns, streams_for

_MEMORY_BYTES = 512 * 2**20
_MISSING = "is missing"
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Copied:
    """One checkpoint that is now at the destination; `sent_bytes` were not there before."""

    folder: Folder
    size_bytes: int
    sent_bytes: int


class CopySource(StoreWrapper):
    """What is copied from: knows what it `refused` last, which the destination's errors are told from by."""

    refused: StorageError | None = None

    def run(self, verb: str, key: str, call: Callable[[], _Result]) -> _Result:
        try:
            return call()
        except StorageError as error:
            self.refused = error
            raise


def check_destination(source: Store, target: Store, *, is_elsewhere: bool = False) -> None:
    """Raises `UsageError` where a copy into `target` would mix two runs, or get in the way of a job.

    `is_elsewhere`: equal URLs may be two places, such as a bucket at two endpoints. If they are one all the same,
    nothing is changed: no copy replaces a manifest, or a shard that is as its manifest says.

    A claim there says that a job has started: what it builds on is its own, and a folder from elsewhere among its
    folders could be taken for newer, or for older, than it is.
    """
    if not is_elsewhere and f"{target.url}/".startswith(f"{source.url}/"):
        raise UsageError(f"{target.url} is, or is inside of, what is copied: copy into a root of its own")
    listing = list_root(target)
    if listing.claims:
        raise UsageError(f"{target.url}: a job has started here: copy into a root of its own")
    if not listing.folders:
        return
    theirs, ours = (
        find_run_id(store, each, Summaries(store)) for store, each in ((target, listing), (source, list_root(source)))
    )
    if theirs is not None and theirs != ours:
        raise UsageError(f"{target.url}: another run's checkpoints are here: copy into a root of its own")


def copy_checkpoint(
    source: Store,
    target: Store,
    folder: Folder,
    on_bytes: Callable[[int], None],
    *,
    concurrency: int | None = None,
    bandwidth: Bandwidth | None = None,
) -> Copied:
    """Copies one, or the rest of one that was cut off. Nothing counts at the destination before all of it is right.

    `concurrency`: shards at once; default: as many as pay. `bandwidth` limits the bytes that are sent.

    Raises `CorruptCheckpointError` for what is damaged at the source, `CheckpointGoneError` where it was pruned
    meanwhile, `StorageError` where the source refuses or the destination does not give back what was written, and
    `UsageError` where it holds another checkpoint of that name. Shards that were sent by then stay, and do not count:
    another copy of the same may be about to commit them.
    """
    try:
        manifest, sealed = read_sealed(source, folder)
    except ObjectNotFoundError as error:
        raise CheckpointGoneError(f"{source.url}/{folder} is gone: it was pruned; pin what must stay") from error
    try:
        check_shards(source, folder, manifest)  # before memory is taken on the manifest's word
    except CorruptCheckpointError as error:
        raise _missing(source, folder, error) from error
    is_committed = _has_manifest(target, folder, sealed)
    there = {entry.key: entry.size_bytes for entry in target.list(f"{folder}/")}
    largest = max((shard.size_bytes for shard in manifest.shards), default=1)
    sent: list[int] = []

    def copy(turns: Turns, number: int, buffer: Buffer) -> None:
        shard = manifest.shards[number]
        key = folder.key(shard.name)

        def bring() -> None:
            if there.get(key) != shard.size_bytes or _damage(target, key, shard, buffer) is not None:
                _read(source, key, shard, buffer)
                if bandwidth is not None:
                    bandwidth.wait(shard.size_bytes, lambda: turns.is_stopped)
                _send(target, key, shard, buffer)
                sent.append(shard.size_bytes)

        turns.transfer(shard.size_bytes, bring)
        on_bytes(shard.size_bytes)

    try:
        with closing(BufferPool(max(_MEMORY_BYTES, largest + 2**16), largest)) as pool:
            remote = source if source.is_object_store else target
            streams = streams_for(
                remote, pool, concurrency, is_for_reading=False
            )  # a buffer is one request, also of the source
            turns = Turns(streams)
            run(pool, len(manifest.shards), partial(copy, turns), turns=turns, threads=turns.streams.most)
    except ObjectNotFoundError as error:
        raise _missing(source, folder, error) from error
    if not is_committed:
        try:
            target.create(folder.manifest_key, memoryview(sealed))
        except ObjectExistsError:  # another copy of the same was quicker
            _has_manifest(target, folder, sealed)
    return Copied(folder, manifest.size_bytes, sum(sent))


def _missing(source: Store, folder: Folder, error: Exception) -> CheckpointGoneError | CorruptCheckpointError:
    """A prune deletes the manifest first: where that is still there, a shard is missing."""
    try:
        read_manifest(source, folder)
    except ObjectNotFoundError:
        return CheckpointGoneError(f"{source.url}/{folder} was pruned while it was copied; pin what must stay")
    return CorruptCheckpointError(f"{error}; verify the checkpoint, and copy one that is not damaged")


def _has_manifest(target: Store, folder: Folder, sealed: bytes) -> bool:
    """Whether the manifest is at the destination; raises where another one is."""

    def check(there: bytes) -> bool:
        if there != sealed:
            raise CorruptCheckpointError("not the manifest that was copied")
        return True

    try:
        return read_record(target, folder.manifest_key, MAX_MANIFEST_BYTES, check, may_be_missing=True)
    except ObjectNotFoundError:
        return False
    except CorruptCheckpointError as error:
        raise UsageError(
            f"{target.url}/{folder}: another checkpoint of this name is here; copy into a root of its own"
        ) from error


def _read(source: Store, key: str, shard: ShardRecord, buffer: Buffer) -> None:
    why = _damage(source, key, shard, buffer)
    if why == _MISSING:
        raise ObjectNotFoundError(f"{source.url}/{key} {why}")
    if why is not None:
        raise CorruptCheckpointError(
            f"{source.url}/{key} {why}; verify the checkpoint, and copy one that is not damaged"
        )


def _send(target: Store, key: str, shard: ShardRecord, buffer: Buffer) -> None:
    target.put(key, buffer.view[: shard.size_bytes])
    if (why := _damage(target, key, shard, buffer)) is not None:
        raise StorageError(f"{target.url}/{key} {why}, right after it was written: this storage cannot be trusted")


def _damage(store: Store, key: str, shard: ShardRecord, buffer: Buffer) -> str | None:
    """What is wrong with a shard, in words, and was so twice; it is in the buffer afterwards."""
    view = buffer.view[: shard.size_bytes]

    def ask() -> str | None:
        try:
            count = store.get(key, view)
        except ObjectNotFoundError:
            return _MISSING
        if count < shard.size_bytes:
            return f"ends at byte {count:,}, the manifest says that it has {shard.size_bytes:,}"
        checksum = crc32c.crc32c(view)
        return None if checksum == shard.crc32c else f"has crc32c {checksum:08x}, the manifest says {shard.crc32c:08x}"

    return agreed(store, key, ask, lambda problem: problem is None)
