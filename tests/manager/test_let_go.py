"""What a manager held is let go of once it is closed, although its client may keep connections for a while."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import tensorflow as tf

from ckptflow import CheckpointManager
from tests.servers import Server


def run(url: str, options: dict[str, object]) -> weakref.ref[tf.Module]:
    """One whole job; its state, if anybody still has it."""
    module = tf.Module()
    module.values = tf.Variable(tf.zeros([2**18]))
    with CheckpointManager(url, {"module": module}, storage_options=options, shard_bytes=2**18) as manager:
        restored = manager.restore_latest()
        manager.save(restored.step + 1 if restored else 1)
    return weakref.ref(module)


@pytest.mark.parametrize("client", ["fsspec", "obstore"])
def test_a_closed_manager_keeps_no_state(seaweedfs: Server, client: str, tmp_path: Path) -> None:
    options = {**seaweedfs.storage_options, "client": client}
    states = [run(f"s3://ckptflow-tests/let-go-{client}-{tmp_path.name}", options) for _ in range(2)]
    gc.collect()
    assert [state() for state in states] == [None, None]
