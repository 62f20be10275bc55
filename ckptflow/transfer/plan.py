"""Who writes which slice into which shard. Pure: the same on every worker, with no message exchanged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ckptflow.errors import UnsupportedStateError
from ckptflow.format import boxes, dtypes
from ckptflow.format.layout import parse_shard_name
from ckptflow.format.record import MAX_NAME_CHARACTERS
from ckptflow.format.shard import ALIGNMENT_BYTES
from ckptflow.format.spec import TensorSource, TensorSpec
from ckptflow.transfer.packing import MIN_SHARD_BYTES, SMALL_BYTES, Piece, Placed, PlannedShard, pack

CHIEF = 0


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """All that one worker writes in a save. Made once, at the first save, and used again by every later one.

    `part_counts` has the number of this worker's slices for each tensor that has more than one; `unused` are the
    tensors of which this worker writes nothing, dynamic ones apart. `pieces` are what the slices were cut from.
    """

    worker: int
    world_size: int
    shards: tuple[PlannedShard, ...]
    part_counts: Mapping[int, int]
    unused: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def size_bytes(self) -> int:
        """The bytes of this worker's shards."""
        return sum(shard.size_bytes for shard in self.shards)


def plan_shards(
    specs: Sequence[TensorSpec],
    *,
    worker: int,
    world_size: int,
    shard_bytes: int,
    small_bytes: int = SMALL_BYTES,
    at_once: int = 1,
    still: Collection[int] = (),
) -> WorkerPlan:
    """Worker `worker`'s part of writing `specs`; all workers' parts together cover each tensor exactly once.

    Replicated tensors under `small_bytes`, and those that may differ, are the chief's, whole. Larger ones are divided
    so that all workers write the same number of bytes, within 5 % or `small_bytes / 8`, whichever is more, as far as
    the chief's own allow. Of a tensor with components, of blocks and of its own tensors every worker writes what it
    holds; where there are several workers, large blocks in several slices. Dynamic tensors are left to `plan_dynamic`.
    No shard is longer than `shard_bytes`, header included; where there are more than `at_once` they are about a
    multiple of that many, so that the last that are written together are as many as the others. Tensors that are
    `still`, by their places in `specs`, share a shard with no others: that changes no worker's part. Raises ValueError
    if `shard_bytes` is under 64 KiB, `UnsupportedStateError` for a name that no header can hold.
    """
    (plan,) = plan_workers(
        specs,
        workers=(worker,),
        world_size=world_size,
        shard_bytes=shard_bytes,
        small_bytes=small_bytes,
        at_once=at_once,
        still=still,
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
    still: Collection[int] = (),
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
            raise ValueError(f"worker {worker} does not exist among {world_size} workers")
        empty, _, own = _place(apart, worker, world_size, small_bytes)
        own += shares[worker]
        own += small + empty if worker == CHIEF else []
        shards = group(own, worker, world_size, shard_bytes, at_once=at_once, still=still)
        yield plan_of(specs, shards, own, worker, world_size)


def group(
    pieces: Iterable[Piece],
    worker: int,
    world_size: int,
    shard_bytes: int,
    *,
    at_once: int,
    still: Collection[int],
    kept: Sequence[PlannedShard] = (),
) -> tuple[PlannedShard, ...]:
    """Shards of the pieces, `kept` ones first: no tensor that is `still` shares a shard with one that is not."""
    pieces, shards = list(pieces), tuple(kept)
    for is_still in (True, False) if still else (False,):
        some = [(held, box) for held, box in pieces if (held.index in still) is is_still]
        if some:
            taken = {number_of(shard) for shard in shards}
            shards += pack(some, worker, world_size, shard_bytes, taken=taken, at_once=at_once, is_still=is_still)
    return shards


def plan_of(
    specs: Sequence[TensorSpec],
    shards: tuple[PlannedShard, ...],
    pieces: Iterable[Piece],
    worker: int,
    world_size: int,
) -> WorkerPlan:
    """The plan that consists of these shards, into which these pieces were cut."""
    written = {piece.tensor for shard in shards for piece in shard.slices}
    unused = tuple(i for i, spec in enumerate(specs) if not spec.dynamic and i not in written)
    return WorkerPlan(worker, world_size, shards, _count_parts(shards), unused, tuple(pieces))


def number_of(shard: PlannedShard) -> int:
    """The number in a planned shard's name."""
    parsed = parse_shard_name(shard.name)
    if parsed is None:
        raise ValueError(f"{shard.name!r} is not the name of a shard")
    return parsed[2]


def _place(
    specs: Iterable[tuple[int, TensorSpec]], worker: int, world_size: int, small_bytes: int
) -> tuple[list[Piece], list[Placed], list[Piece]]:
    """What the chief writes, what all divide among them, and what this worker alone holds."""
    small: list[Piece] = []
    large: list[Placed] = []
    own: list[Piece] = []
    for index, spec in specs:
        if spec.components:
            shape = (world_size, *spec.shape)
            held = Placed(index, spec.name, spec.dtype, shape, (1, *spec.shape), (worker, *(0 for _ in spec.shape)))
            if boxes.volume(spec.shape):
                own.append((held, (held.origin, held.held_shape)))
            else:  # a tensor without elements has one slice: the chief's
                small.append((replace(held, held_shape=shape, origin=(0,) * len(shape)), boxes.whole(shape)))
            continue
        if spec.box is not None:
            held = Placed(index, spec.name, spec.dtype, spec.shape, spec.box[1], spec.box[0])
            cut = held.cut_for_other_meshes(spec.box) if world_size > 1 else [spec.box]  # one needs all of them again
            own += [(held, piece) for piece in cut]
            continue
        held = Placed(index, spec.name, spec.dtype, spec.shape, spec.shape, (0,) * len(spec.shape))
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


def plan_dynamic(
    plan: WorkerPlan, source: TensorSource, *, shard_bytes: int, still: Collection[int] = ()
) -> WorkerPlan:
    """A worker's plan for one save: `plan`, and further shards for dynamic tensors as they were captured.

    Every worker writes its own ones, the chief also the others. Those that are `still` share a shard with no others.
    Returns `plan` itself where no tensor is dynamic. Reads `source.shape`, and for encoded dtypes how long
    `source.data` is.
    """
    own: list[Piece] = []
    for index, spec in enumerate(source.specs):
        if spec.dynamic and (spec.own or plan.worker == CHIEF):
            encoded = dtypes.is_encoded(spec.dtype)
            shape = (source.data(index).size,) if encoded else source.shape(index)
            own.append((Placed(index, spec.name, spec.dtype, shape, shape, (0,) * len(shape)), boxes.whole(shape)))
    if not own:
        return plan
    shards = group(own, plan.worker, plan.world_size, shard_bytes, at_once=1, still=still, kept=plan.shards)
    return replace(plan, shards=shards, part_counts=_count_parts(shards))


def _share_out(large: Sequence[Placed], world_size: int, small_total: int, small_bytes: int) -> list[list[Piece]]:
    """Each worker's pieces of the large tensors: laid end to end, biggest first, and cut between the workers."""
    shares: list[list[Piece]] = [[] for _ in range(world_size)]
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


def _count_parts(shards: Iterable[PlannedShard]) -> dict[int, int]:
    counts = Counter(piece.tensor for shard in shards for piece in shard.slices)
    return {tensor: count for tensor, count in counts.items() if count > 1}
