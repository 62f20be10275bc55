from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptflow import reading
from ckptflow.format import dtypes
from ckptflow.format.components import Components, aggregate
from ckptflow.format.manifest import TensorRecord

WORKERS = [1, 2, 3, 8, 17]
NUMBERS = [name for name in dtypes.names() if not dtypes.is_encoded(name)]


@pytest.mark.parametrize("how", ["sum", "mean", "first"])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_reader_gets_what_a_restore_gives(name: str, how: Components) -> None:
    """Bit for bit, of any dtype: both bring components together by the one function."""
    dtype = dtypes.numpy_dtype(name)
    for count in WORKERS:
        values = np.random.default_rng(count).integers(-7, 8, (count, 5)).astype(dtype)
        record = TensorRecord(name="x", dtype=name, shape=(count, 5), slices=(), components=how)
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        found = reading.to_array(record, data)
        assert found.dtype == dtype
        assert found.shape == (5,)
        assert found.tobytes() == np.ascontiguousarray(aggregate(list(values), how)).tobytes()


@pytest.mark.parametrize("name", ["int8", "int32", "int64", "uint8", "int4"])
def test_means_of_integers_are_rounded_down_and_do_not_overflow(name: str) -> None:
    dtype = dtypes.numpy_dtype(name)
    top = 7 if name == "int4" else 100
    bottom = 0 if name.startswith("u") else -3
    values = np.array([[top, bottom], [top, bottom + 1]] * 8 + [[top, bottom]]).astype(dtype)
    expected = [top, (17 * bottom + 8) // 17]
    assert aggregate(values, "mean").astype(np.int64).tolist() == expected


def test_means_of_float8_are_of_their_values_not_of_rounded_sums() -> None:
    values = np.full((100, 1), 240.0).astype(dtypes.numpy_dtype("float8_e4m3fn"))
    assert float(aggregate(values, "mean")[0]) == 240.0


def test_booleans_are_true_where_any_is() -> None:
    values = np.array([[True, False], [False, False]])
    assert aggregate(values, "sum").tolist() == aggregate(values, "mean").tolist() == [True, False]


WHOLE = [name for name in NUMBERS if name.startswith(("int", "uint"))]
FLOATS = [name for name in NUMBERS if name.startswith(("float", "bfloat"))]


@given(st.sampled_from(WHOLE), st.data())
def test_means_of_integers_are_exact(name: str, data: Any) -> None:
    bits = int(name.lstrip("uint"))
    low, high = (0, 2**bits - 1) if name.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    numbers = data.draw(st.lists(st.sampled_from([low, high]) | st.integers(low, high), min_size=1, max_size=300))
    wide = np.array(numbers, np.uint64 if name == "uint64" else np.int64)
    for values in (wide.astype(dtypes.numpy_dtype(name)), wide.astype(dtypes.numpy_dtype(name))[:, None]):
        found = aggregate([np.asarray(value) for value in values], "mean")
        assert int(found.reshape(())) == sum(numbers) // len(numbers)


@given(st.sampled_from(FLOATS), st.sampled_from(["sum", "mean"]), st.data())
def test_sums_and_means_of_floats_are_right_to_their_last_bits(name: str, how: Components, data: Any) -> None:
    """Of numbers of one sign, among which nothing cancels; up to the largest that there are."""
    dtype = dtypes.numpy_dtype(name)
    largest = float(_info(dtype).max)
    numbers = data.draw(st.lists(st.sampled_from([0.0, largest, largest / 3]) | st.floats(0, largest), min_size=2))
    values = np.array(numbers, np.float64).astype(dtype)[:, None]
    exact = sum((Fraction(float(value[0])) for value in values), Fraction(0)) / (len(values) if how == "mean" else 1)
    if exact <= Fraction(largest):
        found = float(aggregate(values, how)[0])
        info = _info(dtype)
        assert math.isfinite(found)
        last_bits = Fraction(float(info.eps)) + len(values) * Fraction(2) ** -53
        assert abs(Fraction(found) - exact) <= last_bits * exact + Fraction(float(info.smallest_subnormal))


def _info(dtype: Any) -> Any:
    return np.finfo(dtype) if dtype.type in (np.float16, np.float32, np.float64) else ml_dtypes.finfo(dtype)


def test_what_is_not_finite_stays_so() -> None:
    values = np.array([[np.inf, -np.inf, np.nan, np.inf], [1.0, 1.0, 1.0, -np.inf]])
    for how in ("sum", "mean"):
        np.testing.assert_array_equal(aggregate(values, how), [np.inf, -np.inf, np.nan, np.nan])
