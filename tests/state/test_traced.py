"""What a restore gives a preprocessing layer is what its model computes with, also where Keras had traced it before."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ckptflow import CheckpointCallback, CheckpointManager
from tests.state.test_configs import KERASES

NUMBERS = np.random.default_rng(9).normal(size=(8, 1)).astype("f4")
WORDS = np.array([["a"], ["b"], ["c"], ["a"], ["b"], ["c"], ["a"], ["b"]], object)
NAMES = [["a", "b"], ["b", "c"]]


def normalization(kit: Any, number: int) -> Any:
    layer = kit.layers.Normalization()
    layer.adapt(NUMBERS * (number + 1) + number)
    return layer


def discretization(kit: Any, number: int) -> Any:
    layer = kit.layers.Discretization(num_bins=3, output_mode="multi_hot")
    layer.adapt(NUMBERS * (number + 1) + number)
    return layer


def lookup(kit: Any, number: int) -> Any:
    return kit.layers.StringLookup(vocabulary=NAMES[number], output_mode="multi_hot")


def text(kit: Any, number: int) -> Any:
    return kit.layers.TextVectorization(vocabulary=NAMES[number], output_mode="multi_hot")


Make = Callable[[Any, int], Any]
MAKES: list[tuple[Make, Any]] = [(normalization, NUMBERS), (discretization, NUMBERS), (lookup, WORDS), (text, WORDS)]


def made(framework: str, make: Make, number: int) -> Any:
    kit = KERASES[framework]
    dtype = "float32" if make in (normalization, discretization) else "string"
    model = kit.Sequential([kit.Input((1,), dtype=dtype), make(kit, number), kit.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize(
    ("framework", "make", "inputs"),
    [
        ("keras", *MAKES[0]),
        ("tf_keras", *MAKES[1]),
        ("keras", *MAKES[1]),
        ("tf_keras", *MAKES[2]),
        ("keras", *MAKES[3]),
    ],
)
def test_a_model_that_was_traced_before_predicts_as_the_one_that_was_saved(
    tmp_path: Path, framework: str, make: Make, inputs: Any
) -> None:
    saved, other = made(framework, make, 0), made(framework, make, 1)
    with CheckpointManager(tmp_path, {"model": saved}) as manager:
        manager.save(1)
    given = tf.constant(inputs)
    other.predict(given, verbose=0)
    other.evaluate(given, NUMBERS, verbose=0)
    with CheckpointManager(tmp_path, {"model": other}, read_only=True) as manager:
        manager.restore_latest()
        expected = np.asarray(saved(given))
        np.testing.assert_array_equal(np.asarray(other(given)), expected)
        np.testing.assert_allclose(other.predict(given, verbose=0), expected, rtol=1e-5)
        loss = float(np.mean((expected - NUMBERS) ** 2))
        np.testing.assert_allclose(other.evaluate(given, NUMBERS, verbose=0), loss, rtol=1e-5)
        functions = other.predict_function, other.test_function
        manager.restore_latest()  # the same again
        assert (other.predict_function, other.test_function) == functions


@pytest.mark.parametrize("framework", KERASES)
def test_a_fit_that_restores_as_it_begins_trains_with_it(tmp_path: Path, framework: str) -> None:
    """Keras has made its function by then, and traced it in a fit before."""

    data = tf.data.Dataset.from_tensor_slices((NUMBERS, NUMBERS)).batch(4)

    def fit(model: Any, root: Path, epochs: int) -> Any:
        with CheckpointManager(root, {"model": model}) as manager:
            model.fit(
                data, epochs=epochs, verbose=0, shuffle=False, callbacks=[CheckpointCallback(manager, every_epochs=1)]
            )
        return model

    other = made(framework, normalization, 1)
    other.fit(data, verbose=0)
    fit(made(framework, normalization, 0), tmp_path / "run", 1)
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    expected = fit(made(framework, normalization, 0), tmp_path / "run", 2)
    found = fit(other, tmp_path / "again", 2)
    for one, another in zip(expected.get_weights(), found.get_weights(), strict=True):
        np.testing.assert_allclose(one, another, rtol=1e-5)


def test_a_normalization_that_was_built_while_its_model_was_traced(tmp_path: Path) -> None:
    """It holds symbols until a restore gives it values."""

    class Model(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.n = keras.layers.Normalization()
            self.d = keras.layers.Dense(2)

        def call(self, inputs: Any) -> Any:
            return self.d(self.n(inputs))

    data = np.random.default_rng(1).normal(5, 3, (32, 3)).astype(np.float32)
    saved = Model()
    saved.n.adapt(data)
    saved.compile("sgd", "mse")
    saved.fit(data, np.zeros((32, 2)), verbose=0)
    with CheckpointManager(tmp_path, {"model": saved}) as manager:
        manager.save(1)
    model = Model()
    model.compile("sgd", "mse")
    with CheckpointManager(tmp_path, {"model": model}) as manager:
        manager.restore_latest()
    np.testing.assert_array_equal(model.predict(data, verbose=0), saved.predict(data, verbose=0))
