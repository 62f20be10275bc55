"""Manifest, receipt and claim: typed records, sealed with a checksum, strictly decoded.

Each is one JSON object whose last member is `"crc32c"`: eight hex digits over every byte before the comma in front
of it. Decoding checks, in this order: the size bound, the seal, the format version, the types (unknown members are
refused, and so is a member that stands twice), and then that names, bounds and covers agree with one another. Whatever
fails raises `CorruptCheckpointError` with the key and the reason, or `UnknownVersionError` where it is the version.
Time and memory are a small multiple of the bytes given, whatever is in them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import crc32c
import msgspec
from msgspec import Meta, Struct, field

from ckptflow.decoding import decode_json, is_flat
from ckptflow.errors import CorruptCheckpointError, UnknownVersionError
from ckptflow.format import dtypes, layout
from ckptflow.format.failure import Failure
from ckptflow.format.object_graph import ObjectGraph, check_graph
from ckptflow.format.parts import ShardRecord as ShardRecord
from ckptflow.format.parts import SliceRecord as SliceRecord
from ckptflow.format.parts import TensorRecord as TensorRecord
from ckptflow.format.parts import Timing as Timing
from ckptflow.format.parts import check_shards, check_tensor
from ckptflow.format.record import MAX_NAME_CHARACTERS, Crc32c, Record, ShortText, Size, TensorName
from ckptflow.format.shard import check_members

FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 256 * 2**20  # about a million tensors
MAX_RECEIPT_BYTES = 256 * 2**20
MAX_CLAIM_BYTES = 64 * 2**10
# Lists and objects cost far more memory than their brackets: no state needs more than this, and one for 16 bytes.
MAX_CONTAINERS = 2**20

# Why an incarnation started where it did. `fresh` and `rollback` cut off what came before: nothing outside the lineage
# is ever taken by itself past one of these two.
Reason = Literal["start", "resume", "rollback", "damage", "outside", "fresh"]


class Manifest(Record, frozen=True, kw_only=True):
    """The commit record of one checkpoint. Present and whole = committed.

    `lineage` names the folders that counted when this incarnation started, up to the one that it restored, and `reason`
    why it started there. `barrier` is the newest incarnation, this one or one that it builds on, that began with a
    rollback or a fresh start: folders of lower incarnations outside the lineage were cut off on purpose and are never
    taken by themselves. `fresh_since` is the same for fresh starts alone: what they left is deleted only by hand.
    `sound_since` is the newest such incarnation that did more than start or resume: where a copy shares bytes with its
    source, what is older may have the damage that was met then, and is no source.
    `metadata` and the values of `python_state` are in the form of `format.values`. `per_worker` names the entries of
    the state that each worker had for itself: worker 3 of the entry `data` has the Python state `data/worker-3`, and
    tensors whose names begin with `data/worker-3/`. `object_graph` is there where the state has one. `began_at` is when
    `save` was called and `created_at` when the manifest was made, both by the coordinator's clock; these and `timings`,
    one for each worker, or none, are for people. Of two checkpoints of different `family` no shard was copied from one
    to the other, directly or by way of others.
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
    began_at: ShortText | None = None
    world_size: Annotated[int, Meta(ge=1, le=10**9)]
    reason: Reason
    restored: ShortText | None = None
    lineage: tuple[ShortText, ...] = ()
    barrier: Size = 0
    fresh_since: Size = 0
    sound_since: Size = 0
    software: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    metadata: Any = None
    python_state: dict[str, Any] = field(default_factory=dict)
    models: dict[str, Any] = field(default_factory=dict)
    object_graph: ObjectGraph | None = None
    diverged: tuple[TensorName, ...] = ()
    timings: tuple[Timing, ...] = ()
    per_worker: tuple[TensorName, ...] = ()
    family: Annotated[int, Meta(ge=0, le=1)] = 0
    shards: tuple[ShardRecord, ...]
    tensors: tuple[TensorRecord, ...]

    @property
    def size_bytes(self) -> int:
        """The bytes of all shards."""
        return sum(shard.size_bytes for shard in self.shards)

    @property
    def copied_bytes(self) -> int:
        """Those of them that were copied inside the storage."""
        return sum(shard.size_bytes for shard in self.shards if shard.copied_from is not None)

    @property
    def sent_bytes(self) -> int:
        """The others, which crossed the network."""
        return self.size_bytes - self.copied_bytes

    @property
    def shard_sizes(self) -> dict[str, int]:
        return {shard.name: shard.size_bytes for shard in self.shards}


class ReceiptSlice(SliceRecord, frozen=True, kw_only=True, gc=False):
    """One slice that a worker wrote; `shard` counts in the receipt's own list of shards."""

    tensor: TensorName


