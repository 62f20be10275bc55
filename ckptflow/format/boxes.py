"""Hyper-rectangles: the arithmetic of slices. Pure; a box is (start, shape)."""

from __future__ import annotations

import math
from collections.abc import Sequence

Box = tuple[tuple[int, ...], tuple[int, ...]]


def volume(shape: Sequence[int]) -> int:
    """How many elements a shape holds; 1 for a scalar."""
    return math.prod(shape)


def check_cover(shape: Sequence[int], parts: Sequence[Box]) -> None:
    """Raises ValueError unless the boxes lie in `shape` and cover each of its elements exactly once."""
    raise NotImplementedError
