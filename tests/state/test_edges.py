"""Whatever saves restores, at the edges of dtype, rank, name and count; what cannot be restored is refused by name when
the manager starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

import ckptflow
from ckptflow.errors import SaveFailedError, UnsupportedStateError
from ckptflow.state import tree as trees
from ckptflow.state.leaves import host_array, to_bytes
from ckptflow.state.tree import as_mapping, walk

# All that TensorFlow has; those of which it can make no variable make none here.
DTYPES = sorted({value for value in vars(tf.dtypes).values() if isinstance(value, tf.DType)}, key=lambda d: d.name) + [
    getattr(tf.dtypes.experimental, name) for name in sorted(vars(tf.dtypes.experimental)) if name[0] != "_"
]
SHAPES: tuple[tuple[int, ...], ...] = (
    *((), (0,), (1,), (3,), (0, 3), (3, 0), (1, 0, 1), (2, 3), (1,) * 8 + (2,), (2,) * 9),
    *((1,) * 31 + (2,), (1,) * 32 + (2,), (2,) + (1,) * 63),
)
OPEN_SHAPES = (None, [None], [None, 3])
MOST_AXES = 64

NAMES = [
    *("", "/", "//", "a//b", ".", "..", "a.b", " ", " a ", "\0", "a\nb", "\x01\x1f\x7f", "__metadata__", "ckptflow.x"),
    *("worker-0", "1", "-1", "%2F", "*?[", 'a:b|c<>"\\', "\ufeff", "\u2028", "\u202eabc", "é", "e\u0301", "👩‍👩‍👧"),
    *("\ud800", "\\ud801", "con", "A", "a", "x" * 4000, "大" * 1330, "😀" * 1000),
]


def _value(dtype: Any, shape: tuple[int, ...], seed: int) -> Any:
    """A tensor of random bits. Raises whatever TensorFlow or NumPy raises where there is none."""
    random = np.random.default_rng([seed, len(shape)])
    size = int(np.prod(shape))
    if dtype is tf.string:
        flat: Any = np.array([random.bytes(seed) for _ in range(size)], dtype=object)
    elif dtype is tf.bool:
        flat = random.integers(0, 2, size).astype(bool)
    elif dtype.name in ("int2", "uint2", "int4", "uint4"):
        flat = random.integers(0, 2, size).astype(np.int8).astype(getattr(ml_dtypes, dtype.name))
    else:
        numpy_dtype = np.dtype(dtype.as_numpy_dtype)
        flat = np.frombuffer(random.bytes(size * numpy_dtype.itemsize), numpy_dtype)
    return tf.reshape(tf.convert_to_tensor(flat, dtype), shape)


def _variables(dtype: Any, seed: int) -> Iterator[tuple[str, Any]]:
    for shape in SHAPES:
        if len(shape) <= MOST_AXES:
            yield f"{dtype.name} {len(shape)} {shape[:4]}", tf.Variable(_value(dtype, shape, seed))
    for static in OPEN_SHAPES:
        shape = (seed,) if static == [None] else (seed, 3)
        yield f"{dtype.name} {static}", tf.Variable(_value(dtype, shape, seed), shape=tf.TensorShape(static))


def _can_be_made(dtype: Any) -> bool:
    if dtype.is_quantized:  # refused, below
        return False
    try:
        return bool(dict(_variables(dtype, 2)))
    except Exception:  # TensorFlow has no kernel for it, or NumPy no dtype
        return False


@pytest.fixture(scope="module")
def possible() -> list[Any]:
    return [dtype for dtype in DTYPES if _can_be_made(dtype)]


def _state(dtypes: list[Any], seed: int, names: list[str]) -> dict[str, Any]:
    module = tf.Module()
    module.by_dtype = dict(pair for dtype in dtypes for pair in _variables(dtype, seed))
    module.by_name = [{name: tf.Variable(float(seed * 1000 + place))} for place, name in enumerate(names)]
    return {"module": module}


def _bits(state: dict[str, Any]) -> dict[tuple[int, str], tuple[str, tuple[int, ...], bytes]]:
    module, found = state["module"], {}
    for place, held in enumerate([module.by_dtype, *module.by_name]):
        for name, variable in held.items():
            value = variable.read_value()
            data = to_bytes(host_array(value), value.dtype.name).tobytes()
            found[place, name] = (value.dtype.name, tuple(value.shape), data)
    return found


def test_what_saves_restores(tmp_path: Path, possible: list[Any]) -> None:
    """Every dtype, in every rank and with empty dimensions, and every name that a dict can give, in one checkpoint."""
    assert {"string", "bfloat16", "float8_e5m2", "int4", "complex128"} <= {dtype.name for dtype in possible}
    state, fresh = (_state(possible, seed, NAMES) for seed in (1, 2))
    with ckptflow.CheckpointManager(str(tmp_path), state) as manager:
        manager.save(1)
    with ckptflow.CheckpointManager(str(tmp_path), fresh) as manager:
        restored = manager.restore_latest()
    assert restored is not None
    expected, found = _bits(state), _bits(fresh)
    assert [key for key in expected if expected[key] != found[key]] == []
    assert len(found) == len(possible) * (len(SHAPES) + len(OPEN_SHAPES)) + len(NAMES)


@pytest.mark.parametrize("count", [0, 1])
def test_few_variables(tmp_path: Path, count: int) -> None:
    """None at all is a state, too. Twenty thousand: `test_tree.test_twenty_thousand_variables`."""
    state, fresh = ({"module": tf.Module(), "list": [tf.Variable(seed)] * count} for seed in (1, 2))
    with ckptflow.CheckpointManager(str(tmp_path), state) as manager:
        manager.save(1)
    with ckptflow.CheckpointManager(str(tmp_path), fresh) as manager:
        assert manager.restore_latest() is not None
    assert [int(each) for each in fresh["list"]] == [1] * count


def _of_rank(dtype: Any, rank: int) -> Any:
    return tf.Variable(tf.reshape(tf.cast(tf.constant([1]), dtype) if dtype is not tf.string else "a", [1] * rank))


REFUSED: dict[str, Any] = {
    "65 axes": (
        lambda: {"v": _of_rank(tf.float32, 65)},
        r"m/v: a checkpoint cannot store the shape \(1, .* at most 64 axes",
    ),
    "253 axes": (lambda: {"v": _of_rank(tf.float32, 253)}, "m/v: a checkpoint cannot store the shape"),
    "65 axes of strings": (lambda: {"v": _of_rank(tf.string, 65)}, "m/v: a checkpoint cannot store the shape"),
    "a long name": (lambda: {"x" * 10_000: tf.Variable(1.0)}, "the name 'm/xxx.* is longer than 4096 bytes"),
    "a long name in bytes": (lambda: {"大" * 2000: tf.Variable(1.0)}, "the name 'm/大.* is longer than 4096 bytes"),
    "a deep name": (lambda: _nested(2100), "the name 'm/a/a.* is longer than 4096 bytes"),
    "a quantized dtype": (
        lambda: {"v": tf.Variable(tf.bitcast(tf.constant([1, 2]), tf.qint32))},
        "m/v: a checkpoint cannot store the dtype qint32",
    ),
    "a dtype of handles": (
        lambda: {"v": tf.Variable(tf.raw_ops.EmptyTensorList(element_shape=-1, max_num_elements=0, element_dtype=1))},
        "m/v: a checkpoint cannot store the dtype variant",
    ),
}


def _nested(depth: int) -> Any:
    found: Any = tf.Variable(1.0)
    for _ in range(depth):
        module = tf.Module()
        module.a = found
        found = module
    return {"a": found}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_restored_is_refused_at_the_start(name: str, tmp_path: Path) -> None:
    make, said = REFUSED[name]
    with pytest.raises(UnsupportedStateError, match=rf"(?s)\A{said}"):
        ckptflow.CheckpointManager(str(tmp_path), {"m": make()})
    assert list(tmp_path.iterdir()) == []


def test_more_names_than_a_manifest_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    state = as_mapping({"m": {f"{'x' * 90}{place:03}": tf.Variable(1.0) for place in range(20)}})
    monkeypatch.setattr(trees, "MAX_MANIFEST_BYTES", 20 * (95 + 32))
    walk(state)
    monkeypatch.setattr(trees, "MAX_MANIFEST_BYTES", 20 * (95 + 32) - 1)
    with pytest.raises(UnsupportedStateError, match=r"names of 20 tensors take 2,540 bytes.*'m/xxx"):
        walk(state)


@pytest.mark.parametrize(("dtype", "axes"), [(tf.float32, 65), (tf.string, 65)])
def test_a_rank_that_is_known_only_when_it_is_saved(tmp_path: Path, dtype: Any, axes: int) -> None:
    """A variable that leaves its rank open: its save fails, by name."""
    variable = tf.Variable(_of_rank(dtype, 1).read_value(), shape=tf.TensorShape(None))
    said = r"v: a checkpoint cannot store the shape .* at most 64 axes"
    with ckptflow.CheckpointManager(str(tmp_path), {"v": variable}) as job:
        job.save(1)
        job.wait()
        variable.assign(_of_rank(dtype, axes).read_value())
        job.save(2)
        with pytest.raises(SaveFailedError, match=said):
            job.wait()
    assert [checkpoint.step for checkpoint in ckptflow.list_checkpoints(str(tmp_path))] == [1]
