"""What is trained under every setting: one model, one optimizer with slots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from tests.matrix.homes import Home, Piece
from tests.matrix.settings import OTHERS, SLOTS, TRAINED

Array = npt.NDArray[Any]
_SEEN_PER_STEP = 12.0  # divides by every number of replicas, so that no sum is rounded


class Trainee:
    """The state under one setting; another `seed` gives other values to everything."""

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
        self._trained = [part for name in TRAINED for part in home.parts(getattr(self.module, name))]
        with home.scope():
            self.optimizer = tf_keras.optimizers.Adam(0.001 * (1 + seed), mesh=home.mesh)
            self.optimizer.build(self._trained)

    @property
    def state(self) -> dict[str, Any]:
        """What a manager is given."""
        return {"model": self.module, "optimizer": self.optimizer}

    @property
    def step(self) -> int:
        """How many steps have been trained, by the optimizer's own count."""
        return int(self.home.pieces([self.optimizer.iterations])[0][1])

    def train(self, count: int) -> None:
        """Trains `count` steps."""
        self.home.run(self._step, count)

    def _step(self) -> None:
        module, share = self.module, 1.0 / self.home.replicas
        with tf.GradientTape() as tape:
            inner = tf.matmul(tf.ones([4, 512]), tf.convert_to_tensor(module.kernel))
            outputs = (
                inner + tf.convert_to_tensor(module.bias),
                tf.convert_to_tensor(module.odd),
                self.home.rows(module.embedding, tf.range(20)),
            )
            loss = share * sum(tf.reduce_mean(tf.square(output)) for output in outputs)
        gradients = tape.gradient(loss, self._trained)
        self.optimizer.apply_gradients(zip(gradients, self._trained, strict=True))
        module.steps.assign_add(tf.constant(1, tf.int64))
        module.half.assign_add(tf.ones([5, 8], tf.float16))
        module.wide.assign_add(tf.ones([9], tf.float64))
        module.flags.assign(tf.logical_not(tf.convert_to_tensor(module.flags)))
        module.seen.assign_add(tf.fill([3], _SEEN_PER_STEP * share))

    def held(self) -> Iterator[tuple[str, list[Piece]]]:
        """Every tensor's name in a checkpoint, and the pieces of it that are here."""
        home = self.home
        for name in (*TRAINED, *OTHERS):
            yield f"model/{name}", home.pieces(home.parts(getattr(self.module, name)))
        for slot, variables in zip(SLOTS, (self.optimizer._momentums, self.optimizer._velocities), strict=True):
            rest = iter(variables)
            for name in TRAINED:
                parts = [next(rest) for _ in home.parts(getattr(self.module, name))]
                yield f"optimizer/{slot}/model/{name}", home.pieces(parts)
        yield "optimizer/iterations", home.pieces([self.optimizer.iterations])
        yield "optimizer/learning_rate", home.pieces([self.optimizer._learning_rate])


def _other_value(random: np.random.Generator, name: str, shape: tuple[int, ...], dtype: str) -> Array:
    if name in ("steps", "seen"):
        return np.full(shape, 12 if name == "seen" else 0, dtype)
    values = random.normal(0, 1, shape)
    return (values > 0 if dtype == "bool" else values).astype(dtype)
