"""Optimizers that a model holds, in a `.keras` that goes without the user's model: none is lost without a word, none is
given what is not its own, and none has state that was not asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ckptflow
from ckptflow.interop.keras.files import read_model
from tests.interop.models import KERASES

pytestmark = pytest.mark.usefixtures("unprobed")

FRAMEWORKS: dict[str, Any] = {"keras": keras, "tf_keras": tf_keras}


class Made:
    """What the models below make theirs with: user code may be another one than when the file was written."""

    d_optimizer: Callable[[], Any] | None = None


@pytest.fixture(autouse=True)
def _made() -> Iterator[None]:
    yield
    Made.d_optimizer = None


def _class_of(kit: Any) -> Any:
    class Held(kit.Model):  # type: ignore[misc]
        """With an optimizer that the constructor makes, or that only `compile` is handed."""

        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.dense = kit.layers.Dense(2)
            if Made.d_optimizer is not None:
                self.d_optimizer = Made.d_optimizer()

        def build(self, shape: Any) -> None:
            self.dense.build(shape)
            if Made.d_optimizer is not None:
                self.d_optimizer.build(self.dense.trainable_variables)
            self.built = True

        def call(self, inputs: Any) -> Any:
            return self.dense(inputs)

        def compile(self, d_optimizer: Any = None, **how: Any) -> None:
            super().compile(**how)
            if d_optimizer is not None:
                self.d_optimizer = d_optimizer
                d_optimizer.build(self.dense.trainable_variables)

        def get_config(self) -> dict[str, Any]:
            return {}

    class Usual(Held):
        """One that stock Keras compiles too when it loads it."""

        compile = kit.Model.compile

    for made in (Held, Usual):
        kit.saving.register_keras_serializable(package="held")(made)
    return Held, Usual


CLASSES = {name: _class_of(kit) for name, kit in FRAMEWORKS.items()}


def saved(framework: str, path: Path, made: Callable[[], Any] | None, kind: int = 0, **how: Any) -> Any:
    """A model with three steps in its optimizer, as its own Keras saves it."""
    Made.d_optimizer = made
    model = CLASSES[framework][kind]()
    model(tf.ones((2, 3)))
    if how:
        model.compile(**how)
    for _ in range(3):
        ones = [tf.ones(each.shape) for each in model.trainable_variables]
        model.d_optimizer.apply_gradients(zip(ones, model.trainable_variables, strict=True))
    model.save(str(path))
    return model


def state_of(optimizer: Any) -> tuple[int, float]:
    return int(optimizer.iterations), float(optimizer.learning_rate)


def slots_of(optimizer: Any) -> list[Any]:
    return [np.asarray(each).tolist() for each in optimizer.variables if len(each.shape)]


@pytest.mark.parametrize("framework", KERASES)
def test_one_that_only_compile_is_handed_is_told(
    framework: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = FRAMEWORKS[framework].optimizers.Adam(0.25)
    model = saved(framework, tmp_path / "m.keras", None, d_optimizer=optimizer)
    for is_wanted in (True, False):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "ckptflow"):
            ckptflow.import_model(tmp_path / "m.keras", tmp_path / f"{is_wanted}", optimizer=is_wanted)
        with ckptflow.open_checkpoint(tmp_path / f"{is_wanted}") as opened:
            arrays = [opened[each.name] for each in opened.manifest.tensors]
        assert all(any(np.array_equal(one, each) for each in arrays) for one in model.get_weights())
        assert ("m.keras, d_optimizer has an optimizer's state" in caplog.text) == is_wanted


@pytest.mark.parametrize("name", ["SGD", "Adam"])
@pytest.mark.parametrize("framework", KERASES)
def test_one_of_the_constructor_has_it_where_it_is_wanted(
    framework: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = getattr(FRAMEWORKS[framework].optimizers, name)
    model = saved(framework, tmp_path / "m.keras", lambda: optimizer(0.25))
    Made.d_optimizer = lambda: optimizer(0.5)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "ckptflow"):
        whole = read_model(str(tmp_path / "m.keras"))
        without = read_model(str(tmp_path / "m.keras"), optimizer=False)
    assert int(whole.d_optimizer.iterations) == 3
    assert slots_of(whole.d_optimizer) == slots_of(model.d_optimizer)
    rate = 0.25 if framework == "keras" else 0.5  # which tf_keras does not write
    assert float(whole.d_optimizer.learning_rate) == rate
    assert state_of(without.d_optimizer) == (0, 0.5)
    assert not np.any([np.any(each) for each in slots_of(without.d_optimizer)])
    assert all(map(np.array_equal, without.get_weights(), model.get_weights()))
    assert "d_optimizer" not in caplog.text


def test_another_class_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = saved("keras", tmp_path / "m.keras", lambda: keras.optimizers.Adam(0.25))
    Made.d_optimizer = lambda: keras.optimizers.AdamW(0.5)
    read = read_model(str(tmp_path / "m.keras"))
    assert all(map(np.array_equal, read.get_weights(), model.get_weights()))
    assert state_of(read.d_optimizer) == (0, 0.5)
    assert not np.any([np.any(each) for each in slots_of(read.d_optimizer)])
    assert "m.keras, d_optimizer: the state of its optimizer does not fit" in caplog.text
    assert "it is that of Adam, another class than the model's AdamW" in caplog.text


@pytest.mark.parametrize("loss", ["mean_squared_error", lambda truth, found: (truth - found) ** 2])
@pytest.mark.parametrize("is_one", [False, True])
@pytest.mark.parametrize("framework", KERASES)
def test_beside_the_one_that_the_model_is_compiled_with(
    framework: str, is_one: bool, loss: Any, tmp_path: Path
) -> None:
    """Which may be the same; with a loss that is in no config the model is compiled here."""
    kit = FRAMEWORKS[framework].optimizers
    Made.d_optimizer = lambda: kit.Adam(0.25)
    model = CLASSES[framework][1]()
    model(tf.ones((2, 3)))
    model.compile(model.d_optimizer if is_one else kit.RMSprop(0.25), loss)
    model.fit(np.ones((6, 3), "f4"), np.ones((6, 2), "f4"), batch_size=2, verbose=0)
    ones = [tf.ones(each.shape) for each in model.trainable_variables]
    model.d_optimizer.apply_gradients(zip(ones, model.trainable_variables, strict=True))
    model.save(str(tmp_path / "m.keras"))
    read = read_model(str(tmp_path / "m.keras"))
    held = read.optimizer if is_one and framework == "tf_keras" else read.d_optimizer  # where it is written, once
    assert int(held.iterations) == (4 if is_one else 1)
    assert slots_of(held) == slots_of(model.d_optimizer)
    if not is_one:
        assert int(read.optimizer.iterations) == 3
        assert slots_of(read.optimizer) == slots_of(model.optimizer)
