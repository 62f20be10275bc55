"""What two DTensor clients run: large blocks of one mesh, read back under another."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor

from ckptflow import CheckpointManager
from ckptflow.events import Tell, tell_nobody
from ckptflow.job import session
from ckptflow.storage.opening import open_store
from ckptflow.storage.store import Store
from tests.speed.stores import MeasuredStore

ROWS, COLUMNS = 2048, 1024  # blocks of 2 MiB under every mesh of four


def blocks() -> None:
    """Saved under 2x2, restored under 4x1 and 1x4 by real processes; each looks at its own blocks."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    dtensor.initialize_accelerator_system("CPU")
    stores: list[MeasuredStore] = []

    def open_counted(url: str, storage_options: dict[str, Any] | None = None, tell: Tell = tell_nobody) -> Store:
        stores.append(MeasuredStore(open_store(url, storage_options, tell)))
        return stores[-1]

    vars(session)["open_store"] = open_counted
    values = np.arange(ROWS * COLUMNS, dtype=np.float32).reshape(ROWS, COLUMNS)
    root = Path(os.environ["ROOT"])

    def make(dimensions: list[tuple[str, int]], array: Any) -> Any:
        mesh = dtensor.create_distributed_mesh(dimensions, device_type="CPU")
        layout = dtensor.Layout(["x", "y"], mesh)
        return dtensor.DVariable(dtensor.call_with_layout(tf.function(lambda: tf.constant(array)), layout))

    saved = make([("x", 2), ("y", 2)], values)
    with CheckpointManager(root, {"v": saved}) as first:
        first.restore_latest()
        first.save(1)
    for dimensions in ([("x", 4), ("y", 1)], [("x", 1), ("y", 4)]):
        variable = make(dimensions, np.zeros_like(values))
        with CheckpointManager(root, {"v": variable}) as other:
            assert other.restore_latest() is not None
        down, across = (count for _, count in dimensions)
        expected = [part for rows in np.split(values, down) for part in np.split(rows, across, axis=1)]
        own = [block.numpy() for block in dtensor.unpack(variable.read_value())]
        mine = expected[2 * dtensor.client_id() :][:2]
        assert len(own) == len(mine) == 2
        for block, part in zip(own, mine, strict=True):
            assert block.tobytes() == part.tobytes(), dimensions
        needed_bytes = sum(part.nbytes for part in mine)
        assert needed_bytes <= stores[-1].shard_bytes_read() <= 1.05 * needed_bytes, (
            dimensions,
            stores[-1].shard_bytes_read(),
        )
    print("well", flush=True)
    os._exit(0)  # DTensor's service waits for both at exit
