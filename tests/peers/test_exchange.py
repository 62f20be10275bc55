"""The plan of who reads what for whom: pure, and the same on every worker."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from ckptflow.format.manifest import Manifest, ShardRecord, SliceRecord, TensorRecord
from ckptflow.format.spec import Wanted
from ckptflow.peers.exchange import (
    LEAST_RANGE_BYTES,
    SharedRange,
    Terms,
    agree_on_plan,
    in_turn_of,
    pack,
    plan_exchange,
    unpack,
    wants_of,
)
from ckptflow.transfer.ranges import plan_ranges
from tests.transfer.helpers import FOLDER

MIB = 2**20


def manifest_of(sizes: list[int], per_shard: int = 3) -> Manifest:
    """Tensors of so many bytes, whole, some in a shard."""
    shards: list[int] = []
    tensors = []
    for number, size in enumerate(sizes):
        if number % per_shard == 0:
            shards.append(64)
        piece = SliceRecord(shard=len(shards) - 1, offset=shards[-1], start=(0,), shape=(size,), crc32c=0)
        tensors.append(TensorRecord(name=f"t{number}", dtype="uint8", shape=(size,), slices=(piece,)))
        shards[-1] += size
    return Manifest(
        folder=str(FOLDER),
        step=FOLDER.step,
        incarnation=FOLDER.incarnation,
        run_id="r",
        writer_id="w",
        created_at="",
        world_size=1,
        reason="start",
        shards=tuple(
            ShardRecord(name=f"shard-00000-of-00001-{i:05d}.safetensors", size_bytes=size, crc32c=0)
            for i, size in enumerate(shards)
        ),
        tensors=tuple(tensors),
    )


def owned_bytes(plan: tuple[SharedRange, ...], world_size: int) -> list[int]:
    found = Counter(dict.fromkeys(range(world_size), 0))
    for each in plan:
        found[each.owner] += each.range.end - each.range.begin
    return [found[worker] for worker in range(world_size)]


@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_equal_wants_are_divided_evenly_into_long_ranges(world_size: int) -> None:
    manifest = manifest_of([8 * MIB] * 100 + [1000] * 500, per_shard=100)
    plan = plan_exchange(manifest, [np.ones(600, np.bool_)] * world_size, [True] * world_size, 8 * MIB + 4096)
    shares = owned_bytes(plan, world_size)
    assert 800 * MIB + 500_000 <= sum(shares) <= 801 * MIB
    assert max(shares) - min(shares) <= 8 * MIB
    assert len(plan) <= 110  # small ones come together
    assert [each.row for each in plan] == sorted(each.row for each in plan)
    assert {each.owner for each in plan[:world_size]} == set(range(world_size))


def test_a_neighbour_is_asked_first_so_that_nobody_is_asked_by_all() -> None:
    plan = plan_exchange(manifest_of([MIB] * 12), [np.ones(12, np.bool_)] * 4, [True] * 4, MIB + 4096)
    first = [in_turn_of(worker, 4, plan)[0].owner for worker in range(4)]
    assert first == [1, 2, 3, 0]
    assert [each.row for each in in_turn_of(1, 4, plan)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_who_cannot_serve_gets_and_reads_nothing_for_others() -> None:
    plan = plan_exchange(manifest_of([MIB] * 12), [np.ones(12, np.bool_)] * 3, [True, False, True], MIB + 4096)
    assert {each.owner for each in plan} == {0, 2}
    assert all(1 in each.wanters for each in plan)
    assert plan_exchange(manifest_of([MIB]), [np.ones(1, np.bool_)] * 2, [False, False], MIB) == ()


def test_without_room_for_two_buffers_or_with_nonsense_nobody_shares() -> None:
    manifest = manifest_of([MIB] * 8)
    bits = pack(np.ones(8, np.bool_))
    fine = Terms(address="127.0.0.1", port=1, buffer_bytes=MIB + 4096, buffer_count=2, rest=bits, early=bits)
    assert agree_on_plan(manifest, [fine, fine], "rest")
    assert agree_on_plan(manifest, [fine, fine], "early")
    for odd in (
        Terms(address="127.0.0.1", port=1, buffer_bytes=MIB, buffer_count=1, rest=bits),
        Terms(address="127.0.0.1", port=1, buffer_bytes=1, buffer_count=2, rest=bits),
        Terms(address="127.0.0.1", port=2**16, buffer_bytes=MIB, buffer_count=2, rest=bits),
        Terms(address="127.0.0.1", port=1, buffer_bytes=MIB, buffer_count=2, rest=b"no"),
        Terms(address="127.0.0.1", port=1, buffer_bytes=MIB, buffer_count=2, rest=pack(np.ones(80, np.bool_))),
    ):
        assert agree_on_plan(manifest, [fine, odd], "rest") == ()
    smaller = Terms(address="127.0.0.1", port=1, buffer_bytes=2**16, buffer_count=2, rest=bits)
    assert max(each.range.end - each.range.begin for each in agree_on_plan(manifest, [fine, smaller], "rest")) <= 2**16


@pytest.mark.parametrize("room_bytes", [1, 4096 - 64, 4096 + 2])
def test_a_buffer_without_room_for_an_element_ends_no_plan(room_bytes: int) -> None:
    """One that begins in the middle of a page, of which a buffer has all that is before it as well."""
    piece = SliceRecord(shard=0, offset=4094, start=(0,), shape=(MIB,), crc32c=0)
    manifest = manifest_of([MIB])
    tensor = replace(manifest.tensors[0], dtype="complex128", slices=(piece,))
    with pytest.raises(ValueError, match="holds nothing from byte 4094 on"):
        plan_ranges(replace(manifest, tensors=(tensor,)), [(0, piece)], room_bytes)


def test_wants_are_some_bytes_where_all_want_all() -> None:
    assert len(pack(np.ones(100_000, np.bool_))) < 100
    with pytest.raises(ValueError, match="bits"):
        unpack(pack(np.ones(10**6, np.bool_)), 100)  # no more is unpacked than is expected


def test_a_box_wants_the_slices_that_it_touches() -> None:
    manifest = manifest_of([10, 20, 30])
    assert wants_of(manifest, [Wanted(0), Wanted(2, ((0,), (0,)))]).tolist() == [True, False, False]
    assert wants_of(manifest, [Wanted(2, ((5,), (5,)))]).tolist() == [False, False, True]


@st.composite
def jobs(draw: st.DrawFn) -> tuple[list[int], list[list[bool]], list[bool], int]:
    world_size = draw(st.integers(1, 5))
    sizes = draw(st.lists(st.sampled_from([0, 1, 4096, 100_000, MIB, 5 * MIB]), min_size=1, max_size=24))
    columns = st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes))
    wants = draw(st.lists(columns, min_size=world_size, max_size=world_size))
    if draw(st.booleans()):
        wants = [wants[0]] * world_size
    return (
        sizes,
        wants,
        draw(st.lists(st.booleans(), min_size=world_size, max_size=world_size)),
        draw(st.sampled_from([2**16, MIB, 8 * MIB])),
    )


@settings(max_examples=100)
@given(jobs())
def test_each_byte_that_two_want_has_one_owner_that_wants_it(
    job: tuple[list[int], list[list[bool]], list[bool], int],
) -> None:
    sizes, rows, can_serve, buffer_bytes = job
    manifest = manifest_of(sizes)
    wants = [np.asarray(row, np.bool_) for row in rows]
    plan = plan_exchange(manifest, wants, can_serve, buffer_bytes)
    covered: Counter[tuple[int, int]] = Counter()  # (tensor, byte of it where a part begins) -> length
    for each in plan:
        assert each.range.end - each.range.begin <= buffer_bytes
        assert can_serve[each.owner]
        assert each.owner in each.wanters
        assert len(each.wanters) > 1
        for part in each.range.parts:
            assert each.wanters == {worker for worker, row in enumerate(rows) if row[part.tensor]}
            assert (part.tensor, part.begin) not in covered
            covered[part.tensor, part.begin] = part.end - part.begin
    for tensor, size in enumerate(sizes):
        wanters = [worker for worker, row in enumerate(rows) if row[tensor]]
        is_shared = len(wanters) > 1 and any(can_serve[worker] for worker in wanters)
        parts = sum(length for (index, _), length in covered.items() if index == tensor)
        assert parts == (size if is_shared else 0)
    for owner in range(len(rows)):
        assert [each.row for each in plan if each.owner == owner] == list(
            range(sum(each.owner == owner for each in plan))
        )
        pulled = in_turn_of(owner, len(rows), plan)
        assert sorted(map(id, pulled)) == sorted(
            id(each) for each in plan if owner in each.wanters and each.owner != owner
        )
    if len({tuple(row) for row in rows}) == 1 and all(can_serve) and len(rows) > 1:
        shares = owned_bytes(plan, len(rows))
        largest = min(max(sizes) + 4096, buffer_bytes)
        assert max(shares) - min(shares) <= max(0.05 * max(shares), largest, LEAST_RANGE_BYTES)
