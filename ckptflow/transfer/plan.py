"""Who writes which slice into which shard. Pure: the same on every worker, with no message exchanged."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ckptflow.errors import UnsupportedStateError
from ckptflow.format import boxes, dtypes
from ckptflow.format.boxes import Box
from ckptflow.format.layout import shard_name
from ckptflow.format.record import MAX_NAME_CHARACTERS
from ckptflow.format.shard import (
    ALIGNMENT_BYTES,
    EMPTY_HEADER_ROOM_BYTES,
    MAX_HEADER_BYTES,
    ShardEntry,
    ShardLayout,
    header_room_bytes,
    layout_shard,
)
from ckptflow.format.spec import TensorSource, TensorSpec

SMALL_BYTES = 2**20  # replicated tensors below this are never divided: workers' copies can differ
BLOCK_SLICE_BYTES = 2**18  # of a block of a mesh, at least: finer ones cost more in the manifest than they save
MAX_BLOCK_SLICES = 64
MIN_RUN_BYTES = 2**6  # shorter ones, where a slice is no single run of bytes, are slow to copy
MIN_SHARD_BYTES = 2**16  # room for the longest name's header and one element
CHIEF = 0


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
    """One shard of this worker's: its name in the folder, its header, its size, its slices in the order of the file."""

    name: str
    header: bytes
    size_bytes: int
    slices: tuple[PlannedSlice, ...]


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """All that one worker writes in a save. Made once, at the first save, and used again by every later one.

    `part_counts` has the number of this worker's slices for each tensor that has more than one; `unused` are the
    tensors of which this worker writes nothing, dynamic ones apart.
    """

    worker: int
    world_size: int
    shards: tuple[PlannedShard, ...]
    part_counts: Mapping[int, int]
    unused: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """The bytes of this worker's shards."""
        return sum(shard.size_bytes for shard in self.shards)


@dataclass(frozen=True, slots=True)
class _Placed:
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


_Piece = tuple[_Placed, Box]


class _Sized(NamedTuple):
    """A piece on its way into a shard, and what it takes there: of many small tensors both are asked for often."""

    held: _Placed
    box: Box
    size_bytes: int
    header_bytes: int

    @classmethod
    def of(cls, held: _Placed, box: Box) -> _Sized:
        return cls(held, box, held.size_bytes(box), header_room_bytes(held.entry(box)))


def plan_shards(
    specs: Sequence[TensorSpec],
    *,
    worker: int,
    world_size: int,
    shard_bytes: int,
    small_bytes: int = SMALL_BYTES,
    at_once: int = 1,
) -> WorkerPlan:
    """Worker `worker`'s part of writing `specs`; all workers' parts together cover each tensor exactly once.

    Replicated tensors under `small_bytes`, and those that may differ, are the chief's, whole. Larger ones are divided
    so that all workers write the same number of bytes, within 5 % or `small_bytes / 8`, whichever is more, as far as
    the chief's own allow. Of a tensor with components, of blocks and of its own tensors every worker writes what it
    holds; where there are several workers, large blocks in several slices. Dynamic tensors are left to `plan_dynamic`.
    No shard is longer than `shard_bytes`, header included; where there are more than `at_once` they are about a
    multiple of that many, so that the last that are written together are as many as the others. Raises ValueError where
    `shard_bytes` is under 64 KiB, `UnsupportedStateError` for a name that no header can hold.
    """
    (plan,) = plan_workers(
        specs,
        workers=(worker,),
        world_size=world_size,
        shard_bytes=shard_bytes,
        small_bytes=small_bytes,
        at_once=at_once,
    )
    return plan


