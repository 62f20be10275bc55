"""Hyper-rectangles: the arithmetic of slices. Pure; a box is (start, shape), counted in elements."""

from __future__ import annotations

import hashlib
import itertools
import math
import secrets
from collections.abc import Iterator, Sequence

Box = tuple[tuple[int, ...], tuple[int, ...]]

# Tensors of more axes than this are only ever cut into runs of elements, and other slices of them are refused.
MAX_CUT_AXES = 6
_PRIME = 2**127 - 1


def volume(shape: Sequence[int]) -> int:
    """How many elements a shape holds; 1 for a scalar."""
    return math.prod(shape)


def whole(shape: Sequence[int]) -> Box:
    """The box that is all of a tensor of this shape."""
    return (0,) * len(shape), tuple(shape)


def is_contiguous(shape: Sequence[int], part: Sequence[int]) -> bool:
    """Whether a box of shape `part`, wherever it starts, is one run of elements in a row-major tensor of `shape`."""
    axis = 0
    while axis < len(part) and part[axis] == 1:
        axis += 1
    return all(part[i] == shape[i] for i in range(axis + 1, len(part)))


def row_major_offset(shape: Sequence[int], position: Sequence[int]) -> int:
    """How many elements lie before the one at `position` in a row-major tensor of shape `shape`."""
    offset = 0
    for extent, index in zip(shape, position, strict=True):
        offset = offset * extent + index
    return offset


def intersect(a: Box, b: Box) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
    """The overlap of two boxes of one tensor: (its shape, where it starts within `a`, where within `b`).

    None if they share no element.
    """
    start = tuple(map(max, a[0], b[0]))
    shape = tuple(
        min(a_start + a_extent, b_start + b_extent) - begin
        for a_start, a_extent, b_start, b_extent, begin in zip(*a, *b, start, strict=True)
    )
    if any(extent <= 0 for extent in shape):
        return None
    in_a = tuple(begin - origin for begin, origin in zip(start, a[0], strict=True))
    in_b = tuple(begin - origin for begin, origin in zip(start, b[0], strict=True))
    return shape, in_a, in_b


def take(box: Box, axis: int, begin: int, end: int) -> Box:
    """The part of `box` from `begin` to `end` along one axis, both counted from where the box starts."""
    start, shape = list(box[0]), list(box[1])
    start[axis] += begin
    shape[axis] = end - begin
    return tuple(start), tuple(shape)


