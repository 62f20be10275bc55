"""What the numbers of a tensor are like, a part at a time: the smallest, the largest, their mean, NaN and Inf. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ckptflow.format import dtypes
from ckptflow.format.dtypes import Array
from ckptflow.format.spec import Bytes1D

_CHUNK = 2**20  # elements looked at once, so that no second copy of a large part is made in float64


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of `elements` numbers: `nan` and `inf` (of either sign) are counted, the rest is of the finite ones; None where
    there are none. Of complex numbers it is their magnitudes, one above all doubles being the largest of these; of
    booleans False is 0 and True is 1."""

    elements: int = 0
    nan: int = 0
    inf: int = 0
    min: float | int | None = None
    max: float | int | None = None
    mean: float | None = None

    @property
    def finite(self) -> int:
        return self.elements - self.nan - self.inf


def can_be_measured(dtype: str) -> bool:
    """Whether the elements are numbers, or booleans."""
    return not dtypes.is_encoded(dtype)


def can_be_infinite(dtype: str) -> bool:
    """Whether elements can be NaN or Inf."""
    return "float" in dtype or "complex" in dtype


def measure(dtype: str, data: Bytes1D) -> Statistics:
    """The statistics of elements as they are stored."""
    values = data.view(dtypes.numpy_dtype(dtype))
    found = Statistics()
    for begin in range(0, values.size, _CHUNK):
        found = merge(found, _measure(values[begin : begin + _CHUNK]))
    return found


def not_finite(dtype: str, data: Bytes1D) -> int:
    """How many elements are NaN or Inf, of elements as they are stored."""
    if not can_be_infinite(dtype):
        return 0
    is_bad = _bad_elements(dtype)
    looked_at: np.dtype[Any] = _WORDS.get(dtypes.item_size_bytes(dtype), dtypes.numpy_dtype(dtype))
    words = data.view(looked_at)
    chunks = (words[begin : begin + _CHUNK] for begin in range(0, words.size, _CHUNK))
    return sum(int(np.count_nonzero(is_bad(chunk))) for chunk in chunks)


_WORDS: dict[int, np.dtype[Any]] = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16)}  # what is looked at as bits


@cache
def _bad_elements(dtype: str) -> Callable[[Array], Array]:
    """Which elements are NaN or Inf: by their bits where NumPy would make a float of each, one after the other."""
    size_bytes, number = dtypes.item_size_bytes(dtype), dtypes.numpy_dtype(dtype)
    if size_bytes == 1:
        table = ~np.isfinite(np.arange(256, dtype=np.uint8).view(number))
        return lambda words: table[words]
    if size_bytes == 2:  # all ones in the exponent
        exponent = np.asarray(np.inf, number).view(np.uint16)
        return lambda words: (words & exponent) == exponent
    return lambda values: ~np.isfinite(values)


def merge(a: Statistics, b: Statistics) -> Statistics:
    """The statistics of both together."""
    if a.mean is None or b.mean is None:
        some = b if a.mean is None else a
        low, high, mean = some.min, some.max, some.mean
    else:
        low, high = min(a.min, b.min), max(a.max, b.max)  # type: ignore[type-var]  # there where the mean is
        mean = a.mean + (b.mean - a.mean) * (b.finite / (a.finite + b.finite))
    return Statistics(a.elements + b.elements, a.nan + b.nan, a.inf + b.inf, low, high, mean)


def _measure(values: Array) -> Statistics:
    if values.dtype.kind in "iub" or values.dtype.name.startswith(("int", "uint")):  # no number of these is not finite
        whole = values.astype(np.uint64 if values.dtype == np.uint64 else np.int64)
        return Statistics(whole.size, 0, 0, int(whole.min()), int(whole.max()), float(whole.mean(dtype=np.float64)))
    with np.errstate(over="ignore", invalid="ignore"):
        wide = _magnitudes(values) if values.dtype.kind == "c" else values.astype(np.float64)
        nan = int(np.count_nonzero(np.isnan(wide)))
        finite = wide[np.isfinite(wide)]
        inf = wide.size - nan - finite.size
        if not finite.size:
            return Statistics(wide.size, nan, inf)
        scale = float(np.abs(finite).max()) or 1.0  # so that their sum does not overflow
        mean = float((finite / scale).mean(dtype=np.float64)) * scale
    return Statistics(wide.size, nan, inf, float(finite.min()), float(finite.max()), mean)


def _magnitudes(values: Array) -> Array:
    """In double precision: finite where both parts are, infinite where one of them is."""
    wide = values.astype(np.complex128)
    largest = np.where(np.isfinite(wide), np.finfo(np.float64).max, np.inf)
    return np.minimum(np.abs(wide), largest)
