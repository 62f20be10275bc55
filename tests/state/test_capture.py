"""A snapshot: its values never move, its bytes are not copied, and nothing a user's class does fails it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tensorflow.python.ops import resource_variable_ops

from ckptflow.errors import UnsupportedStateError, UsageError
from ckptflow.state.capture import Snapshot, capture
from ckptflow.state.tree import as_mapping, walk
from tests.state import roundtrip

TOKENS = np.arange(32).reshape(8, 4) % 11
TARGETS = np.linspace(0, 1, 8, dtype=np.float32).reshape(8, 1)


def take(state: Any) -> Snapshot:
    return capture(walk(as_mapping(state)), is_chief=True)


def _compiled(framework: Any, jit_compile: bool, policy: str) -> tuple[Any, Callable[[], Any]]:
    layers = framework.layers
    options = {"dtype": policy}
    model = framework.Sequential(
        [
            layers.Embedding(11, 16, **options),
            layers.Reshape((64,), **options),
            layers.Dense(64, **options),
            layers.BatchNormalization(**options),
            layers.Dropout(0.2, **options),
            layers.Dense(1, dtype="float32"),
        ]
    )
    model.compile(framework.optimizers.Adam(0.1), "mse", jit_compile=jit_compile)
    return model, lambda: model.train_on_batch(TOKENS, TARGETS)


def _graph_updates() -> tuple[Any, Callable[[], Any]]:
    module = tf.Module()
    module.dense = tf.Variable(tf.random.normal([100, 8]))
    module.sparse = tf.Variable(tf.random.normal([100, 8]))

    @tf.function
    def update() -> None:
        for _ in tf.range(3):
            module.dense.assign_add(tf.ones_like(module.dense))
            module.sparse.scatter_add(tf.IndexedSlices(tf.ones([2, 8]), tf.constant([1, 5])))

    return module, update


def _eager_updates() -> tuple[Any, Callable[[], Any]]:
    module = tf.Module()
    module.dense = tf.Variable(tf.random.normal([100, 8]))
    module.rows = tf.Variable(tf.random.normal([100, 8]))

    def update() -> None:
        module.dense.assign(module.dense * 2)
        module.rows.scatter_nd_update([[3]], tf.random.normal([1, 8]))
        module.rows[5:7].assign(tf.random.normal([2, 8]))

    return module, update


TRAINING: dict[str, Callable[[], tuple[Any, Callable[[], Any]]]] = {
    "keras": lambda: _compiled(keras, False, "float32"),
    "keras, jit": lambda: _compiled(keras, True, "float32"),
    "keras, mixed_float16": lambda: _compiled(keras, False, "mixed_float16"),
    "tf_keras": lambda: _compiled(tf_keras, False, "float32"),
    "tf_keras, jit": lambda: _compiled(tf_keras, True, "float32"),
    "tf.function": _graph_updates,
    "eager": _eager_updates,
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.chaos if name == "tf_keras, jit" else ()) for name in TRAINING]
)
def test_held_values_do_not_move_while_training_goes_on(name: str) -> None:
    state, train = TRAINING[name]()
    train()
    snapshot = take(state)
    at_capture = roundtrip.of_snapshot(snapshot)  # copies, before the next step
    train()
    train()
    later = roundtrip.of_snapshot(snapshot)
    changed = roundtrip.save(state)
    assert all((left == right).all() for left, right in zip(at_capture.data, later.data, strict=True))
    moved = [left.tobytes() != right.tobytes() for left, right in zip(at_capture.data, changed.data, strict=True)]
    assert sum(moved) >= 2  # training does change what is held


def test_bytes_share_the_memory_of_the_variable() -> None:
    state = {
        name: tf.Variable(tf.zeros([64, 64], name)) for name in ("float32", "bfloat16", "int8", "bool", "complex128")
    }
    snapshot = take(state)
    for index, spec in enumerate(snapshot.specs):
        value = tf.raw_ops.ReadVariableOp(resource=state[spec.name].handle, dtype=state[spec.name].dtype)
        assert snapshot.data(index).ctypes.data == np.asarray(value).ctypes.data


def test_a_released_tensor_is_gone() -> None:
    snapshot = take({"a": tf.Variable(1.0), "b": tf.Variable(2.0)})
    snapshot.release(0)
    with pytest.raises(UsageError, match="a was released"):
        snapshot.data(0)
    assert snapshot.data(1).view(np.float32).tolist() == [2.0]


def test_variables_without_a_value_are_named() -> None:
    empty = resource_variable_ops.UninitializedVariable(shape=[2], dtype=tf.float32, trainable=False)
    with pytest.raises(UsageError, match=r"no value yet.*: nothing$"):
        take({"nothing": empty, "something": tf.Variable(1.0)})


def test_not_inside_a_function_or_a_replica() -> None:
    tree = walk({"v": tf.Variable(1.0)})
    with pytest.raises(UsageError, match="between two steps"):
        tf.function(lambda: capture(tree, is_chief=True), autograph=False)()
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with pytest.raises(UsageError, match="between two steps"):
        strategy.run(tf.autograph.experimental.do_not_convert(lambda: capture(tree, is_chief=True)))


class _WithoutConfig(keras.Model):  # type: ignore[misc]
    def __init__(self, size: int, *, helper: Any) -> None:
        super().__init__()
        self.dense, self.helper = keras.layers.Dense(size), helper

    def call(self, x: Any) -> Any:
        return self.helper(self.dense(x))

    def get_config(self) -> dict[str, Any]:
        raise RuntimeError("no config")


def test_models_without_a_config_are_saved_without_it() -> None:
    strange = _WithoutConfig(2, helper=lambda x: x)
    strange(np.ones((1, 3)))
    anonymous = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x), keras.layers.Dense(1)])
    anonymous.compile("sgd", lambda target, output: output)
    models = take({"strange": strange, "anonymous": anonymous}).models
    assert "config" not in models["strange"]
    assert models["strange"]["variables"] == 2
    assert models["anonymous/optimizer"] == {
        "kind": "optimizer",
        "framework": "keras",
        "class": "keras.src.optimizers.sgd.SGD",
        "built": False,
    }


def test_configs_are_made_once_for_a_tree() -> None:
    tree = walk({"model": keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])})
    assert capture(tree, is_chief=True).models is capture(tree, is_chief=True).models


def test_python_state_that_json_cannot_hold_is_named() -> None:
    class Entry:
        def get_state(self) -> Any:
            return {"best": np.zeros(3)}

        def set_state(self, state: Any) -> None: ...

    with pytest.raises(UnsupportedStateError, match="entry"):
        take({"entry": Entry()})
