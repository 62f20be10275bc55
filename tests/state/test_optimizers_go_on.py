"""Training that is restored goes on as training that was never interrupted, bit for bit, under every optimizer.

What an optimizer keeps elsewhere than in its variables shows only in the steps after a restore.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ckptflow import CheckpointManager

Make = Callable[[], Any]
BEFORE = 3  # steps before the save; late enough for whatever begins at the first
TF1 = tf.compat.v1.train
LEGACY = tf_keras.optimizers.legacy
K3, TFK = keras.optimizers, tf_keras.optimizers
PLAIN = ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta", "Adamax", "Nadam", "Ftrl", "Lion", "Adafactor")


def makers() -> dict[str, Make]:
    found: dict[str, Make] = {}
    for family, optimizers, more in (("keras3", K3, ("Lamb", "Muon")), ("tf_keras", TFK, ()), ("legacy", LEGACY, ())):
        for name in (*PLAIN, *more):
            kind = getattr(optimizers, name, None)
            if kind is not None:
                found[f"{family} {name}"] = partial(kind, 0.01)
                if optimizers is not LEGACY:
                    found[f"{family} {name} ema"] = partial(kind, 0.01, use_ema=True, ema_overwrite_frequency=2)
        found |= {
            f"{family} SGD momentum": partial(optimizers.SGD, 0.01, momentum=0.9, nesterov=True),
            f"{family} RMSprop centered": partial(optimizers.RMSprop, 0.01, momentum=0.9, centered=True),
            f"{family} Adam amsgrad": partial(optimizers.Adam, 0.01, amsgrad=True),
        }
    of_tf_keras = TFK.schedules.ExponentialDecay(0.1, 2, 0.5)
    return found | {
        "keras3 schedule": partial(K3.Nadam, K3.schedules.ExponentialDecay(0.1, 2, 0.5)),
        "tf_keras schedule": partial(TFK.Nadam, of_tf_keras),
        "legacy schedule": partial(LEGACY.Adam, of_tf_keras),
        "keras3 accumulating": partial(K3.Adam, 0.01, gradient_accumulation_steps=2),
        "tf1 GradientDescent": partial(TF1.GradientDescentOptimizer, 0.01),
        "tf1 Momentum": partial(TF1.MomentumOptimizer, 0.01, 0.9, use_nesterov=True),
        "tf1 Adam": partial(TF1.AdamOptimizer, 0.01),
        "tf1 RMSProp": partial(TF1.RMSPropOptimizer, 0.01, momentum=0.9, centered=True),
        "tf1 Adagrad": partial(TF1.AdagradOptimizer, 0.01),
        "tf1 Adadelta": partial(TF1.AdadeltaOptimizer, 0.01),
        "tf1 Ftrl": partial(TF1.FtrlOptimizer, 0.01),
        "tf1 ProximalAdagrad": partial(TF1.ProximalAdagradOptimizer, 0.01),
        "tf1 loss scale": lambda: TF1.experimental.MixedPrecisionLossScaleOptimizer(
            TF1.AdamOptimizer(0.01), TF1.experimental.DynamicLossScale(increment_period=2)
        ),
        "keras3 loss scale": lambda: K3.LossScaleOptimizer(K3.Adam(0.01), dynamic_growth_steps=2),
    }


MAKERS = makers()
# Those that keep something of a kind of its own, beside slots that are like Adam's. `make chaos` tries all.
KINDS = {
    *("keras3 Nadam", "keras3 Adam ema", "keras3 Adafactor", "keras3 Muon", "keras3 schedule", "keras3 accumulating"),
    *("keras3 loss scale", "tf_keras Nadam", "tf_keras Adam ema", "tf_keras Adafactor", "tf_keras schedule"),
    *("legacy Nadam", "legacy SGD momentum", "legacy schedule"),
    *("tf1 GradientDescent", "tf1 Adam", "tf1 RMSProp", "tf1 loss scale"),
}


class Training:
    """Some weights, an optimizer, and steps that any two trainings take alike."""

    def __init__(self, make: Make, *, is_traced: bool) -> None:
        self.optimizer = make()
        values = [np.full(shape, 0.5, np.float32) for shape in ([4, 3], [3], [3, 2], [2])]
        if isinstance(self.optimizer, keras.optimizers.Optimizer):
            self.weights = [keras.Variable(value, name=f"w{i}") for i, value in enumerate(values)]
        else:
            self.weights = [tf.Variable(value, name=f"w{i}") for i, value in enumerate(values)]
        self._apply = tf.function(self._apply_now) if is_traced else self._apply_now

    @property
    def state(self) -> dict[str, Any]:
        return {"weights": self.weights, "optimizer": self.optimizer}

    def _apply_now(self, gradients: list[Any]) -> None:
        self.optimizer.apply_gradients(zip(gradients, self.weights, strict=True))

    def run(self, first: int, count: int) -> list[Any]:
        """The weights after each step."""
        seen: list[Any] = []
        for step in range(first, first + count):
            draws = np.random.default_rng(step)
            self._apply([tf.constant(draws.normal(size=w.shape), tf.float32) for w in self.weights])
            seen += [np.asarray(weight) for weight in self.weights]
        return seen


def assert_goes_on(root: Path, make: Make, *, is_traced: bool) -> None:
    first = Training(make, is_traced=is_traced)
    first.run(0, BEFORE)
    with CheckpointManager(root, first.state) as manager:
        manager.save(BEFORE)
    expected = first.run(BEFORE, 4)
    second = Training(make, is_traced=is_traced)
    with CheckpointManager(root, second.state) as manager:
        assert manager.restore_latest() is not None
        for want, got in zip(expected, second.run(BEFORE, 4), strict=True):
            np.testing.assert_array_equal(want, got)
        manager.save(BEFORE + 4)
    expected = first.run(BEFORE + 4, 2)
    third = Training(make, is_traced=is_traced)
    with CheckpointManager(root, third.state) as manager:
        assert manager.restore_latest() is not None
    for want, got in zip(expected, third.run(BEFORE + 4, 2), strict=True):
        np.testing.assert_array_equal(want, got)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in KINDS else pytest.mark.chaos) for name in MAKERS]
)
def test_goes_on(tmp_path: Path, name: str) -> None:
    assert_goes_on(tmp_path, MAKERS[name], is_traced=False)


@pytest.mark.parametrize("name", ["tf_keras Nadam", "tf_keras Adam", "legacy Nadam", "keras3 Nadam", "tf1 Adam"])
def test_goes_on_in_a_function(tmp_path: Path, name: str) -> None:
    assert_goes_on(tmp_path, MAKERS[name], is_traced=True)


def test_the_kinds_are_among_them() -> None:
    assert set(MAKERS) >= KINDS


def test_a_nadam_of_another_tool_has_no_count(tmp_path: Path) -> None:
    """As one of a tf.train.Checkpoint: the variables are restored, and the count is left as it was made."""
    training = Training(MAKERS["tf_keras Nadam"], is_traced=False)
    training.run(0, BEFORE)
    delattr(training.optimizer, "_u_product_counter")
    with CheckpointManager(tmp_path, training.state) as manager:
        manager.save(BEFORE)
    with CheckpointManager(tmp_path, Training(MAKERS["tf_keras Nadam"], is_traced=False).state) as manager:
        assert manager.restore_latest() is not None
