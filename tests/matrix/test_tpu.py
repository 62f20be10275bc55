"""A model that is partitioned over the cores of each replica of a TPU: every replica has a copy for each core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.distribute import tpu_values
from tensorflow.python.distribute.tpu_replicated_variable import TPUReplicatedVariable

import ckptflow

ON_READ = tf.VariableSynchronization.ON_READ


def replicated(cls: Any, strategy: Any, components: list[list[float]], aggregation: Any, **how: Any) -> Any:
    """A variable of two replicas with two cores each, as TPUStrategy makes it with SPMD partitioning."""
    copies = []
    for replica, component in enumerate(components):
        cores = [tf.Variable(component, name="v", aggregation=aggregation, **how) for _ in range(2)]
        copies.append(TPUReplicatedVariable(cores, name=f"v/r:{replica}"))
    return cls(strategy, copies, aggregation)


def held(variable: Any) -> list[list[list[float]]]:
    return [[core.numpy().tolist() for core in copy.variables] for copy in variable.values]


def test_every_core_is_restored_and_one_of_each_replica_is_saved(tmp_path: Path) -> None:
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    kinds = tf.VariableAggregation
    module = tf.Module()
    module.weight = replicated(tpu_values.TPUMirroredVariable, strategy, [[1.0, 2.0]] * 2, kinds.NONE)
    module.total = replicated(
        tpu_values.TPUSyncOnReadVariable, strategy, [[3.0], [4.0]], kinds.SUM, synchronization=ON_READ, trainable=False
    )
    module.mean = replicated(
        tpu_values.TPUSyncOnReadVariable, strategy, [[3.0], [5.0]], kinds.MEAN, synchronization=ON_READ, trainable=False
    )
    with ckptflow.CheckpointManager(tmp_path, {"m": module}, strategy=strategy) as manager:
        manager.save(1)
    with ckptflow.open_checkpoint(tmp_path) as checkpoint:
        saved = {name: array.tolist() for name, array in checkpoint.items()}
    assert saved == {"m/weight": [1.0, 2.0], "m/total": [7.0], "m/mean": [4.0]}

    for variable in (module.weight, module.total, module.mean):
        for copy in variable.values:
            copy.assign(tf.zeros_like(copy))
    with ckptflow.CheckpointManager(tmp_path, {"m": module}, strategy=strategy) as manager:
        manager.restore_latest()
    assert held(module.weight) == [[[1.0, 2.0]] * 2] * 2
    assert held(module.total) == [[[7.0]] * 2, [[0.0]] * 2]  # their sum is what was saved
    assert held(module.mean) == [[[4.0]] * 2] * 2
    module.weight.values[1].variables[1].assign([9.0, 9.0])
    assert np.sum(held(module.weight)) == 3.0 * 3 + 18.0, "no two cores share a buffer"


@pytest.mark.parametrize("kind", ["GPU", "TPU"])
def test_on_a_device(kind: str, tmp_path: Path) -> None:
    """What this machine cannot show is named in the report, and not left out in silence."""
    devices = tf.config.list_logical_devices(kind)
    if not devices:
        pytest.skip(f"no {kind} here: nothing was saved from one or restored to one")
    strategy = tf.distribute.OneDeviceStrategy(devices[0].name)
    with strategy.scope():
        variable = tf.Variable(tf.range(1000, dtype=tf.float32))
    with ckptflow.CheckpointManager(tmp_path, {"v": variable}, strategy=strategy) as manager:
        manager.save(1)
        variable.assign_add(tf.ones_like(variable))
    with ckptflow.open_checkpoint(tmp_path) as checkpoint:
        np.testing.assert_array_equal(checkpoint["v"], np.arange(1000, dtype=np.float32))
    with ckptflow.CheckpointManager(tmp_path, {"v": variable}, strategy=strategy) as manager:
        manager.restore_latest()
    np.testing.assert_array_equal(variable.numpy(), np.arange(1000, dtype=np.float32))
