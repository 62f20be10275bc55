"""Manifest, receipt and claim: typed records, sealed with a checksum, strictly decoded.

Each is one JSON object whose last member is `"crc32c"`: eight hex digits over every byte before the comma in front
of it. Decoding checks, in this order: the size bound, the seal, the format version, the types (unknown members are
refused), and then that names, bounds and covers agree with one another. Whatever fails raises `CorruptCheckpointError`
with the key and the reason, but for a version that this code does not know: `UnknownVersionError`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import crc32c
import msgspec
from msgspec import Meta, Struct, field

from ckptflow.errors import CorruptCheckpointError, UnknownVersionError
from ckptflow.format import boxes, dtypes, layout

FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 256 * 2**20  # about a million tensors
MAX_RECEIPT_BYTES = 256 * 2**20
MAX_CLAIM_BYTES = 64 * 2**10

Size = Annotated[int, Meta(ge=0, le=2**62)]
Crc32c = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Shape = Annotated[tuple[Size, ...], Meta(max_length=255)]
TensorName = Annotated[str, Meta(min_length=1, max_length=4096)]
ShortText = Annotated[str, Meta(max_length=4096)]

# Why an incarnation started where it did. `fresh` and `rollback` cut off what came before: nothing outside the lineage is
# ever taken by itself past one of these two.
Reason = Literal["start", "resume", "rollback", "damage", "outside", "fresh"]


class Record(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A part of a manifest or receipt."""


class ShardRecord(Record, kw_only=True):
    """One shard file: its name in the folder, its size, and the crc32c of all its bytes, header included."""

    name: ShortText
    size_bytes: Size
    crc32c: Crc32c


class SliceRecord(Record, kw_only=True):
    """One slice: where its bytes lie (`shard` counts in the list of shards, `offset` from the start of the file), which
    box of its tensor it is, and the crc32c of those bytes."""

    shard: Size
    offset: Size
    start: Shape
    shape: Shape
    crc32c: Crc32c


class TensorRecord(Record, kw_only=True):
    """One tensor: its global shape and the slices that cover it exactly once, in row-major order within each slice.

    `encoded_bytes` is set for dtypes whose size does not follow from the shape (strings): the slices are then boxes of
    that one-dimensional byte sequence. `components` is set where the first axis counts one component for each worker
    of a variable that is kept per replica: they are summed, averaged, or the first is taken, when reading.
    `metric` marks variables that a restore may do without (Keras resets them each epoch).
    """

    name: TensorName
    dtype: ShortText
    shape: Shape
    slices: tuple[SliceRecord, ...]
    encoded_bytes: Size | None = None
    components: Literal["sum", "mean", "first"] | None = None
    aliases: tuple[TensorName, ...] = ()
    metric: bool = False

    @property
    def size_bytes(self) -> int:
        """The tensor's bytes in storage."""
        if self.encoded_bytes is not None:
            return self.encoded_bytes
        return boxes.volume(self.shape) * dtypes.item_size_bytes(self.dtype)

    @property
    def storage_shape(self) -> tuple[int, ...]:
        """The shape that the slices are boxes of."""
        return self.shape if self.encoded_bytes is None else (self.encoded_bytes,)


class Manifest(Record, kw_only=True):
    """The commit record of one checkpoint. Present and whole = committed.

    `lineage` names the folders that counted when this incarnation started, up to the one that it restored, and `reason`
    why it started there. `barrier` is the newest incarnation, this one or one that it builds on, that began with a rollback
    or a fresh start: folders of lower incarnations outside the lineage were cut off on purpose and are never taken by
    themselves. `fresh_since` is the same for fresh starts alone: what they left behind is deleted only by hand.
    """

    format: Literal["ckptflow"] = field(default="ckptflow")
    version: int = field(default=FORMAT_VERSION)
    kind: Literal["manifest"] = field(default="manifest")
    folder: ShortText
    step: Size
    incarnation: Size
    run_id: ShortText
    writer_id: ShortText
    created_at: ShortText
    world_size: Annotated[int, Meta(ge=1, le=10**9)]
    reason: Reason
    restored: ShortText | None = None
    lineage: tuple[ShortText, ...] = ()
    barrier: Size = 0
    fresh_since: Size = 0
    software: dict[str, str] = {}
    metrics: dict[str, float] = {}
    metadata: Any = None
    python_state: dict[str, Any] = {}
    models: dict[str, Any] = {}
    diverged: tuple[TensorName, ...] = ()
    shards: tuple[ShardRecord, ...]
    tensors: tuple[TensorRecord, ...]

    @property
    def size_bytes(self) -> int:
        """The bytes of all shards."""
        return sum(shard.size_bytes for shard in self.shards)


class ReceiptSlice(SliceRecord, kw_only=True):
    """One slice that a worker wrote; `shard` counts in the receipt's own list of shards."""

    tensor: TensorName


class Receipt(Record, kw_only=True):
    """One worker's word that its shards are durable, or, with `failure`, that they will not be.

    `digests` holds a crc32c of each replicated tensor that this worker has a copy of and did not write, so that the
    coordinator can name those that have diverged.
    """

    format: Literal["ckptflow"] = field(default="ckptflow")
    version: int = field(default=FORMAT_VERSION)
    kind: Literal["receipt"] = field(default="receipt")
    folder: ShortText
    writer_id: ShortText
    worker: Size
    world_size: Annotated[int, Meta(ge=1, le=10**9)]
    failure: str | None = None
    shards: tuple[ShardRecord, ...] = ()
    slices: tuple[ReceiptSlice, ...] = ()
    digests: dict[str, Crc32c] = {}


