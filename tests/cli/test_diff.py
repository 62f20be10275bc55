"""`ckptflow diff`: what differs between two checkpoints, and by how much."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptflow.cli import diff as verb
from ckptflow.storage.opening import open_store
from tests.cli.runner import Runner
from tests.roots import Life


def save(root: Path, *states: dict[str, Any], **fields: Any) -> str:
    """Checkpoints of steps 0, 1, … with these arrays."""
    life = Life(open_store(str(root)))
    for step, arrays in enumerate(states):
        life.save(step, arrays, **fields)
    return str(root)


BASE: dict[str, Any] = {
    "bias": np.zeros(3, np.float32),
    "count": np.array(7, np.int64),
    "kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "names": np.array([b"a", b"b"], object),
}


def test_equal_is_equal(runner: Runner, tmp_path: Path) -> None:
    root = save(tmp_path / "run", BASE, BASE)
    ran = runner("diff", root, "--step", "0", "--other-step", "1")
    assert (ran.code, ran.err) == (0, "")
    first, second = (f"{root}/{step:012d}-i0001" for step in (0, 1))
    assert ran.out == f"{first} against {second}\n4 of 4 tensors are equal, 12 elements compared\n"


def test_the_first_line_says_which_two(runner: Runner, root: str, tmp_path: Path) -> None:
    """Without --other-step it is the newest of OTHER, and --step says nothing of that."""
    assert runner("copy", root, f"{tmp_path}/copy", "--all").code == 0
    ran = runner("diff", root, f"{tmp_path}/copy", "--step", "100")
    assert ran.out.splitlines()[0] == f"{root}/000000000100-i0001 against {tmp_path}/copy/000000000300-i0001"
    told = " ".join(runner("diff", "--help").out.split())
    assert "--step N URL's checkpoint: that of this step. Default: the newest." in told
    assert "--other-step N OTHER's checkpoint: that of this step. Default: the newest." in told


def test_every_kind_of_difference(runner: Runner, tmp_path: Path) -> None:
    changed = {
        "bias": np.zeros(4, np.float32),
        "count": np.array(7, np.int32),
        "kernel": BASE["kernel"] + np.array([[0, 0, 3], [0, -4, 0]], np.float32),
        "names": np.array([b"a", b"c"], object),
        "new": np.zeros(1, np.float32),
    }
    one, other = save(tmp_path / "one", BASE), save(tmp_path / "other", changed)
    ran = runner("diff", one, other, "--json")
    assert ran.code == 1
    assert set(ran.json) == {"first", "second", "equal", "tensors", "python_state"}
    found = {tensor["name"]: tensor for tensor in ran.json["tensors"]}
    assert {name: tensor["state"] for name, tensor in found.items()} == {
        "bias": "shape",
        "count": "dtype",
        "kernel": "differs",
        "names": "differs",
        "new": "only in the second",
    }
    kernel = found["kernel"]
    assert (kernel["differing"], kernel["elements"]) == (2, 6)
    assert (kernel["max_difference"], kernel["norm"]) == (4.0, 5.0)
    assert kernel["relative_norm"] == pytest.approx(5 / np.linalg.norm(BASE["kernel"]))
    assert found["names"]["max_difference"] is None
    ran = runner("diff", one, other)
    assert ran.code == 1
    assert "float32 [3] against float32 [4]" in ran.out
    assert "0 of 5 tensors are equal" in ran.out


def test_python_state_is_compared(runner: Runner, tmp_path: Path) -> None:
    one = save(tmp_path / "one", BASE, python_state={"position": {"epoch": 1}, "same": 1})
    other = save(tmp_path / "other", BASE, python_state={"position": {"epoch": 2}, "same": 1, "more": None})
    ran = runner("diff", one, other)
    assert ran.code == 1
    assert "Python state differs: position" in ran.out
    assert runner("diff", one, other, "--json").json["python_state"] == ["more", "position"]


def test_a_checkpoint_with_itself_is_refused(runner: Runner, root: str) -> None:
    ran = runner("diff", root, "--step", "100")
    assert ran.code == 2
    assert "a checkpoint is always equal to itself" in ran.err


def test_damage_is_told_and_is_no_difference(runner: Runner, root: str) -> None:
    (shard, *_) = sorted(Path(root, "000000000300-i0001").glob("shard-*"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    ran = runner("diff", root, "--step", "100", "--other-step", "300")
    assert ran.code == 1
    assert "has crc32c" in ran.err
    assert ran.out == ""


DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int8, np.uint64, np.bool_, np.complex64]


@given(st.data(), st.sampled_from(DTYPES), st.integers(1, 50))
def test_what_is_counted_is_what_numpy_says(data: st.DataObject, dtype: Any, size: int) -> None:
    """Against plain NumPy in double precision, bit patterns and all."""
    draw = st.lists(
        st.integers(0, 255), min_size=size * np.dtype(dtype).itemsize, max_size=size * np.dtype(dtype).itemsize
    )
    one, other = (np.array(data.draw(draw), np.uint8).view(dtype) for _ in range(2))
    if dtype is np.bool_:
        one, other = one.view(np.uint8) % 2 == 1, other.view(np.uint8) % 2 == 1
    width = one.dtype.itemsize
    expected = [bytes(a) != bytes(b) for a, b in zip(one.view(f"V{width}"), other.view(f"V{width}"), strict=True)]
    assert verb._count_differing(one, other) == sum(expected)
    wide: Any = np.complex128 if one.dtype.kind == "c" else np.float64
    with np.errstate(all="ignore"):
        a, b = one.astype(wide), other.astype(wide)
        numbers = np.isfinite(a) & np.isfinite(b)
        distance = np.abs(b[numbers] - a[numbers])
        largest, norm, _ = verb._norms(one, other)
        assert largest == distance.max(initial=0.0)
        assert norm == pytest.approx(float((distance**2).sum() ** 0.5), rel=1e-9)


def test_negative_zero_and_nan_are_other_bits_and_no_distance() -> None:
    one = np.array([0.0, np.nan, 1.0, np.inf], np.float32)
    other = np.array([-0.0, 1.0, 1.0, np.inf], np.float32)
    assert verb._count_differing(one, other) == 2
    assert verb._norms(one, other)[:2] == (0.0, 0.0)
