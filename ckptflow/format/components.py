"""One value of the components that replicas or workers kept each for themselves: for restores and readers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Components = Literal["sum", "mean", "first"]


def aggregate(components: Sequence[Array] | Array, how: Components) -> Array:
    """The value that components stand for: their sum, their mean (of integers, rounded down), or the first of them.

    In their own dtype, one after the other; narrow ones in a wide dtype, in which a sum neither overflows nor rounds.
    """
    first = components[0]
    if how == "first" or len(components) == 1:
        return first
    total = first.astype(_wide(first.dtype))
    for component in components[1:]:
        other = component.astype(total.dtype)
        total = (total | other) if total.dtype == np.bool_ else total + other
    if how == "mean" and total.dtype != np.bool_:
        is_whole = np.issubdtype(total.dtype, np.integer)
        total = total // len(components) if is_whole else total / np.asarray(len(components), total.dtype)
    return np.asarray(total, dtype=first.dtype)


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.itemsize < 8 and dtype.name.startswith(("int", "uint")):
        return np.dtype(np.int64)
    return np.dtype(np.float32) if dtype.name.startswith("float8") else dtype