class Receipt(Record, frozen=True, kw_only=True):
    """One worker's word that its shards are durable, or, with `failure`, that they will not be.

    By digests, crc32c of this worker's own copies, the coordinator names what differs between workers. `digest` is one
    of all those that must be alike: they stand in a second line of the file (`Digests`), which is read only where two
    workers' `digest` differ. `digests` has those that may differ. `tensors` (without slices) and `python_state` are
    what this worker alone has: their names are for the manifest's entries `per_worker`. `timing` is how long it took.
    """

    format: Literal["ckptflow"] = field(default="ckptflow")
    version: int = field(default=FORMAT_VERSION)
    kind: Literal["receipt"] = field(default="receipt")
    folder: ShortText
    writer_id: ShortText
    worker: Size
    world_size: Annotated[int, Meta(ge=1, le=10**9)]
    failure: Failure | None = None
    shards: tuple[ShardRecord, ...] = ()
    slices: tuple[ReceiptSlice, ...] = ()
    digest: ShortText = ""
    digests: dict[str, Crc32c] = field(default_factory=dict)
    tensors: tuple[TensorRecord, ...] = ()
    python_state: dict[str, Any] = field(default_factory=dict)
    timing: Timing | None = None


class Digests(Record, frozen=True, kw_only=True):
    """The second line of a receipt: what its `digest` is of."""

    format: Literal["ckptflow"] = field(default="ckptflow")
    version: int = field(default=FORMAT_VERSION)
    kind: Literal["digests"] = field(default="digests")
    digests: dict[str, Crc32c]


class Claim(Record, frozen=True, kw_only=True):
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
    format: ShortText
    version: Size
    kind: ShortText


R = TypeVar("R", Manifest, Receipt, Digests, Claim)
LINE_END = b"\n"  # stands in no record
_DIGEST_BYTES = 16
_SEAL_BYTES = len(',"crc32c":"00000000"}')
_encoder = msgspec.json.Encoder()
# A record's defaults are left out, but not these: every reader needs them.
_HEAD = b'{"format":"ckptflow","version":%d,"kind":"%s"'


_MAX_BYTES = {
    Manifest: MAX_MANIFEST_BYTES,
    Receipt: MAX_RECEIPT_BYTES,
    Digests: MAX_RECEIPT_BYTES,
    Claim: MAX_CLAIM_BYTES,
}


def encode(record: Manifest | Receipt | Digests | Claim) -> bytes:
    """The sealed JSON of a record, the same bytes for the same record.

    Raises ValueError if it would be too large to be read back, or holds text that is no Unicode.
    """
    fields = _encoder.encode(record)
    head, inner = _HEAD % (record.version, record.kind.encode()) + b",", memoryview(fields)[1:-1]
    _check_size(len(head) + len(inner) + _SEAL_BYTES, fields, type(record))
    return b"".join((head, inner, b',"crc32c":"%08x"}' % crc32c.crc32c(inner, crc32c.crc32c(head))))


def decode(data: bytes, kind: type[R], where: str) -> R:
    """The record of type `kind` in `data`, checked as the module's docstring says. `where` names it in errors."""
    try:
        _check_size(len(data), b"", kind)
        # A manifest may have a hundred megabytes: no more copies of it than it takes.
        body, seal = memoryview(data)[:-_SEAL_BYTES], data[-_SEAL_BYTES:]
        if len(data) <= _SEAL_BYTES or seal != b',"crc32c":"%08x"}' % crc32c.crc32c(body):
            raise ValueError(f"its bytes do not match the checksum at its end ({len(data):,} bytes)")
        _check_size(len(data), data, kind)
        text = b"".join((body, b"}"))
        head = decode_json(text, _Head)
        if head.format != "ckptflow":
            raise ValueError(f"not a ckptflow file, its format is {head.format!r}")
        if head.version != FORMAT_VERSION:
            raise UnknownVersionError(
                f"{where}: format version {head.version} is not known to this ckptflow (it reads version "
                f"{FORMAT_VERSION}); upgrade ckptflow"
            )
        record = decode_json(text, kind)
        if memoryview(encode(record))[:-_SEAL_BYTES] != body:
            json.loads(text, object_pairs_hook=check_members)  # not our own bytes: has it a member twice?
    except UnknownVersionError:
        raise
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{where}: {error}") from error
    if isinstance(record, Manifest):
        check_manifest(record, where)
    elif isinstance(record, Receipt):
        _check_receipt(record, where)
    return record


def digest_of(digests: Mapping[str, int]) -> str:
    """One digest of many, the same for the same ones in any order; empty if there are none."""
    text = msgspec.json.encode(digests, order="sorted")
    return hashlib.blake2b(text, digest_size=_DIGEST_BYTES).hexdigest() if digests else ""


def encode_receipt(receipt: Receipt, alike: Mapping[str, int]) -> bytes:
    """A receipt's file: the receipt, and in a second line, if there are any, what its `digest` is of."""
    data = LINE_END.join([encode(receipt), *([encode(Digests(digests=dict(alike)))] if alike else ())])
    if len(data) > MAX_RECEIPT_BYTES:
        raise ValueError(f"a receipt has at most {MAX_RECEIPT_BYTES:,} bytes, and this one {len(data):,}")
    return data


