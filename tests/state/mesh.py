"""What the process of `test_mesh` runs: a mesh needs several devices, and they are set before anything else."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor

from ckptflow.state.assign import match
from ckptflow.state.blocks import MeshLeaf
from ckptflow.state.tree import walk
from tests.state import roundtrip


def blocks() -> None:
    """A restore that was given up leaves nothing for the next one; axes without elements; what cannot be divided."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
    mesh = dtensor.create_mesh([("x", 2), ("y", 2)], devices=[f"CPU:{i}" for i in range(4)])

    def make(array: Any, *specs: str) -> Any:
        whole = dtensor.copy_to_mesh(tf.constant(array), dtensor.Layout.replicated(mesh, array.ndim))
        return dtensor.DVariable(dtensor.relayout(whole, dtensor.Layout(list(specs), mesh)))

    def values(variable: Any) -> Any:
        return dtensor.relayout(variable.read_value(), dtensor.Layout.replicated(mesh, variable.shape.rank)).numpy()

    variable = make(np.arange(16, dtype=np.float32).reshape(4, 4), "x", "y")
    tree = walk({"v": variable})
    (leaf,) = tree.leaves
    assert isinstance(leaf, MeshLeaf)
    assert len(tree.specs) == len(leaf.boxes) == 4
    saved = [roundtrip.save({"v": tf.Variable(tf.fill([4, 4], float(number)))}).offer() for number in (1, 2)]
    given_up, whole = match(tree, saved[1]), match(tree, saved[0])
    for wanted in given_up.wanted[:3]:
        given_up.open(wanted).view(np.float32)[:] = 2
        given_up.finish(wanted)
    for wanted in whole.wanted:
        whole.open(wanted).view(np.float32)[:] = 1
        whole.finish(wanted)
    np.testing.assert_array_equal(values(variable), np.ones((4, 4), np.float32))

    empty = make(np.zeros((0, 4), np.float32), dtensor.UNSHARDED, "x")
    assert [spec.shape for spec in walk({"e": empty}).specs] == [(0, 4)]
    restoring = match(walk({"e": empty}), roundtrip.save({"e": tf.Variable(tf.zeros([0, 4]))}).offer())
    for wanted in restoring.wanted:
        assert restoring.open(wanted).size == 0
        restoring.finish(wanted)
    restoring.complete()
    print("well")