def plan_workers(
    specs: Sequence[TensorSpec],
    *,
    workers: Iterable[int],
    world_size: int,
    shard_bytes: int,
    small_bytes: int = SMALL_BYTES,
    at_once: int = 1,
) -> Iterator[WorkerPlan]:
    """The plans of several workers, one after the other, each as that worker itself would make it."""
    if shard_bytes < MIN_SHARD_BYTES:
        raise ValueError(f"shard_bytes is {shard_bytes}, at least {MIN_SHARD_BYTES} are needed")
    alike: list[tuple[int, TensorSpec]] = []  # placed in the same way whoever plans
    apart: list[tuple[int, TensorSpec]] = []
    for index, spec in enumerate(specs):
        _check_name(spec.name)
        if not spec.dynamic:
            (apart if spec.components or spec.box is not None or spec.own else alike).append((index, spec))
    small, large, _ = _place(alike, CHIEF, world_size, small_bytes)
    small_total = sum(held.size_bytes(box) for held, box in small)
    shares = _share_out(large, world_size, small_total, small_bytes)
    for worker in workers:
        if not 0 <= worker < world_size:
            raise ValueError(f"there is no worker {worker} among {world_size}")
        empty, _, own = _place(apart, worker, world_size, small_bytes)
        own += shares[worker]
        own += small + empty if worker == CHIEF else []
        shards = _pack(own, worker, world_size, shard_bytes, first_index=0, at_once=at_once)
        written = {piece.tensor for shard in shards for piece in shard.slices}
        unused = tuple(i for i, spec in enumerate(specs) if not spec.dynamic and i not in written)
        yield WorkerPlan(worker, world_size, shards, _count_parts(shards), unused)


def _place(
    specs: Iterable[tuple[int, TensorSpec]], worker: int, world_size: int, small_bytes: int
) -> tuple[list[_Piece], list[_Placed], list[_Piece]]:
    """What the chief writes, what all divide among them, and what this worker alone holds."""
    small: list[_Piece] = []
    large: list[_Placed] = []
    own: list[_Piece] = []
    for index, spec in specs:
        if spec.components:
            shape = (world_size, *spec.shape)
            held = _Placed(index, spec.name, spec.dtype, shape, (1, *spec.shape), (worker, *(0 for _ in spec.shape)))
            if boxes.volume(spec.shape):
                own.append((held, (held.origin, held.held_shape)))
            else:  # a tensor without elements has one slice: the chief's
                small.append((replace(held, held_shape=shape, origin=(0,) * len(shape)), boxes.whole(shape)))
            continue
        if spec.box is not None:
            held = _Placed(index, spec.name, spec.dtype, spec.shape, spec.box[1], spec.box[0])
            cut = held.cut_for_other_meshes(spec.box) if world_size > 1 else [spec.box]  # one needs all of them again
            own += [(held, piece) for piece in cut]
            continue
        held = _Placed(index, spec.name, spec.dtype, spec.shape, spec.shape, (0,) * len(spec.shape))
        if spec.own:
            own.append((held, boxes.whole(spec.shape)))
        elif world_size == 1 or spec.may_differ or held.size_bytes(boxes.whole(spec.shape)) < max(1, small_bytes):
            small.append((held, boxes.whole(spec.shape)))
        else:
            large.append(held)
    return small, large, own


def _check_name(name: str) -> None:
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        size = -1
    if size < 1 or len(name) > MAX_NAME_CHARACTERS:
        shown = name if len(name) < 80 else name[:80] + "…"
        raise UnsupportedStateError(
            f"a tensor cannot be saved under the name {shown!a}: names are 1 to {MAX_NAME_CHARACTERS} characters of "
            "valid Unicode; change the key or attribute that it comes from"
        )


def plan_dynamic(plan: WorkerPlan, source: TensorSource, *, shard_bytes: int) -> WorkerPlan:
    """A worker's plan for one save: `plan`, and further shards for dynamic tensors as they were captured.

    Every worker writes its own ones, the chief also the others. Returns `plan` itself where no tensor is dynamic. Reads
    `source.shape`, and for encoded dtypes how long `source.data` is.
    """
    own: list[_Piece] = []
    for index, spec in enumerate(source.specs):
        if spec.dynamic and (spec.own or plan.worker == CHIEF):
            encoded = dtypes.is_encoded(spec.dtype)
            shape = (source.data(index).size,) if encoded else source.shape(index)
            own.append((_Placed(index, spec.name, spec.dtype, shape, shape, (0,) * len(shape)), boxes.whole(shape)))
    if not own:
        return plan
    shards = plan.shards + _pack(own, plan.worker, plan.world_size, shard_bytes, first_index=len(plan.shards))
    return replace(plan, shards=shards, part_counts=_count_parts(shards))


