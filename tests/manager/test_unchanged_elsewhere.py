"""A run whose checkpoints share files on a disk, copied by a tool: whole checkpoints, from which a job goes on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from ckptflow import Checkpoint, CheckpointManager, KeepLast, open_checkpoint
from ckptflow.cli import main


class Job:
    """A layer that is frozen, of 1 MiB, and a variable that each step changes."""

    def __init__(self, kernel: str) -> None:
        self.frozen = keras.layers.Dense(512, use_bias=False, kernel_initializer=kernel)
        self.frozen.build((None, 512))
        self.frozen.trainable = False
        self.trained = tf.Variable(tf.zeros(16))

    def manager(self, root: Path) -> CheckpointManager:
        return CheckpointManager(root, {"frozen": self.frozen, "trained": self.trained}, keep=KeepLast(5))

    def save(self, manager: CheckpointManager, step: int) -> Checkpoint:
        self.trained.assign_add(tf.ones(16))
        return manager.save(step).result()


def shards(root: Path) -> dict[str, os.stat_result]:
    return {str(path.relative_to(root)): path.stat() for path in root.glob("*/shard-*")}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 1 to 4: what is frozen is there in two files, each with two names."""
    root, job = tmp_path_factory.mktemp("unchanged") / "run", Job("ones")
    with job.manager(root) as manager:
        for step in range(1, 5):
            job.save(manager, step)
    assert sorted(each.st_nlink for each in shards(root).values()) == [1, 1, 1, 1, 2, 2, 2, 2]
    return root


def copy_by(tool: str, root: Path, place: Path) -> None:
    if tool == "ckptflow copy":
        with pytest.raises(SystemExit) as ended:
            main(["copy", str(root), str(place), "--all"])
        assert ended.value.code == 0
    elif tool == "tar":
        place.mkdir()
        subprocess.run(f"tar -C '{root}' -c . | tar -C '{place}' -x", shell=True, check=True)
    else:
        subprocess.run([*tool.split(), root, place], check=True)


@pytest.mark.parametrize(
    ("tool", "keeps_links"), [("cp -r", False), ("cp -a", True), ("tar", True), ("ckptflow copy", False)]
)
def test_a_copy_is_whole_and_a_job_goes_on_from_it(root: Path, tmp_path: Path, tool: str, keeps_links: bool) -> None:
    place, job = tmp_path / "copy", Job("zeros")
    copy_by(tool, root, place)
    here, there = shards(root), shards(place)
    assert here.keys() == there.keys()
    assert not {each.st_ino for each in here.values()} & {each.st_ino for each in there.values()}
    assert ({each.st_nlink for each in there.values()} == {1, 2}) == keeps_links
    for step in range(1, 5):
        with open_checkpoint(place, step) as checkpoint:
            assert checkpoint.verify() == []
    with job.manager(place) as manager:
        restored = manager.restore_latest()
        assert restored is not None
        assert restored.step == 4
        copied = [job.save(manager, step).copied_bytes for step in range(5, 8)]
    # Its files are not those that the manifests tell of: each family is written again, and copied from then on.
    assert [each > 0 for each in copied] == [False, False, True]
    with open_checkpoint(place, 7) as checkpoint:
        assert checkpoint.verify() == []
        values = checkpoint.read(["frozen/kernel", "trained"])
    assert np.array_equal(values["frozen/kernel"], np.ones((512, 512), np.float32))
    assert np.array_equal(values["trained"], np.full(16, 7, np.float32))
