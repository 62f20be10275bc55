"""One value of the components that replicas or workers kept each for themselves: for restores and readers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ckptflow.format.dtypes import Array

Components = Literal["sum", "mean", "first"]


def aggregate(components: Sequence[Array] | Array, how: Components) -> Array:
    """The value that components stand for: their sum, their mean (of integers, rounded down), or the first of them.

    One after the other in the widest dtype of their kind. A mean does not overflow on the way, and that of integers is
    exact; a sum is what their own dtype holds of it.
    """
    first = components[0]
    if how == "first" or len(components) == 1:
        return first
    wide = [component.astype(_wide(first.dtype)) for component in components]
    with np.errstate(over="ignore", invalid="ignore"):
        if how == "sum" or first.dtype == np.bool_:
            total = _sum(wide)
        else:
            total = _whole_mean(wide) if np.issubdtype(wide[0].dtype, np.integer) else _mean(wide)
        return np.asarray(total).astype(first.dtype)


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.name.startswith(("int", "uint")):
        return np.dtype(np.uint64 if dtype == np.uint64 else np.int64)
    if dtype.kind == "c":
        return np.dtype(np.complex128)
    return dtype if dtype == np.bool_ else np.dtype(np.float64)


def _sum(values: Sequence[Array]) -> Any:
    return functools.reduce(np.add, values)  # of booleans: any


def _whole_mean(values: Sequence[Array]) -> Any:
    """What passes 2**63 on the way comes back: the mean itself does not, and integers are added in a circle."""
    count = values[0].dtype.type(len(values))
    return _sum([value // count for value in values]) + _sum([value % count for value in values]) // count


def _mean(values: Sequence[Array]) -> Any:
    mean = _sum(values) / len(values)
    scale = 0.5 ** len(values).bit_length()  # exact, but for numbers that no such sum is made of
    return np.where(np.isfinite(mean), mean, _sum([value * scale for value in values]) / len(values) / scale)
