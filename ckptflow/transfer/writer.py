"""A snapshot's slices into shards: packed, checksummed and sent, each reference dropped as soon as it is packed.

A shard that an earlier checkpoint holds is copied from there inside the storage, and not sent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import crc32c
import msgspec
import xxhash

from ckptflow.format import boxes, dtypes
from ckptflow.format.layout import Folder, with_tag
from ckptflow.format.manifest import ReceiptSlice, ShardRecord
from ckptflow.format.shard import crc32c_combine
from ckptflow.format.spec import Bytes1D, TensorSource
from ckptflow.spans import span
from ckptflow.storage.store import Store
from ckptflow.threads import at_once
from ckptflow.transfer.buffers import Buffer, BufferPool
from ckptflow.transfer.copies import Copies
from ckptflow.transfer.packing import PlannedShard, PlannedSlice
from ckptflow.transfer.pipeline import run
from ckptflow.transfer.plan import WorkerPlan
from ckptflow.transfer.sources import NO_SOURCES, Earlier, Sources
from ckptflow.transfer.streams import Streams, Turns, streams_for

FETCH_BYTES = 4 * 2**20  # asked of another process at once
_FETCHES = 4  # at once: each holds so much beside its buffer, and asks a server that trains
_COPIES = 64  # asked of an object store at once, where as many streams may be: they take no memory here
CHUNK_BYTES = 2**19  # copied and then checksummed while still in the cache

Look = Callable[[PlannedSlice, Bytes1D], None]


@dataclass(frozen=True, slots=True)
class WrittenShards:
    """What one worker has made durable, for its receipt."""

    shards: tuple[ShardRecord, ...]
    slices: tuple[ReceiptSlice, ...]

    @property
    def size_bytes(self) -> int:
        return sum(shard.size_bytes for shard in self.shards)

    @property
    def copied_bytes(self) -> int:
        """Of these, what was copied inside the storage."""
        return sum(shard.size_bytes for shard in self.shards if shard.copied_from is not None)


class _Written(NamedTuple):
    """One shard, and the crc32c of each of its slices, in the file's order."""

    record: ShardRecord
    checksums: Sequence[int]


def write_shards(
    store: Store,
    folder: Folder,
    plan: WorkerPlan,
    source: TensorSource,
    pool: BufferPool,
    *,
    tag: str | None = None,
    streams: Streams | None = None,
    earlier: Sources = NO_SOURCES,
    look: Look | None = None,
) -> WrittenShards:
    """Makes this worker's shards durable in `folder` and says what is in them; their names end with `tag`.

    Tensors that this worker writes nothing of are released first, every other as soon as its last slice is packed. At
    most as many shards as `streams` says are being sent at once, others are packed ahead, one on a disk, and no more
    than the pool has buffers for. The first error stops what is being sent and is raised unchanged once no transfer is
    under way; what has been written stays where it is.

    Shards that `earlier` proves to be the same are copied from there, beside the others: those that cannot be are sent.
    Still shards say by what a later save may copy them.

    `look` is shown each slice that is packed, by the threads that pack: what is copied without being packed is not.
    """
    for index in plan.unused:
        source.release(index)
    packer = _Packer(source, plan, look)
    writing = _Writing(store, folder, plan, tag, earlier, Copies(store), packer, pool, streams)
    proved = [number for number, shard in enumerate(plan.shards) if shard.name in earlier.proved]
    others = [number for number, shard in enumerate(plan.shards) if shard.name not in earlier.proved]
    if proved:
        copied, sent = at_once(2, lambda do: do(), [partial(writing.copy, proved), partial(writing.send, others)])
        left = [number for number in proved if number not in copied]
        found = {**copied, **sent, **(writing.send(left) if left else {})}
    else:  # in the calling thread, which may be interrupted
        found = writing.send(others)
    return WrittenShards(
        shards=tuple(found[number].record for number in range(len(plan.shards))),
        slices=tuple(
            ReceiptSlice(
                tensor=piece.name, shard=number, offset=piece.offset, start=piece.start, shape=piece.shape, crc32c=value
            )
            for number, shard in enumerate(plan.shards)
            for piece, value in zip(shard.slices, found[number].checksums, strict=True)
        ),
    )


