"""Whatever a state may hold at the edges of dtype, rank and dimension is restored, or is refused before it is saved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.ops import gen_resource_variable_ops as resource_ops

from ckptflow import CheckpointManager, UnsupportedStateError
from ckptflow.format import dtypes
from ckptflow.state import leaves
from ckptflow.state.leaves import Landing, host_array, to_bytes
from ckptflow.state.tree import walk

BEYOND = 2**31  # what no 32-bit dimension can be

# Of no element, so that they cost nothing; NumPy's limits are rank 64 and, a dimension of 0 counting as 1, 2**63 bytes.
EMPTY_SHAPES = [(0, BEYOND), (BEYOND, 0), (2**33, 0), (BEYOND + 5, 0, 1), (0, 2**58), (1, 0, 2**29, 2**29)]
SMALL_SHAPES = [(), (0,), (1,), (1,) * 64, (2, *(1,) * 62, 3), (70_000, *(1,) * 20)]
FIXED = sorted(set(dtypes.names()) - {"variant", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e4m3b11fnuz"})


def value_of(shape: tuple[int, ...], dtype: str, period: int = 2) -> Any:
    """A tensor of zeros with every second element one, or of ones where the period is 1."""
    count = math.prod(shape)
    ones = np.arange(1, count + 1) % period == 0
    if dtype == "string":
        flat = tf.strings.as_string(tf.constant(ones, tf.bool))
    else:
        flat = tf.convert_to_tensor(ones.astype(dtypes.numpy_dtype(dtype)))
    return tf.reshape(flat, tf.constant(shape, tf.int64))


def bytes_of(value: Any) -> dtypes.Bytes1D:
    return to_bytes(host_array(value), value.dtype.name)


def variable_of(value: Any, *, is_open: bool) -> Any:
    return tf.Variable(value, shape=tf.TensorShape(None) if is_open else None)


def can_be_a_variable(dtype: str) -> bool:
    try:
        resource_ops.read_variable_op(tf.Variable(value_of((1,), dtype)).handle, tf.as_dtype(dtype))
    except (tf.errors.OpError, TypeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("is_open", [False, True], ids=["static", "open"])
def test_what_is_saved_is_restored(tmp_path: Path, is_open: bool) -> None:
    """All dtypes and shapes in one state: each is one variable."""
    kinds = {
        f"{dtype} {number}": (shape, dtype)
        for dtype in FIXED
        if can_be_a_variable(dtype)
        for number, shape in enumerate([*SMALL_SHAPES, *EMPTY_SHAPES])
    }
    assert len(kinds) > 15 * len(EMPTY_SHAPES)
    values = {name: value_of(*kind) for name, kind in kinds.items()}
    before = {name: variable_of(value, is_open=is_open) for name, value in values.items()}
    with CheckpointManager(tmp_path, before) as manager:
        manager.save(1)
    after = {name: variable_of(value_of(*kind, period=1), is_open=is_open) for name, kind in kinds.items()}
    with CheckpointManager(tmp_path, after) as manager:
        manager.restore_latest()
    for name, value in values.items():
        found = after[name].read_value()
        assert (found.shape, found.dtype) == (value.shape, value.dtype), name
        assert (bytes_of(found) == bytes_of(value)).all(), name


@pytest.mark.parametrize("dtype", sorted(leaves._EMPTY_DTYPES))
def test_memory_of_any_dimension_can_be_had(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """Large values land in a tensor of their shape; with no element it costs nothing to have one."""
    monkeypatch.setattr(Landing, "SMALL_BYTES", 0)
    for shape in EMPTY_SHAPES:
        landed = Landing(dtype, shape, 0).take()
        assert (tuple(landed.shape), landed.dtype.name) == (shape, dtype)


@pytest.mark.parametrize("dtype", sorted(leaves._EMPTY_DTYPES))
def test_memory_of_a_great_dimension_is_written_through(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.setattr(leaves, "_MAX_EMPTY_DIMENSION", 1000)
    size_bytes = 65_536 * dtypes.item_size_bytes(dtype)
    pattern = np.random.default_rng(1).integers(0, 2, size_bytes, dtype=np.uint8)
    landing = Landing(dtype, (32_768, 2), size_bytes)
    landing.bytes[:] = pattern
    address = landing.bytes.ctypes.data
    landed = host_array(landing.take())
    assert landed.reshape(-1).view(np.uint8).tobytes() == pattern.tobytes()
    assert landed.ctypes.data == address  # without a second copy


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1,) * 65, "float32"), ((0,) * 253, "int8"), ((0, 2**62), "float32"), ((0, 2**63 - 1), "int8"),
     ((0, 2**31, 2**33), "bool"), ((0, 2**60), "string")],
    ids=["rank 65", "rank 253", "bytes", "elements", "product", "strings"],
)  # fmt: skip
def test_what_cannot_be_saved_is_refused_at_the_start_by_name(shape: tuple[int, ...], dtype: str) -> None:
    variable = tf.Variable(value_of(shape, dtype))
    with pytest.raises(UnsupportedStateError, match="weights/great: a checkpoint cannot store the shape"):
        walk({"weights": {"great": variable}})


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("shape", [(BEYOND + 5,), (BEYOND + 5, 1), (1, BEYOND)], ids=str)
def test_two_gibibytes_in_one_dimension(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """The same with elements in it: 2 GiB three times, in the state, in a copy of it, and on the disk."""
    array = np.zeros(shape, np.int8)
    array.reshape(-1)[:: 2**20 + 1] = 7
    array.reshape(-1)[-1] = 5
    variable = tf.Variable(array)
    with CheckpointManager(tmp_path, {"v": variable}) as manager:
        manager.save(1)
    variable.assign(tf.zeros_like(variable))
    with CheckpointManager(tmp_path, {"v": variable}) as manager:
        manager.restore_latest()
    assert np.array_equal(host_array(variable.read_value()), array)


@pytest.mark.parametrize("dtype", ["float8_e5m2", "int4", "bfloat16", "uint16"])
def test_a_sum_over_replicas_of_any_dtype(tmp_path: Path, dtype: str) -> None:
    """Every replica but the first gets zeros, of dtypes that `tf.zeros_like` does not know, too."""
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        variable = tf.Variable(
            value_of((4,), dtype),
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
        )
        with CheckpointManager(tmp_path, {"v": variable}) as manager:
            manager.save(1)
            resource_ops.assign_variable_op(variable.values[0].handle, value_of((4,), dtype, period=1))
            manager.restore_latest()
    held = resource_ops.read_variable_op(variable.values[0].handle, tf.as_dtype(dtype))
    assert (bytes_of(held) == bytes_of(value_of((4,), dtype))).all()