def decode_digests(data: bytes, receipt: Receipt, where: str) -> dict[str, int]:
    """What a receipt's `digest` is of, from its whole file. Raises as `decode`."""
    if not receipt.digest:
        return {}
    digests = decode(data.partition(LINE_END)[2], Digests, where).digests
    if digest_of(digests) != receipt.digest:
        raise CorruptCheckpointError(f"{where}: its digests are not those of its digest")
    return digests


def _check_size(size_bytes: int, body: bytes, kind: type[Manifest | Receipt | Digests | Claim]) -> None:
    if size_bytes > _MAX_BYTES[kind]:
        raise ValueError(f"it has {size_bytes:,} bytes; a {kind.__name__.lower()} has at most {_MAX_BYTES[kind]:,}")
    if not is_flat(body, size_bytes, MAX_CONTAINERS):
        raise ValueError("it has too many lists and objects for its size")


def check_manifest(manifest: Manifest, where: str) -> None:
    """Raises `CorruptCheckpointError` unless the manifest's parts agree: names, bounds, every tensor covered once.

    What passes here can be encoded, and read back equal.
    """
    try:
        _check_names(manifest)
        spans: list[list[tuple[int, int]]] = [[] for _ in manifest.shards]
        sizes = [shard.size_bytes for shard in manifest.shards]
        for tensor in manifest.tensors:
            try:
                check_tensor(tensor)
                if tensor.components is not None and tensor.shape[0] != manifest.world_size:
                    raise ValueError(f"has {tensor.shape[0]} components for {manifest.world_size} workers")
                _add_spans(tensor, sizes, spans)
            except ValueError as error:
                raise ValueError(f"tensor {tensor.name!r}: {error}") from error
        for shard, used in zip(manifest.shards, spans, strict=True):
            used.sort()
            if any(end > start for (_, end), (start, _) in itertools.pairwise(used)):
                raise ValueError(f"slices overlap in {shard.name}")
        if manifest.object_graph is not None:
            check_graph(manifest.object_graph, {tensor.name for tensor in manifest.tensors})
    except ValueError as error:
        raise CorruptCheckpointError(f"{where}: {error}") from error


def _check_names(manifest: Manifest) -> None:
    folder = layout.parse_folder(manifest.folder)
    if folder is None or (folder.step, folder.incarnation) != (manifest.step, manifest.incarnation):
        raise ValueError(
            f"folder {manifest.folder!r} is not step {manifest.step} of incarnation {manifest.incarnation}"
        )
    layout.parse_folders(manifest.lineage)
    layout.parse_folders((manifest.restored,) if manifest.restored else ())
    check_shards(manifest.shards, manifest.folder, manifest.world_size)
    if not all(map(math.isfinite, manifest.metrics.values())):
        raise ValueError("a metric is not finite")
    if manifest.timings and len(manifest.timings) != manifest.world_size:
        raise ValueError(f"{len(manifest.timings)} timings for {manifest.world_size} workers")
    names = {tensor.name for tensor in manifest.tensors}
    count = len(manifest.tensors)
    for tensor in manifest.tensors:
        if tensor.aliases:
            names.update(tensor.aliases)
            count += len(tensor.aliases)
    if len(names) != count:
        raise ValueError("it names a tensor twice")
    if names and (len(min(names, key=len)) == 0 or len(max(names, key=len)) > MAX_NAME_CHARACTERS):
        raise ValueError(f"a tensor's name is empty, or longer than {MAX_NAME_CHARACTERS} characters")
    if any(len(path) > MAX_NAME_CHARACTERS for path in manifest.models):
        raise ValueError(f"the path of a model is longer than {MAX_NAME_CHARACTERS} characters")


def _check_receipt(receipt: Receipt, where: str) -> None:
    try:
        check_shards(receipt.shards, receipt.folder, receipt.world_size, receipt.worker)
        if any(piece.shard >= len(receipt.shards) for piece in receipt.slices):
            raise ValueError("a slice lies in none of its shards")
    except ValueError as error:
        raise CorruptCheckpointError(f"{where}: {error}") from error


def _add_spans(tensor: TensorRecord, sizes: list[int], spans: list[list[tuple[int, int]]]) -> None:
    """Notes the bytes of each slice in its shard. Raises ValueError for a slice outside its shard."""
    item_size = dtypes.item_size_bytes(tensor.dtype)
    for piece in tensor.slices:
        end = piece.offset + math.prod(piece.shape) * item_size
        if piece.shard >= len(sizes) or end > sizes[piece.shard]:
            raise ValueError("a slice lies outside its shard")
        if end > piece.offset:
            spans[piece.shard].append((piece.offset, end))
