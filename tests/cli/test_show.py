"""`ckptflow show`: everything in a manifest, from a root or a checkpoint's folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import ckptflow
from ckptflow.format.spec import TensorSpec
from ckptflow.format.words import size_text
from ckptflow.storage.opening import open_store
from tests.cli.runner import Runner
from tests.roots import Life, make_linked_root

MEMBERS = {"url", "folder", "step", "incarnation", "run_id", "writer_id", "world_size", "reason", "restored", "lineage"}
MEMBERS |= {
    "barrier",
    "fresh_since",
    "sound_since",
    "pinned",
    "pin_names",
    "size_bytes",
    "copied_bytes",
    "family",
    "software",
    "metrics",
    "metadata",
    "python_state",
    "models",
}
MEMBERS |= {"doubt", "diverged", "created_at", "began_at", "timings", "shards", "tensors"}
TENSOR = {"name", "dtype", "shape", "size_bytes", "aliases", "components", "metric", "slices"}


@pytest.fixture
def rich_root(root: str) -> str:
    """A rollback to step 200 that saved step 250 with everything that a manifest can say."""
    life = Life(open_store(root), step=200, world_size=2)
    life.save(200)
    arrays: dict[str, Any] = {f"layer/{i}/kernel": np.ones((i + 1, 8), np.float32) for i in range(25)}
    arrays |= {"model/total": np.ones(8, np.float32), "data": np.asarray([b"x"], object)}
    total = TensorSpec("model/total", "float32", (8,), components="sum", aliases=("metrics/total",), metric=True)
    state = {"position": {"epoch": 3}, "early": {"best": float("inf")}}
    life.save(250, arrays, specs={"model/total": total}, metrics={"loss": 0.25}, metadata={"note": "a [b] é"},
              python_state=state, software={"tensorflow": "2.21.0"})  # fmt: skip
    return root


def test_everything_is_told(runner: Runner, rich_root: str) -> None:
    ran = runner("show", rich_root)
    assert ran.code == 0
    for text in (
        f"{rich_root}/000000000250-i0002",
        "2 of run ",
        "rolled back to 000000000200-i0001 on request",
        "2 checkpoints, the newest 000000000200-i0001",
        "by 2 workers",
        "27, ",
        "loss=0.25",
        '{"note": "a [b] é"}',
        "early, position",
        "tensorflow 2.21.0",
        "7 smaller ones are not shown",
        "layer/24/kernel  float32  25x8",
    ):
        assert text in ran.out


def test_tensors_or_none(runner: Runner, rich_root: str) -> None:
    all_of_them = runner("show", rich_root, "--tensors").out
    assert "2 in 2 shards  sum of workers, metric, also metrics/total" in all_of_them
    assert "layer/0/kernel" in all_of_them
    assert "smaller ones" not in all_of_them
    assert "kernel" not in runner("show", rich_root, "--no-tensors").out


def test_json_has_the_documented_members(runner: Runner, rich_root: str) -> None:
    told = runner("show", rich_root, "--json").json
    assert set(told) == MEMBERS
    assert all(set(tensor) == TENSOR for tensor in told["tensors"])
    sizes = [tensor["size_bytes"] for tensor in told["tensors"]]
    assert len(sizes) == 27
    assert sizes == sorted(sizes, reverse=True)
    (total,) = (tensor for tensor in told["tensors"] if tensor["name"] == "model/total")
    assert (total["shape"], total["components"], total["aliases"]) == ([2, 8], "sum", ["metrics/total"])
    assert [piece["start"] for piece in total["slices"]] == [[0, 0], [1, 0]]
    assert told["python_state"] == {"position": {"epoch": 3}, "early": {"best": {"$float": "inf"}}}
    assert (told["reason"], told["restored"], told["barrier"]) == ("rollback", "000000000200-i0001", 2)
    assert sum(shard["size_bytes"] for shard in told["shards"]) == told["size_bytes"]
    assert set(runner("show", rich_root, "--json", "--no-tensors").json) == MEMBERS - {"tensors"}


def test_by_step_and_by_folder(runner: Runner, rich_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def folder(*args: str) -> str:
        return str(runner("show", "--json", *args).json["folder"])

    assert folder(rich_root, "--step", "100") == "000000000100-i0001"
    assert folder(rich_root, "--step", "200") == "000000000200-i0002"
    assert folder(rich_root, "--step", "300") == "000000000300-i0001"  # outside since the rollback
    assert folder(f"{rich_root}/000000000300-i0001/") == "000000000300-i0001"
    assert folder(f"file://{rich_root}/000000000200-i0002") == "000000000200-i0002"
    monkeypatch.chdir(rich_root)
    assert folder("000000000100-i0001") == "000000000100-i0001"
    assert folder(".") == "000000000250-i0002"


def test_what_was_copied_and_from_where(runner: Runner, root: str) -> None:
    assert "\ncopied  " not in runner("show", root).out
    size_bytes = make_linked_root(linked := f"{root}-linked")
    told = runner("show", linked, "--json").json
    assert (told["copied_bytes"], told["family"]) == (size_bytes, 0)
    first, *others = told["shards"]
    assert first["copied_from"] == f"000000000100-i0001/{first['name']}"
    assert all(shard["copied_from"] is None for shard in others)
    out = runner("show", linked).out
    sent = size_text(told["size_bytes"] - size_bytes)
    assert f"{size_text(size_bytes)} in 1 shard from 000000000100-i0001; {sent} were sent" in out
    copied = {tensor["name"] for tensor in told["tensors"] if any(piece["shard"] == 0 for piece in tensor["slices"])}
    (kernel,) = (line for line in out.splitlines() if line.startswith("model/embedding"))
    assert ("copied" in kernel) == ("model/embedding" in copied)


def test_nothing_there(runner: Runner, root: str, tmp_path: Path) -> None:
    ran = runner("show", root, "--step", "7")
    assert (ran.code, ran.out) == (1, "")
    assert "no checkpoint of step 7 is here; there are steps 100, 200, 300" in ran.err
    assert runner("show", str(tmp_path / "nowhere")).code == 1
    assert runner("show", f"{root}/000000000300-i0009").code == 1
    assert runner("show", f"{root}/000000000300-i0001", "--step", "200").code == 2


def test_a_damaged_manifest_is_passed_over_aloud(runner: Runner, root: str) -> None:
    os.truncate(Path(root) / "000000000300-i0001" / "manifest.json", 200)
    ran = runner("show", root, "--json")
    assert ran.json["step"] == 200
    ran = runner("show", root, "--step", "300")
    assert ran.code == 1
    assert "do not match the checksum" in ran.err


def test_how_long_it_took_is_told_where_it_is_known(runner: Runner, root: str, tmp_path: Path) -> None:
    assert "blocked training" not in runner("show", root).out  # written by hand
    with ckptflow.CheckpointManager(tmp_path / "timed", tf.Variable(tf.zeros([10]))) as manager:
        checkpoint = manager.save(1).result()
    shown = runner("show", str(tmp_path / "timed"), "--json").json
    (timing,) = shown["timings"]
    assert 0 < timing["blocked_s"] < timing["write_s"]
    assert shown["began_at"] <= checkpoint.created_at.isoformat()
    assert f"blocked training for {timing['blocked_s']:.3g} s" in runner("show", str(tmp_path / "timed")).out
