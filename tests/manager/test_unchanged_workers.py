"""Several workers, each of which copies of its own part what has not changed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

import ckptflow
from tests.processes import run_workers


def run(name: str, count: int, root: Path) -> None:
    for result in run_workers(f"tests.manager.frozen_workers:{name}", count, env={"ROOT": str(root)}):
        assert "well" in result.output, result.output


def check(root: Path, world_size: int) -> None:
    """Every checkpoint is whole and right; the newest two share no file."""
    expected = np.random.default_rng(7).random((1024, 1024), np.float32)
    found = ckptflow.list_checkpoints(root)
    for each in found:
        with ckptflow.open_checkpoint(each.url) as checkpoint:
            assert checkpoint.verify() == []
            np.testing.assert_array_equal(checkpoint["backbone/dense/kernel"], expected)
            assert set(np.unique(checkpoint["head"])) == {each.step}
            count = checkpoint.manifest.world_size
            assert set(np.unique(checkpoint["seen"])) == {count * each.step + sum(range(count))}
    assert checkpoint.manifest.world_size == world_size
    files = [{entry.inode() for entry in os.scandir(each.url) if entry.name.startswith("shard-")} for each in found]
    assert not files[-1] & files[-2]


def test_each_worker_copies_its_part(tmp_path: Path) -> None:
    for name, count in (("first", 2), ("again", 2), ("more", 3), ("differ", 2)):
        run(name, count, tmp_path)
        check(tmp_path, count)