@dataclass(frozen=True, slots=True)
class _Writing:
    """The shards of one save, on their way. What was made of them is returned by their numbers in the plan."""

    store: Store
    folder: Folder
    plan: WorkerPlan
    tag: str | None
    sources: Sources
    copies: Copies
    packer: _Packer
    pool: BufferPool
    streams: Streams | None

    def copy(self, numbers: Sequence[int]) -> dict[int, _Written]:
        """Copies the shards that are proved to be the same without reading them, those that can be."""

        def copy(number: int) -> _Written | None:
            shard = self.plan.shards[number]
            known = self.sources.proved[shard.name]
            record = self._copied(known, msgspec.structs.replace(known.record, name=_named(shard, self.tag)))
            if record is None:
                return None
            self.packer.pass_over(shard)
            return _Written(record, known.checksums)

        most = _COPIES if self.store.is_object_store else 1
        with span("copy", shards=len(numbers)):
            made = at_once(min(most, self._turns().streams.most), copy, numbers)
        return {number: written for number, written in zip(numbers, made, strict=True) if written is not None}

    def send(self, numbers: Sequence[int]) -> dict[int, _Written]:
        """Packs these shards, and sends them, or copies what then turns out to be the same."""
        found: dict[int, _Written] = {}
        turns = self._turns()

        def send(turn: int, buffer: Buffer) -> None:
            found[numbers[turn]] = self._send(self.plan.shards[numbers[turn]], buffer, turns)

        # One more thread than that, so that a shard is packed and waiting whenever a transfer ends.
        run(self.pool, len(numbers), send, turns=turns, threads=turns.streams.most + 1)
        return found

    def _send(self, shard: PlannedShard, buffer: Buffer, turns: Turns) -> _Written:
        name, view = _named(shard, self.tag), buffer.view[: shard.size_bytes]
        with span("pack", shard=name, size_bytes=shard.size_bytes):
            checksums, checksum = self.packer.pack(shard, buffer)
        record = ShardRecord(name=name, size_bytes=shard.size_bytes, crc32c=checksum)
        if shard.is_still:
            content = xxhash.xxh3_128_hexdigest(view)
            record = msgspec.structs.replace(record, content=content)
            same = self.sources.by_content.get((shard.size_bytes, content))
            # What was to be copied without reading it could not be: it is not asked for again.
            if same is not None and shard.name not in self.sources.proved:
                copied = self._copied(same, record)
                if copied is not None:
                    return _Written(copied, checksums)

        def put() -> str | None:
            with span("write", shard=name, size_bytes=shard.size_bytes):
                return self.store.put(self.folder.key(name), view)

        version = turns.transfer(shard.size_bytes, put)
        return _Written(msgspec.structs.replace(record, version=version if record.content else None), checksums)

    def _copied(self, known: Earlier, record: ShardRecord) -> ShardRecord | None:
        """The record of a copy of that shard under this name; None if there is none, and it must be written."""
        if known.record.version is None:
            return None
        version = self.copies.copy(known.key, self.folder.key(record.name), known.record.version)
        return None if version is None else msgspec.structs.replace(record, version=version, copied_from=known.key)

    def _turns(self) -> Turns:
        return Turns(self.streams or streams_for(self.store, self.pool, is_for_reading=False))


def _named(shard: PlannedShard, tag: str | None) -> str:
    return shard.name if tag is None else with_tag(shard.name, tag)


def replica_digests(source: TensorSource, indices: Iterable[int]) -> dict[str, int]:
    """The crc32c of each of these tensors as this worker holds it, by name. Releases nothing."""
    return {source.specs[index].name: crc32c.crc32c(source.data(index).data) for index in indices}


