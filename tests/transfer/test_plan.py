"""The plan's invariants, by name, over random states, numbers of workers and sizes of shards."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ckptflow.errors import UnsupportedStateError
from ckptflow.format import boxes, dtypes
from ckptflow.format.layout import parse_shard_name
from ckptflow.format.shard import ShardEntry, parse_header
from ckptflow.format.spec import TensorSpec
from ckptflow.transfer.packing import MIN_SHARD_BYTES, SMALL_BYTES
from ckptflow.transfer.plan import WorkerPlan, plan_dynamic, plan_shards
from tests.transfer.helpers import ArraySource, arrays_for


def plan_all(
    specs: Sequence[TensorSpec], world_size: int, shard_bytes: int = MIN_SHARD_BYTES, small_bytes: int = SMALL_BYTES
) -> list[WorkerPlan]:
    return [
        plan_shards(specs, worker=w, world_size=world_size, shard_bytes=shard_bytes, small_bytes=small_bytes)
        for w in range(world_size)
    ]


def storage_shape(spec: TensorSpec, world_size: int) -> tuple[int, ...]:
    return (world_size, *spec.shape) if spec.components else spec.shape


def size_bytes(spec: TensorSpec) -> int:
    return math.prod(spec.shape) * dtypes.item_size_bytes(spec.dtype)


def data_bytes(plan: WorkerPlan) -> int:
    return sum(piece.end - piece.offset for shard in plan.shards for piece in shard.slices)


# ---- the invariants


def covers_exactly_once(specs: Sequence[TensorSpec], plans: Sequence[WorkerPlan]) -> None:
    parts: dict[int, list[boxes.Box]] = {i: [] for i, spec in enumerate(specs) if not spec.dynamic}
    for plan in plans:
        for shard in plan.shards:
            for piece in shard.slices:
                parts[piece.tensor].append((piece.start, piece.shape))
    for index, found in parts.items():
        boxes.check_cover(storage_shape(specs[index], len(plans)), found)


def small_is_the_chiefs_and_whole(specs: Sequence[TensorSpec], plans: Sequence[WorkerPlan], small_bytes: int) -> None:
    for plan in plans:
        for shard in plan.shards:
            for piece in shard.slices:
                spec = specs[piece.tensor]
                if not spec.components and size_bytes(spec) < small_bytes:
                    assert plan.worker == 0


def components_stay_with_their_worker(specs: Sequence[TensorSpec], plans: Sequence[WorkerPlan]) -> None:
    for plan in plans:
        for shard in plan.shards:
            for piece in shard.slices:
                if specs[piece.tensor].components and piece.end > piece.offset:
                    assert (piece.start[0], piece.shape[0]) == (plan.worker, 1)


def is_balanced(specs: Sequence[TensorSpec], plans: Sequence[WorkerPlan], small_bytes: int) -> None:
    loads = [data_bytes(plan) for plan in plans]
    own = sum(size_bytes(spec) for spec in specs if spec.components)
    replicated = [size_bytes(spec) for spec in specs if not spec.components and not spec.dynamic]
    chiefs = own + sum(size for size in replicated if size < small_bytes)
    even = sum(loads) / len(plans)
    if chiefs > even:  # the chief cannot have less than its small ones: the others share the rest
        assert loads[0] == pytest.approx(chiefs, abs=small_bytes / 8 + 128)
        loads, even = loads[1:], sum(loads[1:]) / (len(plans) - 1)
    slack = max(0.05 * even, small_bytes / 8, 128)
    assert all(abs(load - even) <= slack for load in loads), (loads, even)


def shards_are_bounded_and_sound(plans: Sequence[WorkerPlan], shard_bytes: int) -> None:
    names = [shard.name for plan in plans for shard in plan.shards]
    assert len(set(names)) == len(names)
    for plan in plans:
        for shard in plan.shards:
            assert (parse_shard_name(shard.name) or ())[:2] == (plan.worker, plan.world_size)
            assert shard.size_bytes <= shard_bytes
            entries = parse_header(shard.header, shard.size_bytes)
            spans = sorted((piece.offset, piece.end) for piece in shard.slices)
            assert [(entry.begin, entry.end) for entry in entries] == spans


def bookkeeping_agrees(specs: Sequence[TensorSpec], plans: Sequence[WorkerPlan]) -> None:
    for plan in plans:
        counts: dict[int, int] = {}
        for shard in plan.shards:
            for piece in shard.slices:
                counts[piece.tensor] = counts.get(piece.tensor, 0) + 1
        assert {tensor: n for tensor, n in counts.items() if n > 1} == plan.part_counts
        fixed = {i for i, spec in enumerate(specs) if not spec.dynamic}
        assert fixed - set(counts) == set(plan.unused)


def validate_plan(specs: Sequence[TensorSpec], plans: Sequence[WorkerPlan], shard_bytes: int, small_bytes: int) -> None:
    covers_exactly_once(specs, plans)
    small_is_the_chiefs_and_whole(specs, plans, small_bytes)
    components_stay_with_their_worker(specs, plans)
    is_balanced(specs, plans, small_bytes)
    shards_are_bounded_and_sound(plans, shard_bytes)
    bookkeeping_agrees(specs, plans)


# ---- held against them

fixed_dtypes = st.sampled_from([name for name in dtypes.names() if not dtypes.is_encoded(name)])
shapes = (
    st.lists(st.integers(0, 9), max_size=4).map(tuple)
    | st.tuples(st.integers(1, 4), st.integers(1, 60_000))
    | st.tuples(st.integers(1, 300_000))
    | st.tuples(*[st.integers(2, 9)] * 5)
)


@st.composite
def states(draw: st.DrawFn) -> list[TensorSpec]:
    found = draw(
        st.lists(
            st.tuples(
                fixed_dtypes, shapes, st.sampled_from([None, None, "sum"]), st.sampled_from([False] * 5 + [True])
            ),
            max_size=7,
        )
    )
    return [
        TensorSpec(f"t{i}", dtype, (), dynamic=True) if dynamic else TensorSpec(f"t{i}", dtype, shape, components=kind)
        for i, (dtype, shape, kind, dynamic) in enumerate(found)
    ]


@given(states(), st.integers(1, 7), st.sampled_from([2**16, 2**18, 2**22]), st.sampled_from([0, 2**10, 2**14, 2**20]))
def test_every_plan_holds(specs: list[TensorSpec], world_size: int, shard_bytes: int, small_bytes: int) -> None:
    plans = plan_all(specs, world_size, shard_bytes, small_bytes)
    validate_plan(specs, plans, shard_bytes, small_bytes)
    assert plan_all(specs, world_size, shard_bytes, small_bytes) == plans


@pytest.mark.parametrize("world_size", [2, 3, 8, 64])
@pytest.mark.parametrize(
    "shapes",
    [
        [(50_000, 512)],
        [(3, 3, 512, 512)] * 8,
        [(2,) * 22],  # no axis is long enough: cut within one index again and again
        [(2, 3, 1, 40, 5, 2, 7, 3, 11, 5)] * 9,
        [(30, 30, 30, 30, 7)],
        [(7, 1_000_003)],
        [(1_000_000,)] * 20 + [(64, 64)] * 500,
    ],
    ids=lambda value: str(value)[:40],
)
def test_large_states_are_balanced(shapes: list[tuple[int, ...]], world_size: int) -> None:
    specs = [TensorSpec(f"t{i}", "float32", shape) for i, shape in enumerate(shapes)]
    plans = plan_all(specs, world_size, 2**24)
    validate_plan(specs, plans, 2**24, SMALL_BYTES)
    slices = [piece for plan in plans for shard in plan.shards for piece in shard.slices]
    assert len(slices) <= len(specs) + 50 * world_size


def test_slices_are_multiples_of_64_bytes_where_they_can_be() -> None:
    specs = [TensorSpec("a", "float32", (100_000, 10)), TensorSpec("b", "bfloat16", (3_000_000,))]
    plans = plan_all(specs, 5, 2**20)
    sizes = [piece.end - piece.offset for plan in plans for shard in plan.shards for piece in shard.slices]
    assert sum(size % 64 != 0 for size in sizes) <= len(specs)


def test_shards_are_a_multiple_of_those_that_are_written_together() -> None:
    """33 of the largest size would leave one for the end: two rounds of 16 to 32 take less time."""
    specs = [TensorSpec(f"t{i}", "float32", (2**15,)) for i in range(33)]

    def counted(at_once: int) -> int:
        plan = plan_shards(specs, worker=0, world_size=1, shard_bytes=2**17 + 2**12, at_once=at_once)
        assert max(shard.size_bytes for shard in plan.shards) <= 2**17 + 2**12
        return len(plan.shards)

    assert counted(1) == counted(40) == 33
    assert 56 <= counted(32) <= 64
    assert 44 <= counted(16) <= 48


def rounds_bytes(plan: WorkerPlan, at_once: int) -> int:
    """How long the shards take, so many at a time."""
    return -(-len(plan.shards) // at_once) * max((shard.size_bytes for shard in plan.shards), default=0)


@given(
    st.lists(st.tuples(st.integers(1, 2**20), st.integers(1, 120)), min_size=1, max_size=3),
    st.integers(2, 32),
    st.sampled_from([2**17, 2**19]),
)
@settings(max_examples=25)  # each makes some plans
@example([(2**20 * 13 // 16, 65)], 32, 2**20)
@example([(2**17, 1024)], 32, 2**20)
def test_a_save_takes_no_longer_for_it(sizes: list[tuple[int, int]], at_once: int, shard_bytes: int) -> None:
    """Also where tensors are not cut for a little room at a shard's end."""
    lengths = [length for length, count in sizes for _ in range(count)]
    specs = [TensorSpec(f"t{i}", "uint8", (length,)) for i, length in enumerate(lengths)]
    plain, even = (plan_shards(specs, worker=0, world_size=1, shard_bytes=shard_bytes, at_once=n) for n in (1, at_once))
    assert rounds_bytes(even, at_once) <= rounds_bytes(plain, at_once)
    assert len(even.shards) < len(plain.shards) + at_once
    validate_plan(specs, [even], shard_bytes, SMALL_BYTES)