def split(box: Box, max_elements: int) -> list[Box]:
    """Cuts a box into pieces of at most `max_elements` (at least 1) elements, in order, as `divide` does it."""
    if max_elements < 1:
        raise ValueError(f"a piece holds at least one element, not {max_elements}")
    pieces: list[Box] = []
    pending = [box]
    while pending:
        head, tail = divide(pending.pop(), max_elements, slack=max(1, max_elements // 16), step=1)
        pieces += head[:1]
        pending += reversed(head[1:] + tail)
    return pieces


def divide(box: Box, elements: int, *, slack: int, step: int) -> tuple[list[Box], list[Box]]:
    """Cuts a box in two: a head of at most `elements`, and more than `elements - slack`, and the rest; each in order.

    The cut lies along the first axis on which it can be placed so finely, at a multiple of `step` elements where that
    is fine enough, too. Where no axis is long enough, the longest is cut beside the index in which the cut falls, and
    that index is cut again: head and rest are then several boxes. Of more than `MAX_CUT_AXES` axes only the first that
    is longer than 1 is cut, and within an index the next: all boxes are then runs. `slack` and `step` are at least 1.
    """
    shape, total = box[1], volume(box[1])
    if elements >= total:
        return [box], []
    if elements < 1:
        return [], [box]
    axes = [axis for axis, extent in enumerate(shape) if extent > 1]
    if len(shape) > MAX_CUT_AXES:
        del axes[1:]
    for multiple in (step, 1):
        for axis in axes:
            grain = total // shape[axis]  # elements to one index
            rows = multiple // math.gcd(grain, multiple)
            if grain * rows <= slack:
                at = elements // (grain * rows) * rows
                return [take(box, axis, 0, at)] if at else [], [take(box, axis, at, shape[axis])]
    axis = max(axes, key=lambda axis: shape[axis])
    at, rest = divmod(elements, total // shape[axis])
    head, tail = divide(take(box, axis, at, at + 1), rest, slack=slack, step=step)
    before = [take(box, axis, 0, at)] if at else []
    after = [take(box, axis, at + 1, shape[axis])] if at + 1 < shape[axis] else []
    return before + head, tail + after


def runs(shape: Sequence[int], begin: int, end: int) -> list[Box]:
    """The elements `begin` … `end` of a box of this shape, counted in row-major order, as few boxes, in order."""
    if begin >= end:
        return []
    if not shape:
        return [((), ())]
    inner = tuple(shape[1:])
    row = volume(inner)
    first, head = divmod(begin, row)
    last, tail = divmod(end, row)

    def within(index: int, low: int, high: int) -> list[Box]:
        return [((index, *start), (1, *extents)) for start, extents in runs(inner, low, high)]

    if first == last:
        return within(first, head, tail)
    found = within(first, head, row) if head else []
    first += head > 0
    if first < last:
        found.append(((first, *(0 for _ in inner)), (last - first, *inner)))
    return found + within(last, 0, tail)


def spans(shape: Sequence[int], box: Box) -> Iterator[tuple[int, int, int]]:
    """The runs of elements that a box is in a row-major tensor of `shape`: each one's begin there and in the box, and
    its length; in order."""
    start, extents = box
    axis = len(shape)
    while axis and (axis == len(shape) or extents[axis] == shape[axis]):
        axis -= 1
    length = volume(extents[axis:])
    if not length:
        return
    for number, outer in enumerate(itertools.product(*map(range, extents[:axis]))):
        position = (*(a + b for a, b in zip(start, outer, strict=False)), *start[axis:])
        yield row_major_offset(shape, position), number * length, length


def check_cover(shape: Sequence[int], parts: Sequence[Box]) -> None:
    """Raises ValueError unless the boxes lie in `shape` and cover each of its elements exactly once.

    No box may be empty, but that a tensor without elements has exactly one box: the whole of it. Takes time nearly
    linear in the number of boxes, for boxes that are runs of elements, and for any that cut at most `MAX_CUT_AXES` axes
    of the tensor; others are refused.
    """
    shape = tuple(shape)
    if len(parts) == 1 and parts[0] == whole(shape):
        return
    if not volume(shape):
        raise ValueError(f"a tensor of shape {list(shape)} has no elements, so it has exactly one slice")
    for start, extents in parts:
        if len(start) != len(shape) or len(extents) != len(shape):
            raise ValueError(f"slice {_text(start, extents)} has another rank than the tensor's shape {list(shape)}")
        for begin, extent, length in zip(start, extents, shape, strict=True):
            if begin < 0 or extent < 1 or begin + extent > length:
                raise ValueError(f"slice {_text(start, extents)} is empty or lies outside the shape {list(shape)}")
    if all(is_contiguous(shape, extents) for _, extents in parts):
        is_cover = _runs_cover(shape, parts)
    else:
        is_cover = _differences_cover(shape, parts)
    if not is_cover:
        raise ValueError(f"its {len(parts)} slices do not cover the shape {list(shape)} exactly once")


def _runs_cover(shape: tuple[int, ...], parts: Sequence[Box]) -> bool:
    end = 0
    for begin, size in sorted((row_major_offset(shape, start), volume(extents)) for start, extents in parts):
        if begin != end:
            return False
        end += size
    return end == volume(shape)


def _differences_cover(shape: tuple[int, ...], parts: Sequence[Box]) -> bool:
    """The boxes cover each element once if and only if their indicator functions add up to the whole's, and that is so
    if and only if the mixed differences of both sides agree. A box's is +1 or -1 at its corners.

    The corners are not kept: each edge stands for a random number, a corner for the product of its edges' numbers, and
    a box's corners then sum up to the product, over the axes, of begin minus end. Sums of corners that are not equal
    have equal values by a chance of less than 2**-120, which nobody can raise who does not know the key.
    """
    axes = [axis for axis, length in enumerate(shape) if any(extents[axis] != length for _, extents in parts)]
    if len(axes) > MAX_CUT_AXES:
        raise ValueError(f"slices cut {len(axes)} axes, more than the {MAX_CUT_AXES} that can be checked")
    key = secrets.token_bytes(32)

    def corners(box: Box) -> int:
        product = 1
        for axis in axes:
            begin, end = (_number(key, axis, at) for at in (box[0][axis], box[0][axis] + box[1][axis]))
            product = product * (begin - end) % _PRIME
        return product

    return (sum(map(corners, parts)) - corners(whole(shape))) % _PRIME == 0


def _number(key: bytes, axis: int, at: int) -> int:
    """The random number of one edge: the same for the same, and told by nothing but the key."""
    return int.from_bytes(hashlib.blake2b(b"%d:%d" % (axis, at), key=key, digest_size=16).digest())


def _text(start: Sequence[int], shape: Sequence[int]) -> str:
    return "[" + ",".join(f"{begin}:{begin + extent}" for begin, extent in zip(start, shape, strict=False)) + "]"
