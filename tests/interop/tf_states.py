"""States that stock TensorFlow saves and restores: what a program makes first, and what training makes of it.

Nothing here imports ckptflow: stock processes use this module too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras

DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "bfloat16"),
    *("float32", "float64", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2", "int4", "uint4"),
)
X = np.random.default_rng(3).normal(size=(8, 4)).astype(np.float32)
Y = np.random.default_rng(4).normal(size=(8, 2)).astype(np.float32)


@dataclass(frozen=True)
class State:
    """`make` gives the named objects as they are before a restore, `train` changes every value in them."""

    make: Callable[[], dict[str, Any]]
    train: Callable[[dict[str, Any]], None]


def _values(dtype: str, *values: int) -> Any:
    return tf.constant(np.array(values).astype(tf.as_dtype(dtype).as_numpy_dtype))


class Everything(tf.Module):  # type: ignore[misc]
    """What a tf.Module can hold beside plain variables."""

    def __init__(self) -> None:
        super().__init__()
        self.of_dtype = {name: tf.Variable(_values(name, 0, 0, 0)) for name in DTYPES}
        self.scalar, self._private = tf.Variable(0.0), tf.Variable(0)
        self.nothing, self.no_rows = tf.Variable(tf.zeros([0])), tf.Variable(tf.zeros([0, 3]))
        self.words, self.no_words = tf.Variable(["", ""]), tf.Variable(tf.constant([], tf.string))
        self.nested = {"a/b": [tf.Variable([0.0]), {"c.d": tf.Variable([0.0])}], "größe 大": (tf.Variable([0.0]),)}
        self.again = self.nested["a/b"][0]
        self.me = self
        self.table = tf.lookup.experimental.MutableHashTable(tf.string, tf.float32, [0.0, 0.0])
        self.static = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a"], [1]), 0)
        self.generator = tf.random.Generator.from_seed(1)
        self.iterator = iter(tf.data.Dataset.range(100).shuffle(10, seed=7).batch(3))
        self.call = tf.function(lambda x: x)

    def train(self) -> None:
        for number, (name, variable) in enumerate(self.of_dtype.items()):
            variable.assign(_values(name, number % 2, 1, 0))
        self.scalar.assign(3.5)
        self._private.assign(-7)
        self.words.assign(["größe", "b\0"])
        for number, variable in enumerate(tf.nest.flatten(dict(self.nested))):
            variable.assign([number + 1.0])
        self.table.insert(["x", "yy"], [[1.0, 2.0], [3.0, 4.0]])
        self.generator.normal([3])
        next(self.iterator)

    def answers(self) -> list[Any]:
        """What comes next, and what is looked up."""
        values = (self.generator.normal([2]), next(self.iterator), self.table.lookup(tf.constant(["yy", "no"])))
        return [np.asarray(value).tolist() for value in values]


def train_step(model: Any, optimizer: Any) -> None:
    """One eager step, whatever scales the loss."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(tf.cast(model(X, training=True), tf.float32) - Y))
        scaled = optimizer.get_scaled_loss(loss) if hasattr(optimizer, "get_scaled_loss") else loss
    gradients = tape.gradient(scaled, model.trainable_variables)
    if hasattr(optimizer, "get_unscaled_gradients"):
        gradients = optimizer.get_unscaled_gradients(gradients)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))


def _sequential(framework: Any, policy: str | None = None) -> Any:
    layers = [
        framework.layers.Dense(5, activation="tanh", dtype=policy),
        framework.layers.BatchNormalization(dtype=policy),
        framework.layers.Dense(2, dtype=policy),
    ]
    return framework.Sequential([framework.Input((4,)), *layers])


def build(optimizer: Any, variables: Any) -> None:
    """Makes an optimizer's slots."""
    optimizer.build(variables) if hasattr(optimizer, "build") else optimizer._create_all_weights(variables)


def compiled(framework: Any, optimizer: Callable[[], Any], policy: str | None = None) -> State:
    """A compiled model, its optimizer its own."""

    def make() -> dict[str, Any]:
        model = _sequential(framework, policy)
        model.compile(optimizer(), "mse")
        build(model.optimizer, model.trainable_variables)
        return {"model": model}

    return State(make, lambda state: train_step(state["model"], state["model"].optimizer))


def custom_loop(framework: Any, optimizer: Callable[[], Any]) -> State:
    """A model and an optimizer side by side, and a counter."""

    def make() -> dict[str, Any]:
        model, made = _sequential(framework), optimizer()
        build(made, model.trainable_variables)
        return {"net": model, "optimizer": made, "step": tf.Variable(0, dtype=tf.int64)}

    def train(state: dict[str, Any]) -> None:
        train_step(state["net"], state["optimizer"])
        state["step"].assign_add(1)

    return State(make, train)


def _everything() -> dict[str, Any]:
    return {"module": Everything(), "step": tf.Variable(0)}


def _train_everything(state: dict[str, Any]) -> None:
    state["module"].train()
    state["step"].assign_add(1)


def _variables() -> dict[str, Any]:
    return {"w": tf.Variable(tf.zeros([3, 2])), "b": tf.Variable([0.0, 0.0])}


def _train_variables(state: Mapping[str, Any]) -> None:
    for number, variable in enumerate(state.values()):
        variable.assign(tf.fill(variable.shape, number + 1.5))


legacy = tf_keras.optimizers.legacy
STATES = {
    "everything": State(_everything, _train_everything),
    "variables": State(_variables, _train_variables),
    "keras": compiled(keras, lambda: keras.optimizers.Adam(0.1)),
    "keras custom loop": custom_loop(keras, lambda: keras.optimizers.RMSprop(0.1, momentum=0.9)),
    "keras mixed": compiled(
        keras, lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.1)), "mixed_float16"
    ),
    "tf_keras": compiled(tf_keras, lambda: tf_keras.optimizers.Adam(0.1)),
    "tf_keras custom loop": custom_loop(tf_keras, lambda: tf_keras.optimizers.SGD(0.1, momentum=0.9)),
    "tf_keras legacy": compiled(tf_keras, lambda: legacy.Adam(0.1, amsgrad=True)),
    "tf_keras legacy custom loop": custom_loop(tf_keras, lambda: legacy.SGD(0.1, momentum=0.9)),
    "tf_keras legacy mixed": compiled(
        tf_keras, lambda: tf_keras.mixed_precision.LossScaleOptimizer(legacy.Adam(0.1)), "mixed_float16"
    ),
}
