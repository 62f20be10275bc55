"""`ckptflow show --stats`: what the numbers of a checkpoint are like, without TensorFlow, a slice at a time."""

from __future__ import annotations

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from ckptflow.format.spec import Bytes1D, TensorSpec
from ckptflow.transfer import buffers
from tests.cli.runner import Runner, run_alone
from tests.cli.test_command import NO_TENSORFLOW
from tests.roots import SHARD_BYTES, make_root

LARGE = np.arange(3 * SHARD_BYTES // 4, dtype=np.float32)


@pytest.fixture
def measured(tmp_path: Path) -> str:
    kernel = np.ones((100, 100), np.float32)
    kernel[3, 4], kernel[5, 6], kernel[7, 8] = math.nan, math.inf, -math.inf
    arrays = {
        "large": LARGE,
        "kernel": kernel,
        "half": np.asarray([0.5, -2], ml_dtypes.bfloat16),
        "phase": np.asarray([3 + 4j, 0], np.complex64),
        "mask": np.asarray([True, False, True, True]),
        "step": np.asarray(7, np.int64),
        "empty": np.zeros((0, 3), np.float32),
        "words": np.asarray([b"a", b"b"], object),
        "count": np.asarray([2.0, 4.0], np.float32),
    }
    specs = {"count": TensorSpec("count", "float32", (2,), components="sum")}
    make_root(root := str(tmp_path / "run"), (1,), world_size=2, arrays=arrays, specs=specs)
    return root


def test_numbers_in_json(runner: Runner, measured: str) -> None:
    ran = runner("show", measured, "--stats", "--json")
    assert (ran.code, ran.err) == (0, "")
    stats = {tensor["name"]: tensor["stats"] for tensor in ran.json["tensors"]}
    size = LARGE.size
    assert stats["large"] == {"elements": size, "nan": 0, "inf": 0, "min": 0.0, "max": size - 1, "mean": (size - 1) / 2}
    assert stats["kernel"] == {"elements": 10_000, "nan": 1, "inf": 2, "min": 1.0, "max": 1.0, "mean": 1.0}
    assert [stats["half"][name] for name in ("min", "max", "mean")] == [-2.0, 0.5, -0.75]
    assert [stats["phase"][name] for name in ("min", "max", "mean")] == [0.0, 5.0, 2.5]
    assert [stats["mask"][name] for name in ("min", "max", "mean")] == [0, 1, 0.75]
    assert [stats["step"][name] for name in ("min", "max", "mean")] == [7, 7, 7.0]
    assert stats["empty"] == {"elements": 0, "nan": 0, "inf": 0, "min": None, "max": None, "mean": None}
    assert stats["words"] is None
    assert [stats["count"][name] for name in ("elements", "min", "max")] == [2, 4.0, 8.0]  # the sum of two workers'
    assert "stats" not in runner("show", measured, "--json").json["tensors"][0]


def test_what_holds_nan_comes_first(runner: Runner, measured: str) -> None:
    ran = runner("show", measured, "--stats")
    assert (ran.code, ran.err) == (0, "")
    *_, table = ran.out.split("\n\n")
    head, first, *rest = table.splitlines()
    assert head.split() == ["tensor", "dtype", "min", "max", "mean", "NaN", "Inf"]
    assert first.split() == ["kernel", "float32", "1", "1", "1", "1", "2"]
    assert rest[-1] == "NaN or Inf in 1 of 8 tensors"


def test_it_takes_memory_for_slices_and_not_for_tensors(
    runner: Runner, measured: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    memory_for = buffers.memory_for

    def counted(what: str, size_bytes: int) -> Bytes1D:
        taken.append(size_bytes)
        return memory_for(what, size_bytes)

    monkeypatch.setattr(buffers, "memory_for", counted)
    assert runner("show", measured, "--stats").code == 0
    assert sum(taken) >= LARGE.nbytes
    assert max(taken) <= SHARD_BYTES < LARGE.nbytes


def test_damage_is_damage(runner: Runner, measured: str) -> None:
    shard = max(Path(measured, "000000000001-i0001").glob("shard-*"), key=lambda path: path.stat().st_size)
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    ran = runner("show", measured, "--stats")
    assert (ran.code, ran.out) == (1, "")


def test_without_tensors_there_is_nothing_to_measure(runner: Runner, measured: str) -> None:
    ran = runner("show", measured, "--stats", "--no-tensors")
    assert ran.code == 2
    assert "leave out --no-tensors" in ran.err


def test_it_loads_no_tensorflow(root: str) -> None:
    ran = run_alone("show", root, "--stats", script=NO_TENSORFLOW)
    assert (ran.code, ran.err) == (0, "loaded: []\n")
