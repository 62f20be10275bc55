"""The same slices in other shards: what does not change apart from what does, and shards of the former left alone.

A shard that an earlier checkpoint holds can be copied from there only as a whole. So the shards that hold nothing but
what is still stay as they are, byte for byte, whatever else moves: in the next save, and after a restart. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ckptflow.format import boxes
from ckptflow.format.boxes import Box
from ckptflow.format.layout import parse_shard_name, shard_name
from ckptflow.format.manifest import Manifest
from ckptflow.format.spec import TensorSpec
from ckptflow.transfer.packing import Piece, Placed, PlannedShard, plan_shard
from ckptflow.transfer.plan import WorkerPlan, group, plan_of

_APART_BYTES = 2**20  # less of what is still is not worth shards of its own,
_APART_SHARE = 64  # nor a smaller share of all that a worker writes


@dataclass(frozen=True, slots=True)
class OldShard:
    """A shard of an earlier plan: its name without a tag, and its slices, by tensor and box, in the file's order."""

    name: str
    slices: tuple[tuple[str, Box], ...]
    is_still: bool


def shards_of(plan: WorkerPlan) -> list[OldShard]:
    """The shards of a plan."""
    return [
        OldShard(shard.name, tuple((piece.name, (piece.start, piece.shape)) for piece in shard.slices), shard.is_still)
        for shard in plan.shards
    ]


def shards_in(manifest: Manifest, worker: int, world_size: int) -> list[OldShard]:
    """The shards that this worker wrote of a checkpoint; none where there were more workers then, or fewer."""
    slices: dict[int, list[tuple[int, str, Box]]] = {}
    for tensor in manifest.tensors:
        for piece in tensor.slices:
            slices.setdefault(piece.shard, []).append((piece.offset, tensor.name, (piece.start, piece.shape)))
    found = []
    for index, record in enumerate(manifest.shards):
        parsed = parse_shard_name(record.name)
        if parsed is not None and parsed[:2] == (worker, world_size):
            held = sorted(slices.get(index, ()), key=lambda each: each[0])
            boxes_held = tuple((tensor, box) for _, tensor, box in held)
            found.append(OldShard(shard_name(*parsed), boxes_held, record.content is not None))
    return found


def needs_regrouping(plan: WorkerPlan, still: Collection[int]) -> bool:
    """Whether a shard of what was still holds what is not any more, or enough is still by now in the others."""
    if not still:
        return any(shard.is_still for shard in plan.shards)
    if any(piece.tensor not in still for shard in plan.shards if shard.is_still for piece in shard.slices):
        return True
    outside_bytes = sum(
        piece.end - piece.offset
        for shard in plan.shards
        if not shard.is_still
        for piece in shard.slices
        if piece.tensor in still
    )
    return _is_enough(outside_bytes, plan)


def is_worth_it(plan: WorkerPlan) -> bool:
    """Whether there is enough that is still for shards of its own, which cost requests."""
    return _is_enough(sum(shard.size_bytes for shard in plan.shards if shard.is_still), plan)


def _is_enough(size_bytes: int, plan: WorkerPlan) -> bool:
    return size_bytes >= max(_APART_BYTES, plan.size_bytes // _APART_SHARE)


def regroup(
    base: WorkerPlan,
    specs: Sequence[TensorSpec],
    old: Sequence[OldShard],
    still: Collection[int],
    *,
    shard_bytes: int,
    at_once: int = 1,
) -> WorkerPlan:
    """The slices of `base` in shards in which no tensor that is `still` is beside one that is not.

    Those of the `old` shards that hold nothing but what is still, then and now, stay exactly as they are. Where the old
    slices of a tensor are not the same elements as those of `base`, it counts as new.
    """
    planned: dict[str, list[Piece]] = {}
    for held, box in base.pieces:
        planned.setdefault(held.name, []).append((held, box))
    before: dict[str, list[Box]] = {}
    for each in old:
        for name, box in each.slices:
            before.setdefault(name, []).append(box)
    same = {name for name, pieces in planned.items() if _is_same(pieces, before.get(name, []))}

    def place(name: str, box: Box) -> Piece:
        return next(held for held, _ in planned[name] if _holds(held, box)), box

    kept: list[PlannedShard] = []
    cut: list[tuple[str, Box]] = []
    for each in old:
        shard: PlannedShard | None = None
        if each.is_still and each.slices and all(name in same for name, _ in each.slices):
            pieces = [place(*piece) for piece in each.slices]
            if all(held.index in still for held, _ in pieces):
                shard = plan_shard(each.name, pieces, is_still=True)
        if shard is not None and shard.size_bytes <= shard_bytes:
            kept.append(shard)
        else:
            cut += each.slices
    # What is in kept shards in part stays as it was cut; all else is whole again, so that readers find it in one place.
    bound = {piece.name for shard in kept for piece in shard.slices}
    pieces = [place(name, box) for name, box in cut if name in bound]
    pieces += [piece for name, whole in planned.items() if name not in bound for piece in whole]
    shards = group(pieces, base.worker, base.world_size, shard_bytes, at_once=at_once, still=still, kept=kept)
    return plan_of(specs, shards, base.pieces, base.worker, base.world_size)


def _holds(held: Placed, box: Box) -> bool:
    """Whether all of a box is in what this worker holds there; a tensor may have had another rank before."""
    return len(box[0]) == len(held.origin) and all(
        origin <= start and start + extent <= origin + size
        for origin, size, start, extent in zip(held.origin, held.held_shape, *box, strict=True)
    )


def _is_same(pieces: Sequence[Piece], others: Sequence[Box]) -> bool:
    """Whether these boxes have the very elements of those pieces, each in one of what is held. Neither overlap."""
    some = [box for _, box in pieces]
    if sorted(some) == sorted(others):
        return True
    if not all(any(_holds(held, box) for held, _ in pieces) for box in others):
        return False
    if sum(boxes.volume(shape) for _, shape in some) != sum(boxes.volume(shape) for _, shape in others):
        return False
    shared = (boxes.intersect(a, b) for a in some for b in others)
    return sum(boxes.volume(each[0]) for each in shared if each) == sum(boxes.volume(shape) for _, shape in some)
