"""Every byte of a checkpoint against its manifest, in bounded memory."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import crc32c
import msgspec

from ckptflow.errors import ObjectNotFoundError
from ckptflow.format import boxes, dtypes
from ckptflow.format.layout import Folder
from ckptflow.format.manifest import Manifest, ShardRecord, SliceRecord, TensorRecord
from ckptflow.format.shard import header_size_bytes, parse_header, slice_key
from ckptflow.storage.again import agreed
from ckptflow.storage.store import Store
from ckptflow.transfer.buffers import Buffer, BufferPool
from ckptflow.transfer.pipeline import run
from ckptflow.transfer.streams import Streams, Turns, streams_for

Sound = dict[str, bytes]  # files that were found sound, by their version: what a manifest says of them
_SHORTER = "became shorter while it was read"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a shard."""

    shard: str
    what: str

    def __str__(self) -> str:
        return f"{self.shard}: {self.what}"


def verify_checkpoint(
    store: Store,
    folder: Folder,
    manifest: Manifest,
    pool: BufferPool,
    streams: Streams | None = None,
    sound: Sound | None = None,
    only: Collection[int] | None = None,
) -> list[Problem]:
    """Reads all of a checkpoint and returns what does not agree with its manifest; an empty list if all does.

    Checks each shard's size, its header, and the crc32c of the whole file and of every slice; a shard in which
    something is wrong is listed and read again, and only what is wrong twice is told. Raises `StorageError` if the
    storage fails: that says nothing about the checkpoint.

    `sound` has what earlier calls with it found sound, and gets what this one does: a file that several checkpoints
    share, as the storage lists them now, and that each says the same of, is read once. With `only`, the numbers of
    some shards, no others are read: of these it is checked that they are there at their size.
    """
    entries = {entry.key: entry for entry in store.list(f"{folder}/")}
    sound = {} if sound is None else sound
    chosen = None if only is None else frozenset(only)
    inside: list[list[tuple[TensorRecord, SliceRecord]]] = [[] for _ in manifest.shards]
    for tensor in manifest.tensors:
        for piece in tensor.slices:
            inside[piece.shard].append((tensor, piece))
    found: list[list[Problem]] = [[] for _ in manifest.shards]

    turns = Turns(streams or streams_for(store, pool))

    def verify(number: int, buffer: Buffer) -> None:
        record = manifest.shards[number]
        key = folder.key(record.name)
        entry = entries.get(key)
        version = entry.version if entry is not None else None
        expected = _digest_of(record, inside[number]) if version is not None else b""
        if version is not None and sound.get(version) == expected:
            return
        listed = [entry.size_bytes if entry is not None else None]

        is_read = chosen is None or number in chosen

        def look() -> tuple[str, ...]:
            size = listed.pop() if listed else _listed_bytes(store, folder, key)
            if not is_read or size != record.size_bytes:
                return _verify_size(record, size)
            return turns.transfer(record.size_bytes, lambda: _verify_shard(store, key, record, inside[number], buffer))

        problems = agreed(store, key, look, lambda problems: not problems)
        found[number] = [Problem(record.name, what) for what in problems]
        if version is not None and is_read and not problems:
            sound[version] = expected

    run(pool, len(manifest.shards), verify, turns=turns, threads=turns.streams.most)
    return [problem for problems in found for problem in problems]


_Slices = Sequence[tuple[TensorRecord, SliceRecord]]


def _digest_of(record: ShardRecord, slices: _Slices) -> bytes:
    """Of all that a manifest says of one file."""
    said = [
        (tensor.name, tensor.dtype, tensor.storage_shape, piece.start, piece.shape, piece.offset, piece.crc32c)
        for tensor, piece in slices
    ]
    return hashlib.blake2b(msgspec.json.encode((record.size_bytes, record.crc32c, said)), digest_size=16).digest()


def _listed_bytes(store: Store, folder: Folder, key: str) -> int | None:
    return next((entry.size_bytes for entry in store.list(f"{folder}/") if entry.key == key), None)


def _verify_size(record: ShardRecord, size_bytes: int | None) -> tuple[str, ...]:
    """What is wrong with one shard, of which the listing said `size_bytes`, in words."""
    if size_bytes is None:
        return ("is missing",)
    if size_bytes != record.size_bytes:
        return (f"has {size_bytes:,} bytes, the manifest says {record.size_bytes:,}",)
    return ()


def _verify_shard(store: Store, key: str, record: ShardRecord, slices: _Slices, buffer: Buffer) -> tuple[str, ...]:
    """What is wrong with one shard that has its size, in words."""
    try:
        found = _verify_header(store, key, record, slices) + _verify_data(store, key, record, slices, buffer)
        return tuple(dict.fromkeys(found))
    except ObjectNotFoundError:
        return ("is missing",)


def _verify_header(store: Store, key: str, record: ShardRecord, slices: _Slices) -> list[str]:
    """The header must name the slices of the manifest, each where the manifest says, and nothing else."""
    prefix = bytearray(8)
    try:
        if store.get(key, memoryview(prefix)) < len(prefix):
            return [_SHORTER]
        head = bytearray(header_size_bytes(bytes(prefix), record.size_bytes))
        if store.get(key, memoryview(head)) < len(head):
            return [_SHORTER]
        entries = parse_header(bytes(head), record.size_bytes)
    except ValueError as error:
        return [str(error)]
    told = {(entry.key, entry.dtype, entry.shape, entry.begin, entry.end) for entry in entries}
    expected = {
        (
            slice_key(tensor.name, tensor.storage_shape, piece.start, piece.shape),
            dtypes.safetensors_name(tensor.dtype),
            dtypes.safetensors_shape(tensor.dtype, piece.shape),
            piece.offset,
            piece.offset + _size_bytes(tensor, piece),
        )
        for tensor, piece in slices
    }
    if told == expected:
        return []
    names = sorted(entry[0] for entry in told ^ expected)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return [f"its header and the manifest differ in {', '.join(dict.fromkeys(names[:5]))}{more}"]


def _verify_data(store: Store, key: str, record: ShardRecord, slices: _Slices, buffer: Buffer) -> list[str]:
    """Streams the file once through the buffer, with a running checksum for the file and for the slice it is in."""
    spans = sorted(
        (
            (piece.offset, piece.offset + _size_bytes(tensor, piece), tensor.name, piece.crc32c)
            for tensor, piece in slices
        ),
    )
    problems: list[str] = []
    position = whole = running = number = 0
    while position < record.size_bytes:
        view = buffer.view[: min(len(buffer.view), record.size_bytes - position)]
        if store.get(key, view, position) < len(view):
            return [*problems, _SHORTER]
        whole = crc32c.crc32c(view, whole)
        end = position + len(view)
        while number < len(spans) and spans[number][0] < end:
            begin, stop, name, expected = spans[number]
            running = crc32c.crc32c(view[max(begin - position, 0) : stop - position], running)
            if stop > end:
                break
            if running != expected:
                problems.append(f"the slice of {name!r} at byte {begin:,} has crc32c {running:08x}, the manifest says "
                                f"{expected:08x}")  # fmt: skip
            running, number = 0, number + 1
        position = end
    if whole != record.crc32c:
        problems.append(f"the file has crc32c {whole:08x}, the manifest says {record.crc32c:08x}")
    return problems


def _size_bytes(tensor: TensorRecord, piece: SliceRecord) -> int:
    return boxes.volume(piece.shape) * dtypes.item_size_bytes(tensor.dtype)
