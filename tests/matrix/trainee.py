"""What is trained under every setting: a model, and an optimizer with slots."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from tests.matrix.homes import Home, Piece
from tests.matrix.settings import LAYERS, OTHERS, SLOTS, TRAINED

Array = npt.NDArray[Any]
_SEEN_PER_STEP = 12.0  # divides by every number of replicas, so that no sum is rounded


class Trainee(ABC):
    """The state under one setting: what the model is, and what of it an optimizer trains."""

    home: Home
    optimizer: Any
    optimizer_name: str
    state: dict[str, Any]  # what a manager is given

    @abstractmethod
    def variables(self) -> Iterator[tuple[str, Any, str]]:
        """(name in a checkpoint, variable, name below a slot's or "") for all but the optimizer's own: those that are
        trained in the order in which the optimizer was built for them."""

    @abstractmethod
    def loss(self) -> Any:
        """Of this replica, in a step."""

    @abstractmethod
    def count(self) -> None:
        """What else a step does."""

    def build_optimizer(self, rate: float) -> None:
        """Makes the optimizer, with all its slots."""
        self._trained = [part for _, variable, slot in self.variables() if slot for part in self.home.parts(variable)]
        with self.home.scope():
            self.optimizer = tf_keras.optimizers.Adam(rate, mesh=self.home.mesh)
            self.optimizer.build(self._trained)

    @property
    def step(self) -> int:
        """How many steps have been trained, by the optimizer's own count."""
        return int(self.home.pieces([self.optimizer.iterations])[0][1])

    def train(self, count: int) -> None:
        """Trains `count` steps."""
        self.home.run(self._step, count)

    def _step(self) -> None:
        with tf.GradientTape() as tape:
            loss = self.loss()
        gradients = tape.gradient(loss, self._trained)
        self.optimizer.apply_gradients(zip(gradients, self._trained, strict=True))
        self.count()

    def held(self) -> Iterator[tuple[str, list[Piece]]]:
        """Every tensor's name in a checkpoint, and the pieces of it that are here."""
        home, optimizer = self.home, self.optimizer
        slots = [iter(variables) for variables in (optimizer._momentums, optimizer._velocities)]
        path = self.optimizer_name
        for name, variable, slot_name in self.variables():
            parts = home.parts(variable)
            yield name, home.pieces(parts)
            for slot, rest in zip(SLOTS, slots, strict=True) if slot_name else ():
                yield f"{path}/{slot}/{slot_name}", home.pieces([next(rest) for _ in parts])
        yield f"{path}/iterations", home.pieces([optimizer.iterations])
        yield f"{path}/learning_rate", home.pieces([optimizer._learning_rate])


class Module(Trainee):
    """A tf.Module of variables of several shapes and dtypes, and an optimizer beside it. `seed` gives the values."""

    optimizer_name = "optimizer"

    def __init__(self, home: Home, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.home = home
        self.module = tf.Module()
        for name, shape in TRAINED.items():
            value = random.normal(0, 0.1, shape).astype(np.float32)
            setattr(self.module, name, home.variable(name, value))
        for name, (shape, dtype) in OTHERS.items():
            value = _other_value(random, name, shape, dtype)
            variable = home.variable(name, value, trainable=False, per_replica=name == "seen")
            setattr(self.module, name, variable)
        self.build_optimizer(0.001 * (1 + seed))
        self.state = {"model": self.module, "optimizer": self.optimizer}

    def variables(self) -> Iterator[tuple[str, Any, str]]:
        for name in (*TRAINED, *OTHERS):
            yield f"model/{name}", getattr(self.module, name), f"model/{name}" if name in TRAINED else ""

    def loss(self) -> Any:
        module = self.module
        inner = tf.matmul(tf.ones([4, 512]), tf.convert_to_tensor(module.kernel))
        outputs = (
            inner + tf.convert_to_tensor(module.bias),
            tf.convert_to_tensor(module.odd),
            self.home.rows(module.embedding, tf.range(20)),
        )
        return sum(tf.reduce_mean(tf.square(output)) for output in outputs) / self.home.replicas

    def count(self) -> None:
        module = self.module
        module.steps.assign_add(tf.constant(1, tf.int64))
        module.half.assign_add(tf.ones([5, 8], tf.float16))
        module.wide.assign_add(tf.ones([9], tf.float64))
        module.flags.assign(tf.logical_not(tf.convert_to_tensor(module.flags)))
        module.seen.assign_add(tf.fill([3], _SEEN_PER_STEP / self.home.replicas))


class Net(Trainee):
    """A compiled tf_keras model, whose layers make the variables, with normalization and the optimizer in it."""

    optimizer_name = "net/optimizer"

    def __init__(self, home: Home, seed: int) -> None:
        self.home = home
        with home.layers():
            tf_keras.utils.set_random_seed(seed)
            self.net = tf_keras.Sequential(
                [
                    tf_keras.layers.Dense(6, name="first", input_shape=(8,)),
                    tf_keras.layers.BatchNormalization(name="norm"),
                    tf_keras.layers.Dense(4, name="last"),
                ]
            )
        self.build_optimizer(0.001 * (1 + seed))
        with home.scope():
            self.net.compile(self.optimizer, "mse")
        self.state = {"net": self.net}

    def variables(self) -> Iterator[tuple[str, Any, str]]:
        for layer, attributes in LAYERS.items():
            for attribute in attributes:
                name = f"{layer}/{attribute}"
                variable = getattr(self.net.get_layer(layer), attribute)
                yield f"net/{name}", variable, "" if attribute.startswith("moving") else name

    def loss(self) -> Any:
        inputs = tf.reshape(tf.sin(tf.range(64, dtype=tf.float32)), [8, 8])
        return tf.reduce_mean(tf.square(self.net(inputs, training=True) - 1.0)) / self.home.replicas

    def count(self) -> None:
        """The layers do it."""


def _other_value(random: np.random.Generator, name: str, shape: tuple[int, ...], dtype: str) -> Array:
    if name in ("steps", "seen"):
        return np.full(shape, 12 if name == "seen" else 0, dtype)
    if name == "half":  # any bits: NaNs of all kinds, infinities, zeros with a sign
        return random.integers(0, 2**16, shape).astype(np.uint16).view(np.float16)
    values = random.normal(0, 1, shape)
    return (values > 0 if dtype == "bool" else values).astype(dtype)