def test_tensors_that_fit_are_not_cut() -> None:
    specs = [TensorSpec(f"t{i}", "float32", (4096,)) for i in range(100)]
    plan = plan_shards(specs, worker=0, world_size=1, shard_bytes=2**19)
    assert not plan.part_counts
    assert len(plan.shards) == 4
    assert max(s.size_bytes for s in plan.shards) < 1.3 * min(s.size_bytes for s in plan.shards)


def test_the_chiefs_small_ones_count_against_its_share() -> None:
    specs = [TensorSpec("large", "uint8", (8_000_000,))] + [TensorSpec(f"s{i}", "uint8", (500_000,)) for i in range(4)]
    plans = plan_all(specs, 4, 2**24)
    assert [round(data_bytes(plan) / 1e6, 1) for plan in plans] == [2.5, 2.5, 2.5, 2.5]
    many = [specs[0]] + [TensorSpec(f"s{i}", "uint8", (1_000_000,)) for i in range(9)]
    plans = plan_all(many, 3, 2**24)
    assert [round(data_bytes(plan) / 1e6, 1) for plan in plans] == [9.0, 4.0, 4.0]


def test_one_worker_writes_all() -> None:
    specs = [TensorSpec("a", "float32", (1000, 1000)), TensorSpec("c", "float32", (3,), components="mean")]
    validate_plan(specs, plan_all(specs, 1), MIN_SHARD_BYTES, SMALL_BYTES)


