"""A shard: one plain safetensors file that is laid out, filled and sent as one buffer.

The bytes of a shard are an 8-byte little-endian length, a JSON header of that length (padded with spaces, so that the
data starts at a multiple of 64), and the slices' bytes without a gap. A slice's key in the header is the tensor's name,
where the slice is the whole tensor, else the name and the box: `model/embedding[0:512,0:64]`. A whole tensor whose name
ends with "]", or is `__metadata__`, gets its box all the same, so that no two slices ever share a key.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import msgspec

from ckptflow.decoding import is_flat, without_strings
from ckptflow.format import boxes, dtypes
from ckptflow.format.record import MAX_RANK, ShortText, Size

ALIGNMENT_BYTES = 64
MAX_HEADER_BYTES = 100_000_000  # the safetensors package refuses longer ones
_METADATA = {"format": "ckptflow", "version": "1"}
_PREFIX_BYTES = 8
_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One slice of a shard: the box (`start`, `extents`) of a tensor whose whole shape in storage is `shape`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: tuple[int, ...]
    extents: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return boxes.volume(self.extents) * dtypes.item_size_bytes(self.dtype)

    @property
    def key(self) -> str:
        return slice_key(self.name, self.shape, self.start, self.extents)


class FileEntry(NamedTuple):
    """One entry of a safetensors file to be laid out, as its header names it."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """Where everything lies in a shard: the first bytes, length and padding included; each entry's offset in the file,
    in the order in which the entries were given; the file's size."""

    header: bytes
    offsets: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class HeaderEntry:
    """One entry of a shard's header, as read: `begin` and `end` count from the start of the file."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def slice_key(name: str, shape: Sequence[int], start: Sequence[int], extents: Sequence[int]) -> str:
    """The key of a slice in its shard's header; no two slices of any two tensors have the same."""
    is_whole = not any(start) and tuple(extents) == tuple(shape)
    if is_whole and not name.endswith("]") and name != "__metadata__":
        return name
    return name + "[" + ",".join(f"{at}:{at + extent}" for at, extent in zip(start, extents, strict=True)) + "]"


def header_room_bytes(entry: ShardEntry) -> int:
    """At most how many bytes of header an entry takes, wherever in the shard it comes to lie."""
    return len(_encoder.encode(entry.key)) + 100 + sum(len(str(extent)) + 1 for extent in entry.extents)


EMPTY_HEADER_ROOM_BYTES = _PREFIX_BYTES + len(_encoder.encode({"__metadata__": _METADATA})) + ALIGNMENT_BYTES


def layout_shard(entries: Sequence[ShardEntry]) -> ShardLayout:
    """Lays out a shard with these slices: pure, and the same for the same entries.

    Slices whose size is a multiple of 64 come first, then those of 32, 16, … so that each is aligned as far as its size
    allows, always at least to its elements. Raises ValueError if two entries are one slice.
    """
    named = [
        FileEntry(
            entry.key,
            dtypes.safetensors_name(entry.dtype),
            dtypes.safetensors_shape(entry.dtype, entry.extents),
            entry.size_bytes,
        )
        for entry in entries
    ]
    return layout_file(named, _METADATA)


