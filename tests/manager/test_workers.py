"""Two and three real worker processes under MultiWorkerMirroredStrategy: what only more than one can get wrong."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

import ckptflow
from tests.processes import run_workers


def run(name: str, count: int, root: Path) -> list[str]:
    results = run_workers(f"tests.manager.workers:{name}", count, env={"ROOT": str(root)})
    for result in results:
        assert "well" in result.output, result.output
    return [result.output for result in results]


def test_workers_share_the_bytes_and_another_number_resumes(tmp_path: Path) -> None:
    run("save_and_restore", 2, tmp_path)
    manifest = json.loads((tmp_path / "000000000002-i0001" / "manifest.json").read_bytes())
    assert len(manifest["timings"]) == 2
    written = {0: 0, 1: 0}
    for shard in manifest["shards"]:
        assert shard["size_bytes"] <= 2**21
        written[int(shard["name"].split("-")[1])] += shard["size_bytes"]
    assert abs(written[0] - written[1]) <= 0.05 * sum(written.values()) / 2
    small = next(t for t in manifest["tensors"] if t["name"] == "m/small")
    assert manifest["shards"][small["slices"][0]["shard"]]["name"].startswith("shard-00000-of-00002")
    run("restore_only", 3, tmp_path)
    with ckptflow.open_checkpoint(tmp_path) as checkpoint:
        assert (checkpoint.checkpoint.step, checkpoint.manifest.world_size) == (4, 3)
        np.testing.assert_array_equal(checkpoint["m/large"], np.arange(3_000_000, dtype=np.float32) + 1)
        assert checkpoint.verify() == []


def test_where_one_can_start_no_thread_all_raise(tmp_path: Path) -> None:
    run("one_can_start_no_thread", 2, tmp_path)


def test_replicas_that_differ_are_named_and_never_mixed(tmp_path: Path) -> None:
    outputs = run("diverged", 2, tmp_path)
    averages = ["model/batch_normalization/moving_mean", "model/batch_normalization/moving_variance"]
    chief = np.load(tmp_path / "chief.npz")
    with ckptflow.open_checkpoint(tmp_path / "run", step=1) as checkpoint:
        assert list(checkpoint.manifest.diverged) == averages  # Keras 3 under MultiWorkerMirroredStrategy
        for name in [*averages, "module/codebook"]:
            np.testing.assert_array_equal(checkpoint[name], chief[name.rpartition("/")[2]])
        assert len(checkpoint.spec("module/weight").slices) == 2
        assert len(checkpoint.spec("module/codebook").slices) == 1
    with ckptflow.open_checkpoint(tmp_path / "run", step=2) as checkpoint:  # restored: the averages are equal again
        assert checkpoint.manifest.diverged == ()
    assert "differ between workers" in outputs[0]
    assert [c.step for c in ckptflow.list_checkpoints(tmp_path / "run")] == [1, 2, 4]


def test_what_may_differ_what_is_ones_own_and_what_must_be_equal(tmp_path: Path) -> None:
    run("kept_apart", 2, tmp_path)
    with ckptflow.open_checkpoint(tmp_path / "run") as checkpoint:
        assert checkpoint.manifest.diverged == ("averages", "number")
        assert len(checkpoint.spec("averages").slices) > 1
        for name in ("averages", "memory"):  # the chief's, whole
            assert set(np.unique(checkpoint[name])) == {1.0}
        for entry in ("counter", "seen"):
            assert [float(checkpoint[f"{entry}/worker-{worker}"]) for worker in (0, 1)] == [1.0, 2.0]
        assert "module/counter" not in checkpoint
    assert ckptflow.list_checkpoints(tmp_path / "other") == []


def test_a_worker_that_cannot_write(tmp_path: Path) -> None:
    run("one_worker_fails", 2, tmp_path)
    assert [c.step for c in ckptflow.list_checkpoints(tmp_path)] == [1, 3]


def test_a_worker_that_cannot_even_report_it(tmp_path: Path) -> None:
    run("storage_refuses_a_worker", 3, tmp_path)
    assert [c.step for c in ckptflow.list_checkpoints(tmp_path)] == [1, 3]


def test_a_worker_that_never_reports(tmp_path: Path) -> None:
    run("a_worker_never_reports", 2, tmp_path)
    assert [c.step for c in ckptflow.list_checkpoints(tmp_path)] == [1]


def test_one_workers_mistake_raises_on_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run("errors_reach_all", 2, tmp_path)


def test_after_a_worker_has_left_alone_all_begin_again(tmp_path: Path) -> None:
    run("one_leaves_and_all_try_again", 2, tmp_path)
    assert [c.step for c in ckptflow.list_checkpoints(tmp_path)] == [4]


def test_a_manager_that_one_worker_makes_alone_is_named(tmp_path: Path) -> None:
    run("one_manager_more", 2, tmp_path / "run")
