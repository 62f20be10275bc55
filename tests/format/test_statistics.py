"""What the numbers of a tensor are like, for every dtype, against NumPy's own answers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptflow.format import dtypes
from ckptflow.format.statistics import Statistics, can_be_infinite, can_be_measured, measure, merge, not_finite

NUMBERS = [name for name in dtypes.names() if can_be_measured(name)]
FLOATS = [name for name in NUMBERS if can_be_infinite(name)]


def stored(values: Any, dtype: str) -> Any:
    return np.asarray(values).astype(dtypes.numpy_dtype(dtype)).reshape(-1).view(np.uint8)


@pytest.mark.parametrize("dtype", NUMBERS)
def test_every_dtype_has_the_numbers_that_it_holds(dtype: str) -> None:
    found = measure(dtype, stored([1, 0, 1, 0], dtype))
    assert (found.elements, found.nan, found.inf, found.finite) == (4, 0, 0, 4)
    assert (found.min, found.max, found.mean) == (0, 1, 0.5)


def test_names_of_dtypes_that_are_no_numbers() -> None:
    assert {name for name in dtypes.names() if not can_be_measured(name)} == {"string", "variant"}
    assert set(NUMBERS) - set(FLOATS) == {name for name in NUMBERS if name.startswith(("int", "uint", "bool"))}


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_not_finite_is_counted_and_left_out(dtype: str) -> None:
    values = stored([math.nan, 1.0, 3.0, math.inf, -math.inf], dtype)
    array = values.view(dtypes.numpy_dtype(dtype))
    wide = np.abs(array) if array.dtype.kind == "c" else array.astype(np.float64)
    nan, inf = int(np.isnan(wide).sum()), int(np.isinf(wide).sum())  # some of float8 have no Inf, or neither
    found = measure(dtype, values)
    assert (found.nan, found.inf) == (nan, inf)
    assert not_finite(dtype, values) == nan + inf
    numbers = wide[np.isfinite(wide)]
    assert (found.min, found.max) == (numbers.min(), numbers.max())
    assert found.mean == pytest.approx(numbers.mean())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e5m2", "complex64"])
def test_nothing_finite_has_no_smallest(dtype: str) -> None:
    assert measure(dtype, stored([math.nan, math.inf], dtype)) == Statistics(2, 1, 1)
    assert measure(dtype, stored([], dtype)) == Statistics()


def test_large_numbers_are_exact_and_overflow_nothing() -> None:
    top = 2**64 - 1
    assert measure("uint64", stored(np.array([top, top - 2], np.uint64), "uint64")).max == top
    low = -(2**63)
    assert measure("int64", stored(np.array([low, low + 1]), "int64")).min == low
    assert measure("float64", stored([1.7e308] * 4, "float64")).mean == pytest.approx(1.7e308)
    assert measure("complex64", stored([3 + 4j], "complex64")).max == 5


@given(st.lists(st.floats(width=32), max_size=40), st.integers(0, 40))
def test_parts_together_are_the_whole(values: list[float], cut: int) -> None:
    data = stored(np.asarray(values, np.float32), "float32")
    whole, parts = (
        measure("float32", data),
        merge(measure("float32", data[: 4 * cut]), measure("float32", data[4 * cut :])),
    )
    assert (whole.elements, whole.nan, whole.inf, whole.min, whole.max) == (
        parts.elements,
        parts.nan,
        parts.inf,
        parts.min,
        parts.max,
    )
    assert (whole.mean is None) == (parts.mean is None)
    if whole.mean is not None:
        assert parts.mean == pytest.approx(
            whole.mean, rel=1e-9, abs=1e-9 * max(abs(whole.min or 0), abs(whole.max or 0))
        )


def test_more_than_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptflow.format.statistics._CHUNK", 3)
    found = measure("float32", stored([*range(10), math.nan], "float32"))
    assert (found.elements, found.nan, found.inf, found.min, found.max) == (11, 1, 0, 0.0, 9.0)
    assert found.mean == pytest.approx(4.5)
    assert not_finite("float32", stored([*range(10), math.nan], "float32")) == 1


@pytest.mark.parametrize("dtype", [name for name in FLOATS if dtypes.item_size_bytes(name) <= 2])
def test_every_pattern_of_bits_is_what_numpy_says_that_it_is(dtype: str) -> None:
    size_bytes = dtypes.item_size_bytes(dtype)
    patterns = np.arange(2 ** (8 * size_bytes), dtype=f"u{size_bytes}").view(np.uint8).reshape(-1, size_bytes)
    values = patterns.reshape(-1).view(dtypes.numpy_dtype(dtype))
    with np.errstate(invalid="ignore"):
        expected = ~np.isfinite(values.astype(np.float64))
    assert [bool(not_finite(dtype, pattern)) for pattern in patterns] == expected.tolist()
    assert not_finite(dtype, patterns.reshape(-1)) == np.count_nonzero(expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e5m2"])
def test_small_floats_are_not_looked_at_one_by_one(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = stored(np.zeros(1000), dtype)
    not_finite(dtype, values)
    monkeypatch.delattr(np, "isfinite")
    assert not_finite(dtype, values) == 0


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_a_finite_number_whose_magnitude_is_large_is_finite(dtype: str) -> None:
    part = float(np.finfo(np.dtype(dtype).type(0).real.dtype).max)
    found = measure(dtype, stored([complex(part, part), complex(math.inf, 0), complex(math.nan, 1)], dtype))
    assert (found.nan, found.inf, found.finite) == (1, 1, 1)
    largest = min(float(np.longdouble(part) * np.sqrt(np.longdouble(2))), float(np.finfo(np.float64).max))
    assert found.max == pytest.approx(largest)
    assert found.max is not None
    assert math.isfinite(found.max)