class Claim(Record, kw_only=True):
    """An incarnation's claim on a root. It fences older incarnations; it never says what counts.

    `host`, `pid` and `created_at` are for people. `reason` is read for one purpose: where no manifest of this
    incarnation can be read, a rollback or a fresh start is still known to be one.
    """

    format: Literal["ckptflow"] = field(default="ckptflow")
    version: int = field(default=FORMAT_VERSION)
    kind: Literal["claim"] = field(default="claim")
    number: Annotated[int, Meta(ge=1, le=2**62)]
    run_id: ShortText
    writer_id: ShortText
    reason: Reason
    host: ShortText
    pid: Size
    created_at: ShortText


class _Head(Struct):
    format: str
    version: int
    kind: str


R = TypeVar("R", Manifest, Receipt, Claim)
_SEAL_BYTES = len(',"crc32c":"00000000"}')
_encoder = msgspec.json.Encoder()
# A record's defaults are left out, but not these: every reader needs them.
_HEAD = b'{"format":"ckptflow","version":%d,"kind":"%s"'


def encode(record: Manifest | Receipt | Claim) -> bytes:
    """The sealed JSON of a record, the same bytes for the same record."""
    body = _encoder.encode(record)
    head = _HEAD % (record.version, record.kind.encode())
    body = head + b"," + body[1:-1]
    return body + b',"crc32c":"%08x"}' % crc32c.crc32c(body)


def decode(data: bytes, kind: type[R], where: str) -> R:
    """The record of type `kind` in `data`, checked as the module's docstring says. `where` names it in errors."""
    body, seal = data[:-_SEAL_BYTES], data[-_SEAL_BYTES:]
    if len(data) <= _SEAL_BYTES or seal != b',"crc32c":"%08x"}' % crc32c.crc32c(body):
        raise CorruptCheckpointError(f"{where}: its bytes do not match the checksum at its end ({len(data):,} bytes)")
    body += b"}"
    try:
        head = msgspec.json.decode(body, type=_Head)
        if head.format != "ckptflow":
            raise CorruptCheckpointError(f"{where}: not a ckptflow file, its format is {head.format!r}")
        if head.version != FORMAT_VERSION:
            raise UnknownVersionError(
                f"{where}: format version {head.version} is not known to this ckptflow (it reads version "
                f"{FORMAT_VERSION}); upgrade ckptflow"
            )
        record = msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise CorruptCheckpointError(f"{where}: {error}") from error
    if isinstance(record, Manifest):
        check_manifest(record, where)
    return record


def check_manifest(manifest: Manifest, where: str) -> None:
    """Raises `CorruptCheckpointError` unless the manifest's parts agree: names, bounds, and every tensor covered once."""

    def fail(why: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(f"{where}: {why}")

    folder = layout.parse_folder(manifest.folder)
    if folder is None or (folder.step, folder.incarnation) != (manifest.step, manifest.incarnation):
        raise fail(f"folder {manifest.folder!r} is not step {manifest.step} of incarnation {manifest.incarnation}")
    if any(layout.parse_folder(name) is None for name in (*manifest.lineage, *filter(None, [manifest.restored]))):
        raise fail("its lineage names something that is no folder")
    for shard in manifest.shards:
        if layout.parse_shard_name(shard.name) is None:
            raise fail(f"{shard.name!r} is not the name of a shard")
    if len({shard.name for shard in manifest.shards}) != len(manifest.shards):
        raise fail("it names a shard twice")
    names = [name for tensor in manifest.tensors for name in (tensor.name, *tensor.aliases)]
    if len(set(names)) != len(names):
        raise fail("it names a tensor twice")
    spans: list[list[tuple[int, int]]] = [[] for _ in manifest.shards]
    for tensor in manifest.tensors:
        try:
            check_tensor(tensor)
        except ValueError as error:
            raise fail(f"tensor {tensor.name!r}: {error}") from error
        item_size = 1 if tensor.encoded_bytes is not None else dtypes.item_size_bytes(tensor.dtype)
        for piece in tensor.slices:
            size = boxes.volume(piece.shape) * item_size
            if piece.shard >= len(spans) or piece.offset + size > manifest.shards[piece.shard].size_bytes:
                raise fail(f"tensor {tensor.name!r}: a slice lies outside its shard")
            if size:
                spans[piece.shard].append((piece.offset, piece.offset + size))
    for shard, used in zip(manifest.shards, spans, strict=True):
        used.sort()
        if any(end > start for (_, end), (start, _) in zip(used, used[1:], strict=False)):
            raise fail(f"slices overlap in {shard.name}")


def check_tensor(tensor: TensorRecord) -> None:
    """Raises ValueError unless the dtype is known and the slices cover the tensor exactly once."""
    if (tensor.encoded_bytes is not None) != dtypes.is_encoded(tensor.dtype):
        raise ValueError(f"dtype {tensor.dtype!r} and encoded_bytes={tensor.encoded_bytes} do not go together")
    if tensor.size_bytes > 2**62:
        raise ValueError("is larger than any storage")
    if tensor.components and not tensor.shape:
        raise ValueError("has components and no axis for them")
    boxes.check_cover(tensor.storage_shape, [(piece.start, piece.shape) for piece in tensor.slices])
