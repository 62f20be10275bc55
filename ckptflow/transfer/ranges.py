"""Which bytes of which shards to read at once for the slices that are wanted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ckptflow.format import boxes, dtypes
from ckptflow.format.manifest import Manifest, SliceRecord

PAGE_BYTES = 4096  # ranges start at multiples of this, so that a local disk can be read past the page cache
MAX_GAP_BYTES = 2**18  # unwanted bytes between two slices that are read rather than asked for anew


@dataclass(frozen=True, slots=True)
class Part:
    """A slice, or, where that is larger than a buffer, a part of one: the bytes `begin` … `end` of its shard."""

    tensor: int
    slice: SliceRecord
    begin: int
    end: int
    is_whole: bool


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of one shard that are read at once, at most a buffer long."""

    shard: int
    begin: int
    end: int
    parts: tuple[Part, ...]


def plan_ranges(
    manifest: Manifest, pieces: Iterable[tuple[int, SliceRecord]], buffer_bytes: int, join_bytes: int | None = None
) -> tuple[Range, ...]:
    """The ranges to read for these (tensor, slice) pairs: neighbours together, ordered by each one's first pair.

    Slices longer than `buffer_bytes` are cut; what is joined is no longer than `join_bytes`, or than a buffer.
    """
    longest_bytes = buffer_bytes if join_bytes is None else join_bytes
    ranked = [
        (rank, part)
        for rank, (tensor, piece) in enumerate(pieces)
        for part in _cut(manifest, tensor, piece, buffer_bytes)
    ]
    ranked.sort(key=lambda item: (item[1].slice.shard, item[1].begin))
    found: list[tuple[int, list[Part]]] = []
    for rank, part in ranked:
        if found:
            first, last = found[-1][1][0], found[-1][1][-1]
            if (
                part.slice.shard == last.slice.shard
                and part.begin - last.end <= MAX_GAP_BYTES
                and part.end - page_of(first.begin) <= longest_bytes
            ):
                found[-1][1].append(part)
                found[-1] = min(rank, found[-1][0]), found[-1][1]
                continue
        found.append((rank, [part]))
    found.sort(key=lambda item: item[0])
    return tuple(
        Range(parts[0].slice.shard, page_of(parts[0].begin), parts[-1].end, tuple(parts)) for _, parts in found
    )


def _cut(manifest: Manifest, tensor: int, piece: SliceRecord, buffer_bytes: int) -> list[Part]:
    """The parts of a slice that each fit a buffer; parts of elements there are none.

    Raises ValueError for a buffer that holds no element where one is.
    """
    item = dtypes.item_size_bytes(manifest.tensors[tensor].dtype)
    end = piece.offset + boxes.volume(piece.shape) * item
    if end - page_of(piece.offset) <= buffer_bytes:
        return [Part(tensor, piece, piece.offset, end, is_whole=True)] if end > piece.offset else []
    parts, begin = [], piece.offset
    while begin < end:
        room = (buffer_bytes - (begin - page_of(begin))) // item * item
        if room <= 0:
            raise ValueError(f"a buffer of {buffer_bytes} bytes holds nothing from byte {begin} on")
        parts.append(Part(tensor, piece, begin, min(end, begin + room), is_whole=False))
        begin = parts[-1].end
    return parts


def page_of(position: int) -> int:
    return position // PAGE_BYTES * PAGE_BYTES
