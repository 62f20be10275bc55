"""Box arithmetic against a brute-force oracle: an array that counts how often each element is covered."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptflow.format import boxes
from ckptflow.format.boxes import Box

shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
full_shapes = st.lists(st.integers(1, 6), max_size=4).map(tuple)


def counts(shape: tuple[int, ...], parts: list[Box]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    covered = np.zeros(shape, np.int64)
    for start, extents in parts:
        covered[tuple(slice(at, at + n) for at, n in zip(start, extents, strict=True))] += 1
    return covered


@st.composite
def boxes_in(draw: st.DrawFn, shape: tuple[int, ...]) -> Box:
    start = tuple(draw(st.integers(0, max(n - 1, 0))) for n in shape)
    return start, tuple(draw(st.integers(0, n - at)) for n, at in zip(shape, start, strict=True))


@st.composite
def tilings(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Box]]:
    """A shape and boxes that tile it, cut again and again at random."""
    shape = draw(full_shapes)
    parts = [boxes.whole(shape)]
    for _ in range(draw(st.integers(0, 8))):
        box = parts.pop(draw(st.integers(0, len(parts) - 1)))
        axes = [axis for axis, n in enumerate(box[1]) if n > 1]
        if not axes:
            parts.append(box)
            continue
        axis = draw(st.sampled_from(axes))
        at = draw(st.integers(1, box[1][axis] - 1))
        parts += [boxes.take(box, axis, 0, at), boxes.take(box, axis, at, box[1][axis])]
    return shape, draw(st.permutations(parts))


@given(tilings())
def test_a_tiling_covers(tiling: tuple[tuple[int, ...], list[Box]]) -> None:
    boxes.check_cover(*tiling)


@given(st.data())
def test_a_cover_is_told_from_what_is_none(data: st.DataObject) -> None:
    shape, parts = data.draw(tilings())
    match data.draw(st.sampled_from(["drop", "double", "move", "random"])):
        case "drop":
            parts = parts[1:]
        case "double":
            parts = [*parts, parts[0]]
        case "move":
            parts = [data.draw(boxes_in(shape)), *parts[1:]]
        case "random":
            parts = data.draw(st.lists(boxes_in(shape), max_size=4))
    expected = bool((counts(shape, parts) == 1).all()) and all(math.prod(part[1]) for part in parts)
    try:
        boxes.check_cover(shape, parts)
        assert expected
    except ValueError:
        assert not expected


def test_a_pinwheel_is_a_cover_though_no_straight_cut_parts_it() -> None:
    pinwheel = [((0, 0), (1, 2)), ((0, 2), (2, 1)), ((2, 1), (1, 2)), ((1, 0), (2, 1)), ((1, 1), (1, 1))]
    boxes.check_cover((3, 3), pinwheel)
    with pytest.raises(ValueError, match="exactly once"):
        boxes.check_cover((3, 3), pinwheel[:-1])


@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        ((4,), []),
        ((4,), [((0,), (4,)), ((4,), (0,))]),
        ((4,), [((0,), (5,))]),
        ((4,), [((-1,), (5,))]),
        ((4,), [((0, 0), (4, 1))]),
        ((4,), [((0,), (2,)), ((1,), (3,))]),
        ((), []),
        ((), [((), ()), ((), ())]),
        ((0, 3), []),
        ((0, 3), [((0, 0), (0, 2))]),
        ((0, 3), [((0, 0), (0, 3)), ((0, 0), (0, 3))]),
        ((2,) * 7, [boxes.take(((0,) * 7, (2,) * 7), axis, 0, 1) for axis in range(7)]),
        ((2,) * 8, [((0,) * 8, (1,) * 8), ((0,) * 7 + (1,), (2,) * 7 + (1,))]),
    ],
)
def test_what_is_no_cover(shape: tuple[int, ...], parts: list[Box]) -> None:
    with pytest.raises(ValueError):
        boxes.check_cover(shape, parts)


def test_empty_and_scalar_tensors_have_one_slice() -> None:
    boxes.check_cover((0, 3), [((0, 0), (0, 3))])
    boxes.check_cover((), [((), ())])


def test_many_slices_and_huge_numbers_take_no_memory() -> None:
    n = 20_000
    boxes.check_cover((n, 7), [((i, 0), (1, 7)) for i in reversed(range(n))])
    boxes.check_cover((100, 100), [((i, j), (1, 1)) for i in range(100) for j in range(100)])
    boxes.check_cover((2**62, 2**62), [((0, 0), (2**61, 2**62)), ((2**61, 0), (2**61, 2**62))])


@given(full_shapes, st.integers(1, 40))
def test_split_cuts_any_box_down(shape: tuple[int, ...], max_elements: int) -> None:
    parts = boxes.split(boxes.whole(shape), max_elements)
    assert (counts(shape, parts) == 1).all()
    assert all(math.prod(part[1]) <= max_elements for part in parts)


@given(st.integers(1, 300), st.integers(1, 20))
def test_many_short_axes_are_cut_into_runs_that_can_be_checked(max_elements: int, slack: int) -> None:
    shape = (1, 2, 2, 1, 2, 2, 2, 2, 2, 3)
    parts = boxes.split(boxes.whole(shape), max_elements)
    boxes.check_cover(shape, parts)
    assert all(boxes.is_contiguous(shape, part[1]) for part in parts)
    head, tail = boxes.divide(boxes.whole(shape), max_elements, slack=slack, step=4)
    boxes.check_cover(shape, [*head, *tail])


def test_split_takes_the_first_axis_that_is_long_enough() -> None:
    assert boxes.split(((0, 0), (64, 10)), 320) == [((0, 0), (32, 10)), ((32, 0), (32, 10))]
    assert {part[1] for part in boxes.split(((0, 0), (2, 100)), 40)} == {(2, 20)}
    with pytest.raises(ValueError, match="at least one"):
        boxes.split(((0,), (4,)), 0)


@given(full_shapes, st.integers(0, 1300), st.integers(1, 50), st.integers(1, 8))
def test_divide_comes_within_slack(shape: tuple[int, ...], elements: int, slack: int, step: int) -> None:
    head, tail = boxes.divide(boxes.whole(shape), elements, slack=slack, step=step)
    assert (counts(shape, [*head, *tail]) == 1).all()
    taken, total = sum(math.prod(part[1]) for part in head), math.prod(shape)
    assert taken <= elements
    assert taken == total or taken > elements - slack


@given(full_shapes, st.data())
def test_intersect_against_index_arrays(shape: tuple[int, ...], data: st.DataObject) -> None:
    a, b = data.draw(boxes_in(shape)), data.draw(boxes_in(shape))
    both = (counts(shape, [a]) + counts(shape, [b])) == 2
    found = boxes.intersect(a, b)
    if found is None:
        assert not both.any()
        return
    extents, in_a, in_b = found
    for box, within in ((a, in_a), (b, in_b)):
        origin = tuple(at + to for at, to in zip(box[0], within, strict=True))
        assert (counts(shape, [(origin, extents)]).astype(bool) == both).all()


@given(full_shapes, st.data())
def test_runs_are_the_elements_in_order(shape: tuple[int, ...], data: st.DataObject) -> None:
    total = math.prod(shape)
    begin = data.draw(st.integers(0, total))
    end = data.draw(st.integers(begin, total))
    numbers = np.arange(total).reshape(shape)
    found = [
        numbers[tuple(slice(at, at + n) for at, n in zip(start, extents, strict=True))].reshape(-1).tolist()
        for start, extents in boxes.runs(shape, begin, end)
    ]
    assert list(itertools.chain.from_iterable(found)) == list(range(begin, end))
    assert len(found) <= max(1, 2 * len(shape) - 1)


@given(full_shapes, st.data())
def test_contiguous_boxes_are_one_run(shape: tuple[int, ...], data: st.DataObject) -> None:
    start, extents = data.draw(boxes_in(shape).filter(lambda box: math.prod(box[1]) > 0))
    numbers = np.arange(math.prod(shape)).reshape(shape)
    part = numbers[tuple(slice(at, at + n) for at, n in zip(start, extents, strict=True))].reshape(-1)
    begin = boxes.row_major_offset(shape, start)
    is_run = part.tolist() == list(range(begin, begin + part.size))
    assert boxes.is_contiguous(shape, extents) == is_run


@given(shapes, st.data())
def test_spans_are_the_runs_of_a_box(shape: tuple[int, ...], data: st.DataObject) -> None:
    start, extents = data.draw(boxes_in(shape))
    numbers = np.arange(math.prod(shape)).reshape(shape)
    part = numbers[tuple(slice(at, at + n) for at, n in zip(start, extents, strict=True))].reshape(-1).tolist()
    spans = list(boxes.spans(shape, (start, extents)))
    assert [there + i for there, _, count in spans for i in range(count)] == part
    assert [here for _, here, _ in spans] == list(itertools.accumulate((count for *_, count in spans), initial=0))[:-1]
    if part and boxes.is_contiguous(shape, extents):
        assert len({there - here for there, here, _ in spans}) == 1
