"""Variables are read many at a time: what is held stays what it was, whatever is done to them, and none is mixed up."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.ops import resource_variable_ops

from ckptflow.errors import UsageError
from ckptflow.state.capture import Snapshot, capture
from ckptflow.state.read_plan import BATCH
from ckptflow.state.tree import walk

COUNT = 2 * BATCH + 3


def take(variables: list[tf.Variable]) -> Snapshot:
    module = tf.Module()
    module.v = variables
    return capture(walk({"m": module}), is_chief=True)


def held(snapshot: Snapshot) -> dict[str, bytes]:
    return {spec.name: snapshot.data(i).tobytes() for i, spec in enumerate(snapshot.specs)}


def _momentum(variable: tf.Variable) -> None:
    slot = tf.Variable(tf.zeros_like(variable))
    tf.raw_ops.ResourceSparseApplyMomentum(
        var=variable.handle, accum=slot.handle, lr=-1.0, grad=tf.ones((1, 4)), indices=[0], momentum=0.0
    )


UPDATES: dict[str, Callable[[tf.Variable], Any]] = {
    "assign": lambda v: v.assign_add(tf.ones((8, 4))),
    "slice": lambda v: v[0:1].assign(v[0:1] + 1),
    "scatter add": lambda v: v.scatter_add(tf.IndexedSlices(tf.ones((1, 4)), [0])),
    "scatter nd": lambda v: v.scatter_nd_add([[0]], tf.ones((1, 4))),
    "scatter update": lambda v: v.scatter_update(tf.IndexedSlices(v[:1] + 1, [0])),
    "sparse momentum": _momentum,
}


@pytest.mark.parametrize("before", ["nothing", "a scatter", "a sparse read"])
@pytest.mark.parametrize("update", UPDATES)
def test_what_is_held_never_changes(update: str, before: str) -> None:
    variables = [tf.Variable(tf.random.normal((8, 4))) for _ in range(3)]
    for variable in variables:
        if before == "a scatter":
            variable.scatter_nd_add([[1]], tf.ones((1, 4)))
        elif before == "a sparse read":
            variable.sparse_read([1])
    snapshot = take(variables)
    then = held(snapshot)
    assert then == {f"m/v/{i}": v.numpy().tobytes() for i, v in enumerate(variables)}
    for variable in variables:
        UPDATES[update](variable)
        assert not np.array_equal(variable[0], np.frombuffer(then["m/v/0"], np.float32)[:4])  # it did change
    assert held(snapshot) == then


def test_each_name_gets_its_own_value_over_several_batches_and_dtypes() -> None:
    dtypes = (tf.float32, tf.bfloat16, tf.int64, tf.bool, tf.complex64)
    variables = [tf.Variable(tf.cast(tf.fill((i % 3,), i % 100), dtypes[i % 5])) for i in range(5 * COUNT)]
    for found in (held(take(variables)), held(take(variables))):
        assert found == {f"m/v/{i}": v.numpy().tobytes() for i, v in enumerate(variables)}


def test_the_one_without_a_value_is_named_among_many() -> None:
    empty = resource_variable_ops.UninitializedVariable(shape=[2], dtype=tf.float32, trainable=False)
    variables = [tf.Variable(float(i)) for i in range(COUNT)] + [empty, tf.Variable(np.zeros((0, 3), np.float32))]
    with pytest.raises(UsageError, match=f"initialize them before saving: m/v/{COUNT}$"):
        take(variables)


def test_reading_lets_the_garbage_collector_be() -> None:
    runs: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        runs.append(info["generation"])

    tree_of = walk({"m": _module(60 * BATCH)})
    capture(tree_of, is_chief=True)
    plan = tree_of.read_plan
    gc.collect()
    gc.callbacks.append(note)
    try:
        plan.read()
    finally:
        gc.callbacks.remove(note)
    assert len(runs) <= 4  # each a start and an end; 7,680 new tensors would make it run ten times
    assert gc.isenabled()
    gc.disable()
    try:
        plan.read()
        assert not gc.isenabled()  # the user's wish
    finally:
        gc.enable()


def _module(count: int) -> tf.Module:
    module = tf.Module()
    module.v = [tf.Variable(float(i)) for i in range(count)]
    return module