def test_nothing_to_write() -> None:
    assert all(plan.shards == () and plan.unused == () for plan in plan_all([], 3))


@pytest.mark.parametrize("name", ["", "n" * 5000, "\ud800"])
def test_a_name_that_no_header_holds_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedStateError, match="change the key"):
        plan_all([TensorSpec(name, "int8", (2,))], 1)


def test_the_longest_names_and_shapes_fit_the_smallest_shards() -> None:
    specs = [TensorSpec("\x01" * 4090 + str(i), "complex128", (1,) * 60 + (3, 3, 300)) for i in range(3)]
    validate_plan(specs, plan_all(specs, 2, small_bytes=0), MIN_SHARD_BYTES, 0)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="at least"):
        plan_shards([], worker=0, world_size=1, shard_bytes=MIN_SHARD_BYTES - 1)
    with pytest.raises(ValueError, match="worker 2 does not exist"):
        plan_shards([], worker=2, world_size=2, shard_bytes=MIN_SHARD_BYTES)


def test_dynamic_tensors_get_further_shards_of_the_chief() -> None:
    specs = [
        TensorSpec("w", "float32", (10,)),
        TensorSpec("keys", "int64", (), dynamic=True),
        TensorSpec("words", "string", (), dynamic=True),
    ]
    captured = [specs[0], TensorSpec("keys", "int64", (50_000,)), TensorSpec("words", "string", (9,))]
    source = ArraySource(specs, arrays_for(captured))
    plan = plan_shards(specs, worker=0, world_size=2, shard_bytes=2**16)
    full = plan_dynamic(plan, source, shard_bytes=2**16)
    assert full.shards[: len(plan.shards)] == plan.shards
    shards_are_bounded_and_sound([full], 2**16)
    parts = {i: [(p.start, p.shape) for s in full.shards for p in s.slices if p.tensor == i] for i in range(3)}
    boxes.check_cover((50_000,), parts[1])
    boxes.check_cover((source.data(2).size,), parts[2])
    assert full.part_counts[1] == len(parts[1]) > 1
    assert full.unused == ()


def test_without_dynamic_tensors_the_plan_stays_the_same_object() -> None:
    specs = [TensorSpec("w", "float32", (10,))]
    plan = plan_shards(specs, worker=0, world_size=1, shard_bytes=2**16)
    assert plan_dynamic(plan, ArraySource(specs, arrays_for(specs)), shard_bytes=2**16) is plan


def test_an_empty_tensor_with_components_is_one_slice_of_the_chief() -> None:
    specs = [TensorSpec("c", "float32", (0, 3), components="sum")]
    plans = plan_all(specs, 3)
    assert [len(plan.shards) for plan in plans] == [1, 0, 0]
    assert plans[0].shards[0].slices[0].shape == (3, 0, 3)
    entry = ShardEntry("c", "float32", (3, 0, 3), (0, 0, 0), (3, 0, 3))
    assert entry.key == "c"
