from __future__ import annotations

import numpy as np
import pytest

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
