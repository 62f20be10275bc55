"""On a disk one file is in several checkpoints: what a bit that flips in it costs, and what it does not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from ckptflow import CheckpointManager, KeepLast, list_checkpoints, open_checkpoint

SIZE = 2**19


def job(root: Path, saves: int) -> tuple[int, list[int], np.ndarray]:  # type: ignore[type-arg]
    """Restores the newest that is sound, and saves; the step restored, what each save copied, and the frozen values."""
    state = tf.Module()
    state.frozen = tf.Variable(tf.zeros([SIZE]), trainable=False)
    state.step = tf.Variable(0, dtype=tf.int64)
    with CheckpointManager(root, {"state": state}, keep=[KeepLast(4)]) as manager:
        restored = manager.restore_latest()
        step = int(state.step.numpy())
        if restored is None:
            state.frozen.assign(np.random.default_rng(0).random(SIZE, np.float32))
        frozen = state.frozen.numpy()
        copied = []
        for number in range(step + 1, step + 1 + saves):
            state.step.assign(number)
            copied.append(manager.save(number).result().copied_bytes)
    return step, copied, frozen


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
    _, copied, frozen = job(tmp_path, 8)
    assert copied[-1]
    path = shared_shard(list_checkpoints(tmp_path)[which].url)
    inode = path.stat().st_ino
    flip(path)

    def damaged() -> list[int]:
        found = []
        for checkpoint in list_checkpoints(tmp_path):
            with open_checkpoint(checkpoint.url) as opened:
                is_damaged = bool(opened.verify())
            assert is_damaged == any(each.stat().st_ino == inode for each in Path(checkpoint.url).glob("shard-*"))
            found += [checkpoint.step] * is_damaged
        return found

    assert damaged() == ([6, 8] if which == -1 else [5, 7])
    step, copied, found = job(tmp_path, 4)
    assert step == (7 if which == -1 else 8)
    assert (found == frozen).all()
    assert damaged() == ([] if which == -1 else [9, 11])  # where nobody has read it, it is copied on
    assert copied[-1]
    step, _, found = job(tmp_path, 0)
    assert step == (11 if which == -1 else 12)
    assert (found == frozen).all()