def layout_file(entries: Sequence[FileEntry], metadata: Mapping[str, str]) -> ShardLayout:
    """Lays out a safetensors file, as `layout_shard` does it. Raises ValueError if a key stands twice."""
    sizes = [entry.size_bytes for entry in entries]
    order = sorted(range(len(entries)), key=lambda i: -_alignment(sizes[i]))
    header: dict[str, Any] = {"__metadata__": metadata}
    relative, end = [0] * len(entries), 0
    for i in order:
        entry, relative[i] = entries[i], end
        end += sizes[i]
        header[entry.key] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": (relative[i], end)}
    if len(header) != len(entries) + 1:
        raise ValueError("a slice stands twice in a shard")
    text = _encoder.encode(header)
    data_start = -(-(_PREFIX_BYTES + len(text)) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    prefix = (data_start - _PREFIX_BYTES).to_bytes(_PREFIX_BYTES, "little")
    return ShardLayout(
        header=(prefix + text).ljust(data_start, b" "),
        offsets=tuple(data_start + offset for offset in relative),
        size_bytes=data_start + end,
    )


def _alignment(size_bytes: int) -> int:
    return min(ALIGNMENT_BYTES, size_bytes & -size_bytes) or ALIGNMENT_BYTES


class _Raw(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: ShortText
    shape: Annotated[tuple[Size, ...], msgspec.Meta(max_length=MAX_RANK + 1)]  # one more: a complex number's two
    data_offsets: tuple[Size, Size]


msgspec.convert(
    {"dtype": "", "shape": (), "data_offsets": (0, 0)}, _Raw
)  # before there are threads: see `ckptflow.decoding`
_ITEM_SIZE_BYTES = {
    dtypes.safetensors_name(name): 8 if name == "complex128" else dtypes.item_size_bytes(name)
    for name in dtypes.names()
}


def header_size_bytes(prefix: bytes, file_size_bytes: int) -> int:
    """How many bytes of a shard lie before its data, by its first 8 bytes. Raises ValueError if that cannot be."""
    size = int.from_bytes(prefix[:_PREFIX_BYTES], "little")
    if len(prefix) < _PREFIX_BYTES or size > min(MAX_HEADER_BYTES, file_size_bytes - _PREFIX_BYTES):
        raise ValueError(f"a header of {size:,} bytes does not fit a shard of {file_size_bytes:,} bytes")
    return _PREFIX_BYTES + size


def parse_header(head: bytes, file_size_bytes: int) -> tuple[HeaderEntry, ...]:
    """The entries of a shard whose first bytes are `head`, in the order of their bytes.

    Checks, in this order: the length against the file's size, UTF-8 and JSON without a key twice, types, each size
    against dtype and shape, and that the entries fill the file exactly, without gap or overlap. Raises ValueError.
    """
    return parse_file(head, file_size_bytes)[0]


def parse_file(
    head: bytes, file_size_bytes: int, other_bits: Mapping[str, int] | None = None
) -> tuple[tuple[HeaderEntry, ...], dict[str, str]]:
    """The entries of any safetensors file, as `parse_header` has them, and its metadata.

    `other_bits`: the bits of an element, for dtypes that no checkpoint holds.
    """
    data_start = header_size_bytes(head[:_PREFIX_BYTES], file_size_bytes)
    if len(head) < data_start:
        raise ValueError("the header is cut short")
    text = head[_PREFIX_BYTES:data_start]
    if not is_flat(without_strings(text), len(text), 16):
        raise ValueError("the header has more lists and objects than its entries need")
    try:
        pairs = json.loads(text.decode("utf-8"), object_pairs_hook=unique_members)
        if not isinstance(pairs, dict):
            raise ValueError("the header is not a JSON object")
        metadata = msgspec.convert(pairs.pop("__metadata__", {}), dict[str, str])
        found = [
            HeaderEntry(key, raw.dtype, raw.shape, data_start + raw.data_offsets[0], data_start + raw.data_offsets[1])
            for key, raw in ((key, msgspec.convert(value, _Raw)) for key, value in pairs.items())
        ]
    except (msgspec.ValidationError, RecursionError) as error:
        raise ValueError(f"the header is malformed: {error}") from error
    found.sort(key=lambda entry: (entry.begin, entry.end))
    end, others = data_start, other_bits or {}
    for entry in found:
        bits = 8 * _ITEM_SIZE_BYTES[entry.dtype] if entry.dtype in _ITEM_SIZE_BYTES else others.get(entry.dtype)
        if bits is None:
            raise ValueError(f"{entry.key!r} has dtype {entry.dtype!r} and shape {list(entry.shape)}")
        if entry.begin != end or 8 * (entry.end - entry.begin) != boxes.volume(entry.shape) * bits:
            raise ValueError(f"the bytes of {entry.key!r} do not follow those before, or do not fit its shape")
        end = entry.end
    if end != file_size_bytes:
        raise ValueError(f"the entries end at byte {end:,} of {file_size_bytes:,}")
    return tuple(found), metadata


def unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`: the object with these members. Raises ValueError if a name stands twice."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a JSON object has one member twice")
    return members


def check_members(pairs: list[tuple[str, Any]]) -> None:
    """For `json.loads`, where only this is asked: the same, and nothing of the object is kept."""
    unique_members(pairs)


# CRC-32C is the remainder of a polynomial over GF(2), bits reflected: bit 31 is x**0. The checksum of A + B follows
# from those of A and B: A's is multiplied with x ** (8 * len(B)), and B's is added. So one pass over the data gives
# the checksums of all slices and of the file.
_POLYNOMIAL = 0x82F63B78


def crc32c_combine(first: int, second: int, second_size_bytes: int) -> int:
    """The crc32c of A + B, from those of A and of B and the length of B."""
    return _multiply(_power(second_size_bytes), first) ^ second


def _multiply(a: int, b: int) -> int:
    product = 0
    while a:
        if a & 0x8000_0000:
            product ^= b
        a = (a << 1) & 0xFFFF_FFFF
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product


@functools.lru_cache(maxsize=4096)
def _power(size_bytes: int) -> int:
    power = 0x8000_0000  # x ** 0
    for k in range(size_bytes.bit_length()):
        if size_bytes >> k & 1:
            power = _multiply(power, _square(k))
    return power


@functools.cache
def _square(k: int) -> int:
    """x ** (8 * 2**k)"""
    return 0x0080_0000 if k == 0 else _multiply(_square(k - 1), _square(k - 1))
