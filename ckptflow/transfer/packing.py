"""Which slices of one worker go into which shard, and where in it. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ckptflow.format import boxes, dtypes
from ckptflow.format.boxes import Box
from ckptflow.format.layout import shard_name
from ckptflow.format.shard import (
    ALIGNMENT_BYTES,
    EMPTY_HEADER_ROOM_BYTES,
    MAX_HEADER_BYTES,
    ShardEntry,
    ShardLayout,
    header_room_bytes,
    layout_shard,
)

SMALL_BYTES = 2**20  # replicated tensors below this are never divided: workers' copies can differ
BLOCK_SLICE_BYTES = 2**18  # of a block of a mesh, at least: finer ones cost more in the manifest than they save
MAX_BLOCK_SLICES = 64
MIN_RUN_BYTES = 2**6  # shorter ones, where a slice is no single run of bytes, are slow to copy
MIN_SHARD_BYTES = 2**16  # room for the longest name's header and one element


@dataclass(frozen=True, slots=True)
class PlannedSlice:
    """One slice of this worker's: where it comes from and where it goes.

    `start` and `shape` are its box in storage. Its bytes come from `source_begin` on in the tensor's row-major bytes as
    this worker holds them, or, where they are no single run there, are the box `region` of the array of `held_shape`;
    `source_start` is where the box starts in that array. They go to `offset` … `end` of the shard.
    """

    tensor: int
    name: str
    start: tuple[int, ...]
    shape: tuple[int, ...]
    offset: int
    end: int
    source_start: tuple[int, ...]
    source_begin: int
    source_end: int
    region: tuple[slice, ...] | None
    held_shape: tuple[int, ...]
    item_size_bytes: int


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """One shard of this worker's: its name in the folder, its header, its size, its slices in the order of the file.

    One that `is_still` holds only what is expected not to change between saves.
    """

    name: str
    header: bytes
    size_bytes: int
    slices: tuple[PlannedSlice, ...]
    is_still: bool = False


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor as storage and this worker see it: `origin` is where this worker's copy lies in the storage shape."""

    index: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    held_shape: tuple[int, ...]
    origin: tuple[int, ...]

    @property
    def item_size_bytes(self) -> int:
        return dtypes.item_size_bytes(self.dtype)

    def entry(self, box: Box) -> ShardEntry:
        return ShardEntry(self.name, self.dtype, self.shape, *box)

    def size_bytes(self, box: Box) -> int:
        return boxes.volume(box[1]) * self.item_size_bytes

    def cut_for_other_meshes(self, box: Box) -> list[Box]:
        """A large block in about 64 slices: they are read whole, and another mesh may need a half or a third of it.

        Up to four side by side, where each still is long runs of bytes, so that the last axis can be divided anew, too.
        """
        size_bytes, count = self.size_bytes(box), 1
        slice_bytes = max(BLOCK_SLICE_BYTES, size_bytes // MAX_BLOCK_SLICES)
        if size_bytes < SMALL_BYTES or len(box[1]) > boxes.MAX_CUT_AXES:  # more cuts than can be checked
            return [box]
        while count < 4 and self._may_halve_columns(box[1], count, size_bytes // slice_bytes):
            count *= 2
        last = len(box[1]) - 1
        columns = [
            boxes.take(box, last, box[1][last] * i // count, box[1][last] * (i + 1) // count) for i in range(count)
        ]
        return [piece for part in columns for piece in boxes.split(part, max(1, slice_bytes // self.item_size_bytes))]

    def _may_halve_columns(self, shape: tuple[int, ...], count: int, slices: int) -> bool:
        """Whether `count` columns of a block may become twice as many: runs stay long, and rows are cut no less."""
        run_bytes = shape[-1] // (2 * count) * self.item_size_bytes
        return len(shape) > 1 and run_bytes >= MIN_RUN_BYTES and slices >= (2 * count) ** 2

    def divide(self, box: Box, size_bytes: int, slack_bytes: int) -> tuple[list[Box], list[Box]]:
        """`boxes.divide` in bytes, with slices of a multiple of 64 bytes where that can be."""
        item = self.item_size_bytes
        return boxes.divide(
            box,
            size_bytes // item,
            slack=max(1, slack_bytes // item),
            step=ALIGNMENT_BYTES // math.gcd(ALIGNMENT_BYTES, item),
        )


Piece = tuple[Placed, Box]


class _Sized(NamedTuple):
    """A piece on its way into a shard, and what it takes there: of many small tensors both are asked for often."""

    held: Placed
    box: Box
    size_bytes: int
    header_bytes: int

    @classmethod
    def of(cls, held: Placed, box: Box) -> _Sized:
        return cls(held, box, held.size_bytes(box), header_room_bytes(held.entry(box)))


def pack(
    pieces: Iterable[Piece],
    worker: int,
    world_size: int,
    shard_bytes: int,
    *,
    taken: Collection[int] = (),
    at_once: int = 1,
    is_still: bool = False,
) -> tuple[PlannedShard, ...]:
    """Shards with all the pieces, nearly equally long, numbered past those numbers that are `taken`.

    Where more than `at_once` are needed, as many as fill the last of the rounds in which they are written. A tensor is
    not cut for a little room, and so there may be more than that: then somewhat longer ones are tried. Those of
    `at_once` = 1 stay where nothing takes less time.
    """
    sized = [_Sized.of(held, box) for held, box in pieces]
    sized.sort(key=lambda piece: (piece.size_bytes, -piece.held.index))
    total = sum(piece.size_bytes + piece.header_bytes for piece in sized)
    count = -(-total // (shard_bytes - EMPTY_HEADER_ROOM_BYTES)) or 1

    def filled(capacity: int) -> tuple[PlannedShard, ...]:
        numbers = itertools.filterfalse(taken.__contains__, itertools.count())
        filling = zip(_fill(sized, min(shard_bytes, max(capacity, MIN_SHARD_BYTES))), numbers, strict=False)
        return tuple(plan_shard(shard_name(worker, world_size, n), held, is_still=is_still) for held, n in filling)

    best = filled(_a_little_more(total // count))
    if at_once == 1 or count <= at_once:
        return best
    full = -(-count // at_once) * at_once
    low = _a_little_more(total // full)
    for capacity in (low, (low + shard_bytes) // 2):
        found = filled(capacity)
        if len(found) <= full:
            return min(best, found, key=lambda shards: _rounds_bytes(shards, at_once))
    return best


def _a_little_more(even_bytes: int) -> int:
    """What shards must hold for none to be left for a further one."""
    return even_bytes + even_bytes // 16


def _rounds_bytes(shards: Sequence[PlannedShard], at_once: int) -> int:
    """How long they take to write, so many at a time: in bytes of one connection."""
    return -(-len(shards) // at_once) * max(shard.size_bytes for shard in shards)


def _fill(pieces: Sequence[_Sized], capacity: int) -> Iterator[list[Piece]]:
    """What goes into each shard of so many bytes: biggest pieces first, dividing those that do not fit."""
    stack = list(pieces)
    current: list[Piece] = []
    used = header = EMPTY_HEADER_ROOM_BYTES
    while stack or current:
        if stack:
            piece = stack.pop()
            room = capacity - used - piece.header_bytes if header + piece.header_bytes <= MAX_HEADER_BYTES else -1
            if piece.size_bytes > room:
                held, box = piece.held, piece.box
                is_nearly_full = bool(current) and room < capacity // 8
                head, tail = ([], [box]) if is_nearly_full else held.divide(box, max(room, 0), capacity // 16)
                stack += [_Sized.of(held, part) for part in reversed(head[1:] + tail)]
                fitting = piece._replace(box=head[0], size_bytes=held.size_bytes(head[0])) if head else None
            else:
                fitting = piece
            if fitting is not None:
                current.append((fitting.held, fitting.box))
                used += fitting.header_bytes + fitting.size_bytes
                header += fitting.header_bytes
                continue
            if not current:
                raise ValueError(f"no shard of {capacity:,} bytes can hold an element of {piece.held.name!r}")
        yield current
        current = []
        used = header = EMPTY_HEADER_ROOM_BYTES


def plan_shard(name: str, pieces: Sequence[Piece], *, is_still: bool = False) -> PlannedShard:
    """One shard with these pieces; the same bytes for the same pieces in the same order, whatever its name."""
    layout: ShardLayout = layout_shard([held.entry(box) for held, box in pieces])
    slices = [_plan_slice(held, box, offset) for (held, box), offset in zip(pieces, layout.offsets, strict=True)]
    slices.sort(key=lambda piece: (piece.offset, piece.end))
    return PlannedShard(name, layout.header, layout.size_bytes, tuple(slices), is_still)


def _plan_slice(held: Placed, box: Box, offset: int) -> PlannedSlice:
    start = tuple(at - origin for at, origin in zip(box[0], held.origin, strict=True))
    size, item = held.size_bytes(box), held.item_size_bytes
    is_run = not size or boxes.is_contiguous(held.held_shape, box[1])
    begin = boxes.row_major_offset(held.held_shape, start) * item if is_run else 0
    return PlannedSlice(
        tensor=held.index,
        name=held.name,
        start=box[0],
        shape=box[1],
        offset=offset,
        end=offset + size,
        source_start=start,
        source_begin=begin,
        source_end=begin + size if is_run else 0,
        region=None if is_run else tuple(slice(at, at + n) for at, n in zip(start, box[1], strict=True)),
        held_shape=held.held_shape,
        item_size_bytes=item,
    )
