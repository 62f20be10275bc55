"""Shards of what is still: apart from the others, and the same bytes for as long as it is."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

from hypothesis import given
from hypothesis import strategies as st

from ckptflow.format.spec import TensorSpec
from ckptflow.transfer.packing import MIN_SHARD_BYTES, PlannedShard
from ckptflow.transfer.plan import WorkerPlan, plan_shards
from ckptflow.transfer.regroup import needs_regrouping, regroup, shards_in, shards_of
from ckptflow.transfer.sources import Sources
from tests.transfer.helpers import ArraySource, DictStore, arrays_for, write_checkpoint
from tests.transfer.test_plan import bookkeeping_agrees, covers_exactly_once, shards_are_bounded_and_sound, states


def by_header(plan: WorkerPlan, still: Collection[int]) -> dict[bytes, PlannedShard]:
    """The still shards that hold nothing but what is still."""
    held = [shard for shard in plan.shards if shard.is_still]
    return {shard.header: shard for shard in held if all(piece.tensor in still for piece in shard.slices)}


def is_apart(plan: WorkerPlan, still: Collection[int]) -> bool:
    return all((piece.tensor in still) is shard.is_still for shard in plan.shards for piece in shard.slices)


@given(states(), st.integers(1, 4), st.lists(st.sets(st.integers(0, 12)), min_size=1, max_size=4), st.booleans())
def test_whatever_becomes_still_or_moves_again(
    specs: list[TensorSpec], world_size: int, stills: list[set[int]], is_anew: bool
) -> None:
    """Every plan covers the state, no shard is of both kinds, and no shard is touched that need not be."""
    size = {"shard_bytes": MIN_SHARD_BYTES}
    plans = [
        plan_shards(specs, worker=w, world_size=world_size, small_bytes=2**10, still=stills[0], **size)
        for w in range(world_size)
    ]
    for before, still in itertools.pairwise(stills):
        bases = plans
        if is_anew:  # as when the objects are walked again, or more streams pay
            bases = [
                plan_shards(specs, worker=w, world_size=world_size, small_bytes=2**10, at_once=4, still=still, **size)
                for w in range(world_size)
            ]
        found = [regroup(base, specs, shards_of(plan), still, **size) for base, plan in zip(bases, plans, strict=True)]
        covers_exactly_once(specs, found)
        shards_are_bounded_and_sound(found, MIN_SHARD_BYTES)
        bookkeeping_agrees(specs, found)
        for plan, now in zip(plans, found, strict=True):
            assert is_apart(now, still)
            assert not needs_regrouping(now, still)
            kept = by_header(plan, set(before) & still)
            assert kept.items() <= {shard.header: shard for shard in now.shards}.items()
        plans = found


def test_after_a_restart_the_shards_are_those_of_the_checkpoint() -> None:
    """Also those that an earlier regrouping has left, which no plan would make by itself."""
    specs = [TensorSpec(f"t{i}", "float32", (20_000 + i,)) for i in range(9)]
    size = {"shard_bytes": 2**18}
    first = plan_shards(specs, worker=0, world_size=1, still={0, 1, 2, 3, 4, 5}, **size)
    plan = regroup(first, specs, shards_of(first), {0, 1, 2, 4, 5, 8}, **size)
    store, source = DictStore(), ArraySource(specs, arrays_for(specs))
    manifest = write_checkpoint(store, [source], plans=[plan], earlier=Sources(), shard_bytes=2**18)
    found = shards_in(manifest, 0, 1)
    assert found == shards_of(plan)
    base = plan_shards(specs, worker=0, world_size=1, still={0, 1, 2, 4, 5, 8}, **size)
    again = regroup(base, specs, found, {0, 1, 2, 4, 5, 8}, **size)
    assert by_header(again, range(9)) == by_header(plan, range(9))
    assert shards_in(manifest, 0, 2) == []


def test_blocks_that_are_cut_otherwise_count_as_new() -> None:
    """Of a mesh of another form nothing is taken over, even where the elements are the same."""

    def blocks(*boxes: tuple[tuple[int, ...], tuple[int, ...]]) -> Sequence[TensorSpec]:
        return [TensorSpec("t", "float32", (64, 512), box=box) for box in boxes]

    size = {"shard_bytes": 2**18}
    one = blocks(((0, 0), (64, 512)))
    two = blocks(((0, 0), (32, 512)), ((32, 0), (32, 512)))
    old = plan_shards(one, worker=0, world_size=1, still={0}, **size)
    base = plan_shards(two, worker=0, world_size=1, still={0, 1}, **size)
    again = regroup(base, two, shards_of(old), {0, 1}, **size)
    covers = sorted((piece.start, piece.shape) for shard in again.shards for piece in shard.slices)
    assert covers == [((0, 0), (32, 512)), ((32, 0), (32, 512))]