def _share_out(large: Sequence[_Placed], world_size: int, small_total: int, small_bytes: int) -> list[list[_Piece]]:
    """Each worker's pieces of the large tensors: laid end to end, biggest first, and cut between the workers."""
    shares: list[list[_Piece]] = [[] for _ in range(world_size)]
    total = sum(held.size_bytes(boxes.whole(held.shape)) for held in large)
    if not total:
        return shares
    chief_share = max(0, (total + small_total) // world_size - small_total)
    share = (total - chief_share) // (world_size - 1)
    slack = max(share // 64, small_bytes // 16, ALIGNMENT_BYTES)
    worker, position = 0, 0
    for held in sorted(large, key=lambda held: (-held.size_bytes(boxes.whole(held.shape)), held.index)):
        pending = [boxes.whole(held.shape)]
        while pending:
            box = pending.pop()
            size = held.size_bytes(box)
            room = chief_share + (total - chief_share) * worker // (world_size - 1) - position
            if worker == world_size - 1 or size <= room + slack // 2:
                head, tail = [box], []
            elif room <= slack // 2:
                head, tail = [], [box]
            else:
                head, tail = held.divide(box, room, slack)
            shares[worker] += [(held, part) for part in head]
            position += sum(map(held.size_bytes, head))
            pending += reversed(tail)
            worker += bool(tail)
    return shares


def _pack(
    pieces: Iterable[_Piece], worker: int, world_size: int, shard_bytes: int, first_index: int, at_once: int = 1
) -> tuple[PlannedShard, ...]:
    """Shards with all the pieces, nearly equally long.

    Where more than `at_once` are needed, as many as fill the last of the rounds in which they are written. A tensor is
    not cut for a little room, and so there may be more than that: then somewhat longer ones are tried. Those of
    `at_once` = 1 stay where nothing takes less time.
    """
    sized = [_Sized.of(held, box) for held, box in pieces]
    sized.sort(key=lambda piece: (piece.size_bytes, -piece.held.index))
    total = sum(piece.size_bytes + piece.header_bytes for piece in sized)
    count = -(-total // (shard_bytes - EMPTY_HEADER_ROOM_BYTES)) or 1

    def filled(capacity: int) -> tuple[PlannedShard, ...]:
        filling = enumerate(_fill(sized, min(shard_bytes, max(capacity, MIN_SHARD_BYTES))), first_index)
        return tuple(_plan_shard(shard_name(worker, world_size, number), held) for number, held in filling)

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


def _fill(pieces: Sequence[_Sized], capacity: int) -> Iterator[list[_Piece]]:
    """What goes into each shard of so many bytes: biggest pieces first, dividing those that do not fit."""
    stack = list(pieces)
    current: list[_Piece] = []
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


def _plan_shard(name: str, pieces: Sequence[_Piece]) -> PlannedShard:
    layout: ShardLayout = layout_shard([held.entry(box) for held, box in pieces])
    slices = [_plan_slice(held, box, offset) for (held, box), offset in zip(pieces, layout.offsets, strict=True)]
    slices.sort(key=lambda piece: (piece.offset, piece.end))
    return PlannedShard(name, layout.header, layout.size_bytes, tuple(slices))


def _plan_slice(held: _Placed, box: Box, offset: int) -> PlannedSlice:
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


def _count_parts(shards: Iterable[PlannedShard]) -> dict[int, int]:
    counts = Counter(piece.tensor for shard in shards for piece in shard.slices)
    return {tensor: count for tensor, count in counts.items() if count > 1}
