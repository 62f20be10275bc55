"""On a disk one file is in several checkpoints: what a bit that flips in it costs, and what it does not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ckptflow import CheckpointManager, KeepLast, list_checkpoints, open_checkpoint


def job(root: Path, saves: int) -> tuple[int, list[int], Any]:
    """Restores the newest that is sound, and saves; the step restored, what each save copied, and the frozen values."""
    frozen = keras.layers.Dense(1024, use_bias=False, trainable=False)
    state = {"model": keras.Sequential([keras.Input((512,)), frozen]), "step": tf.Variable(0, dtype=tf.int64)}
    if not root.exists():
        frozen.set_weights([np.random.default_rng(0).random((512, 1024), np.float32)])
    with CheckpointManager(root, state, keep=[KeepLast(4)]) as manager:
        manager.restore_latest()
        step = int(state["step"].numpy())
        values, copied = frozen.get_weights()[0], []
        for number in range(step + 1, step + 1 + saves):
            state["step"].assign(number)
            copied.append(manager.save(number).result().copied_bytes)
    return step, copied, values


def shared_shard(url: str) -> Path:
    return next(path for path in sorted(Path(url).glob("shard-*")) if path.stat().st_nlink > 1)


def flip(path: Path) -> None:
    """As a disk does it: size and times stay."""
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("which", [-1, -2])
def test_a_flip_in_a_file_of_either_family(tmp_path: Path, which: int) -> None:
    """Every second checkpoint has that file. The newest of the others is restored, and once the damage was met the file
    is not copied any more, though its version is right."""
    root = tmp_path / "run"
    _, copied, frozen = job(root, 8)
    assert copied[-1]
    path = shared_shard(list_checkpoints(root)[which].url)
    flip(path)
    held = path.open("rb")  # else its inode is another file's once it is deleted
    inode = os.fstat(held.fileno()).st_ino

    def damaged() -> list[int]:
        found = []
        for checkpoint in list_checkpoints(root):
            with open_checkpoint(checkpoint.url) as opened:
                is_damaged = bool(opened.verify())
            assert is_damaged == any(each.stat().st_ino == inode for each in Path(checkpoint.url).glob("shard-*"))
            found += [checkpoint.step] * is_damaged
        return found

    assert damaged() == ([6, 8] if which == -1 else [5, 7])
    step, copied, found = job(root, 4)
    assert step == (7 if which == -1 else 8)
    assert (found == frozen).all()
    assert damaged() == ([] if which == -1 else [9, 11])  # where nobody has read it, it is copied on
    assert copied[-1]
    held.close()
    step, _, found = job(root, 0)
    assert step == (11 if which == -1 else 12)
    assert (found == frozen).all()