class _Packer:
    """Fills buffers with shards. Thread-safe; for one save."""

    def __init__(self, source: TensorSource, plan: WorkerPlan, look: Look | None) -> None:
        self._source = source
        self._look = look
        self._parts_left = dict(plan.part_counts)
        self._lock = threading.Lock()
        self._packing = threading.Lock()
        self._fetching = threading.Semaphore(_FETCHES)

    def pack(self, shard: PlannedShard, buffer: Buffer) -> tuple[list[int], int]:
        """Copies header and slices into the buffer; returns the crc32c of each slice, and of the whole file.

        One at a time, or a few where it is pulled from another process: one thread packs faster than a storage takes
        it, and two would pack together and then write together, with the disk idle in between. Of small slices they
        would also take three times the CPU, passing the interpreter's lock to and fro.
        """
        is_fetched = any(self._source.is_fetched(piece.tensor) for piece in shard.slices[:1])
        with self._fetching if is_fetched else self._packing:
            return self._pack(shard, buffer)

    def _pack(self, shard: PlannedShard, buffer: Buffer) -> tuple[list[int], int]:
        staged, view, source = buffer.array, buffer.view, self._source
        if shard.size_bytes > staged.size:
            raise ValueError(f"{shard.name} of {shard.size_bytes:,} bytes is longer than a buffer of {staged.size:,}")
        run_begin = 0  # from here on, the file's checksum does not yet cover what is packed
        view[: len(shard.header)] = shard.header
        checksum, checksums = 0, []
        for piece in shard.slices:
            offset, end = piece.offset, piece.end
            size = end - offset
            value = _take(source, piece, staged[offset:end])  # keeps nothing of the source's memory
            self._packed(piece.tensor)
            checksums.append(value)
            if self._look is not None:
                self._look(piece, staged[offset:end])
            if size > CHUNK_BYTES:  # else a second pass is cheaper than combining
                checksum = crc32c.crc32c(view[run_begin:offset], checksum)
                checksum = crc32c_combine(checksum, value, size)
                run_begin = end
        return checksums, crc32c.crc32c(view[run_begin : shard.size_bytes], checksum)

    def pass_over(self, shard: PlannedShard) -> None:
        """Nothing of it is to be packed."""
        for piece in shard.slices:
            self._packed(piece.tensor)

    def _packed(self, tensor: int) -> None:
        if tensor in self._parts_left:
            with self._lock:
                self._parts_left[tensor] -= 1
                if self._parts_left[tensor]:
                    return
        self._source.release(tensor)


def _take(source: TensorSource, piece: PlannedSlice, into: Bytes1D) -> int:
    """Copies a slice out of what is held; returns its crc32c."""
    if source.is_fetched(piece.tensor):
        return _fetch_and_checksum(into, source, piece)
    data = source.data(piece.tensor)
    if piece.region is None:
        return _copy_and_checksum(into, data[piece.source_begin : piece.source_end])
    _copy_region(into, data, piece)
    return crc32c.crc32c(into.data)


def _copy_and_checksum(into: Bytes1D, data: Bytes1D) -> int:
    if into.size <= CHUNK_BYTES:
        into[:] = data
        return crc32c.crc32c(into.data)
    value = 0
    for begin in range(0, into.size, CHUNK_BYTES):
        chunk = into[begin : begin + CHUNK_BYTES]
        chunk[:] = data[begin : begin + CHUNK_BYTES]
        value = crc32c.crc32c(chunk.data, value)
    return value


def _fetch_and_checksum(into: Bytes1D, source: TensorSource, piece: PlannedSlice) -> int:
    """Bit by bit, so that no more than that is ever here beside the buffer."""
    value, item = 0, piece.item_size_bytes
    step = max(1, FETCH_BYTES // item)
    for begin in range(0, into.size // item, step):
        end = min(begin + step, into.size // item)
        at = begin * item
        for start, shape in boxes.runs(piece.shape, begin, end):
            origin = tuple(a + b for a, b in zip(piece.source_start, start, strict=True))
            data = source.fetch(piece.tensor, (origin, shape))
            value = crc32c.crc32c(data.data, value)
            into[at : at + data.size] = data
            at += data.size
    return value


def _copy_region(into: Bytes1D, data: Bytes1D, piece: PlannedSlice) -> None:
    """Copies a box that is no single run of bytes, element by element, whatever their dtype."""
    held = dtypes.as_words(data, piece.item_size_bytes).reshape(piece.held_shape)
    dtypes.as_words(into, piece.item_size_bytes).reshape(piece.shape)[...] = held[piece.region]
