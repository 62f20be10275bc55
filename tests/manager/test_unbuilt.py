"""A job starts again with models and optimizers of either Keras that have no variables yet: its checkpoint builds them.

Where it cannot, the error says which call is missing, and is one of ours.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ckptflow
from ckptflow import CheckpointManager, UsageError
from tests.chaos.forgeries import as_json, sealed, unsealed

KERASES = {"keras": keras, "tf_keras": tf_keras}
ROW = tf.constant([[1.0, 2.0, 3.0]])
SERIES = tf.constant(np.arange(30.0, dtype=np.float32).reshape(2, 5, 3))


def nested(kit: Any, inside: Callable[[], Any], **more: Any) -> Any:
    """A subclassed model around what `inside` makes."""

    class Around(kit.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.parts = [inside()]
            for name, value in more.items():
                setattr(self, name, value)

        def call(self, inputs: Any) -> Any:
            return self.parts[0](inputs)

    return Around()


def with_own_build(kit: Any) -> Any:
    class Own(kit.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = kit.Sequential([kit.layers.Dense(4)])

        def build(self, shape: Any) -> None:
            self.scale = self.add_weight(name="scale", shape=(4,), initializer="ones")
            self.inner.build(shape)
            super().build(shape)

        def call(self, inputs: Any) -> Any:
            return self.inner(inputs) * self.scale

    return Own()


def with_two_arguments(kit: Any) -> Any:
    class Two(kit.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = kit.layers.Dense(2), kit.Sequential([kit.layers.Dense(2)])

        def call(self, left: Any, right: Any) -> Any:
            return self.first(left) + self.second(right)

    return Two()


def in_a_layer(kit: Any) -> Any:
    class Block(kit.layers.Layer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = kit.Sequential([kit.layers.Dense(2)])

        def call(self, inputs: Any) -> Any:
            return self.net(inputs)

    return kit.Sequential([Block()])


def text(kit: Any) -> Any:
    vectorize = kit.layers.TextVectorization(output_mode="int", output_sequence_length=4)
    vectorize.adapt(["a b c d"])
    return kit.Sequential([vectorize, kit.layers.Embedding(10, 3)])


MODELS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "sequential": (lambda kit: kit.Sequential([kit.layers.Dense(4), kit.layers.BatchNormalization()]), ROW),
    "two of them": (lambda kit: kit.Sequential([kit.Sequential([kit.layers.Dense(4)]), kit.layers.Dense(2)]), ROW),
    "subclassed": (lambda kit: nested(kit, lambda: kit.layers.Dense(2)), ROW),
    "in a subclassed": (lambda kit: nested(kit, lambda: kit.Sequential([kit.layers.Dense(2)])), ROW),
    "one of them unused": (
        lambda kit: nested(kit, lambda: kit.layers.Dense(2), spare=kit.Sequential([kit.layers.Dense(7)])),
        ROW,
    ),
    "of a dict": (
        lambda kit: nested(kit, lambda: nested(kit, lambda: kit.layers.Lambda(lambda x: x["a"]))),
        {"a": ROW},
    ),
    "its own build": (with_own_build, ROW),
    "two arguments": (with_two_arguments, (ROW, SERIES[:1, 0])),
    "in a layer": (in_a_layer, ROW),
    "bidirectional": (lambda kit: kit.Sequential([kit.layers.Bidirectional(kit.layers.LSTM(2))]), SERIES),
    "cells": (
        lambda kit: kit.Sequential([kit.layers.RNN([kit.layers.LSTMCell(2), kit.layers.GRUCell(3)])]),
        SERIES,
    ),
    "over time": (
        lambda kit: kit.Sequential([kit.layers.TimeDistributed(kit.Sequential([kit.layers.Dense(2)]))]),
        SERIES,
    ),
    "text": (text, tf.constant([["a b"], ["d"]])),
    "normalized": (lambda kit: kit.Sequential([kit.layers.Normalization(), kit.layers.Dense(2)]), ROW),
}

OPTIMIZERS = [
    *(f"keras.optimizers.{name}" for name in ("SGD", "Adam", "LossScaleOptimizer(SGD)")),
    *(f"tf_keras.optimizers.{name}" for name in ("SGD", "AdamW", "Adafactor", "Ftrl", "Lion")),
    *(f"tf_keras.optimizers.legacy.{name}" for name in ("SGD", "Adam", "Nadam", "Ftrl")),
    "tf_keras.mixed_precision.LossScaleOptimizer(legacy.SGD)",
    "tf_keras.mixed_precision.LossScaleOptimizer(SGD)",
]
LIKE_THESE = [f"tf_keras.optimizers.legacy.{name}" for name in ("RMSprop", "Adagrad", "Adadelta", "Adamax")]


def made(name: str) -> Any:
    """An optimizer by its path, with another inside of it where there are parentheses."""
    outer, _, inner = name.rstrip(")").partition("(")
    framework, *path = outer.split(".")
    found: Any = KERASES[framework]
    for part in path:
        found = getattr(found, part)
    return found(made(f"{framework}.optimizers.{inner}")) if inner else found()


def train(model: Any, optimizer: Any, data: Any) -> None:
    """One step, of gradients that are all 1."""
    model(data)
    optimizer.apply_gradients([(tf.ones(variable.shape), variable) for variable in model.trainable_variables])


def values(state: dict[str, Any]) -> dict[str, Any]:
    from ckptflow.state.kinds import raw_variable
    from ckptflow.state.tree import walk

    return {name: np.asarray(raw_variable(variable)) for name, variable in walk(state).variables.items()}


def assert_same(state: dict[str, Any], again: dict[str, Any]) -> None:
    found, expected = values(again), values(state)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, name)


@pytest.mark.parametrize("framework", KERASES)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_built_from_its_checkpoint(tmp_path: Path, name: str, framework: str) -> None:
    kit = KERASES[framework]
    make, data = MODELS[name]
    model, again = make(kit), make(kit)
    is_told = (framework, name) != ("keras", "two arguments")  # Keras 3 keeps the shape of the first one alone
    with CheckpointManager(tmp_path, {"model": model}) as manager:
        model(*data) if isinstance(data, tuple) else model(data)
        manager.save(1)
    with CheckpointManager(tmp_path, {"model": again}) as manager:
        if not is_told:
            with pytest.raises(UsageError, match="call it once on a batch"):
                manager.restore_latest()
            return
        assert manager.restore_latest() is not None
    assert_same({"model": model}, {"model": again})


@pytest.mark.parametrize("name", [*OPTIMIZERS, *(pytest.param(name, marks=pytest.mark.chaos) for name in LIKE_THESE)])
def test_an_optimizer_is_built_from_its_checkpoint(tmp_path: Path, name: str) -> None:
    kit = KERASES[name.partition(".")[0]]

    def compiled() -> Any:
        model = kit.Sequential([kit.layers.Dense(2)])
        model.compile(made(name), "mse")
        return model

    model, again, beside = compiled(), compiled(), compiled()
    train(model, model.optimizer, ROW)
    with CheckpointManager(tmp_path, {"model": model}) as manager:
        manager.save(1)
    with CheckpointManager(tmp_path, {"model": again}) as manager:
        manager.restore_latest()
    assert_same({"model": model}, {"model": again})
    # Now as an entry of its own, beside a model that does not hold it.
    with CheckpointManager(tmp_path / "entry", {"model": model, "optimizer": model.optimizer}) as manager:
        manager.save(1)
    with CheckpointManager(tmp_path / "entry", {"model": beside, "optimizer": beside.optimizer}) as manager:
        manager.restore_latest()
    assert_same({"model": model}, {"model": beside})


def test_a_counter_that_was_there_before_the_first_step_is_made(tmp_path: Path) -> None:
    """A legacy optimizer of tf_keras makes it when it is first asked for: `manager.save(int(optimizer.iterations))`."""
    for _ in range(2):
        model = tf_keras.Sequential([tf_keras.layers.Input((3,)), tf_keras.layers.Dense(2)])
        model.compile(tf_keras.optimizers.legacy.SGD(), "mse")
        with CheckpointManager(tmp_path, {"model": model}) as manager:
            manager.restore_latest()
            manager.save(int(model.optimizer.iterations))


def test_a_rate_that_is_a_variable_says_nothing_of_what_was_built(tmp_path: Path) -> None:
    """A legacy optimizer of tf_keras has it from the start, without its other hyperparameters and its slots."""
    for rate in (0.25, 0.5):
        model = tf_keras.Sequential([tf_keras.layers.Input((3,)), tf_keras.layers.Dense(2)])
        model.compile(tf_keras.optimizers.legacy.Adam(tf.Variable(rate)), "mse")
        with CheckpointManager(tmp_path, {"model": model}) as manager:
            manager.restore_latest()
            manager.save(1)
    assert float(model.optimizer.learning_rate) == 0.25


def test_an_optimizer_that_says_it_was_not_built_is_built_for_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints of earlier versions say so of an SGD without momentum, which has no slots."""
    import ckptflow.state.configs

    def compiled() -> Any:
        model = tf_keras.Sequential([tf_keras.layers.Input((3,)), tf_keras.layers.Dense(2)])
        model.compile(tf_keras.optimizers.legacy.SGD(0.5), "mse")
        return model

    model, again = compiled(), compiled()
    train(model, model.optimizer, ROW)
    with monkeypatch.context() as patch, CheckpointManager(tmp_path, {"model": model}) as manager:
        patch.setattr(ckptflow.state.configs, "is_built", lambda optimizer: False)
        manager.save(1).result()
    with CheckpointManager(tmp_path, {"model": again}) as manager:
        manager.restore_latest()
    assert_same({"model": model}, {"model": again})


@pytest.mark.parametrize("framework", KERASES)
def test_what_no_description_can_build_is_named(tmp_path: Path, framework: str) -> None:
    """A checkpoint of TensorFlow's own says nothing of shapes of inputs."""
    kit = KERASES[framework]

    def compiled() -> Any:
        model = kit.Sequential([kit.layers.Dense(2)])
        model.compile(kit.optimizers.Adam(), "mse")
        return model

    model = compiled()
    train(model, model.optimizer, ROW)
    tf.train.Checkpoint(model=model).save(str(tmp_path / "stock"))
    model.save_weights(str(tmp_path / "own.weights.h5"))
    for source, partial in (("stock-1", False), ("stock-1", True), ("own.weights.h5", False), ("own.weights.h5", True)):
        with pytest.raises(UsageError, match=r"no variables yet.*call .* once on a batch"):
            ckptflow.import_model(tmp_path / source, tmp_path / "run", model={"model": compiled()}, partial=partial)
    assert not (tmp_path / "run").exists()
    built = compiled()
    built(ROW)
    ckptflow.import_model(tmp_path / "stock-1", tmp_path / "run", model={"model": built})
    assert_same({"model": model}, {"model": built})


@pytest.mark.parametrize("kit", KERASES.values(), ids=KERASES)
def test_shapes_that_nothing_stored_could_fill(kit: Any, tmp_path: Path) -> None:
    """A manifest with other shapes of inputs, its seal made right again, takes no memory."""
    before_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def make() -> Any:
        return kit.Sequential([kit.layers.Dense(4), kit.layers.Dense(2)])

    model = make()
    model(ROW)
    with CheckpointManager(tmp_path, {"model": model}) as manager:
        manager.save(1)
    (path,) = tmp_path.glob("000000000001-*/manifest.json")
    record = unsealed(path.read_bytes())
    record["models"]["model"]["build_config"]["input_shape"] = [1, 10**8]
    path.write_bytes(sealed(as_json(record)))
    with CheckpointManager(tmp_path, {"model": make()}) as manager, pytest.raises(UsageError, match="far more than"):
        manager.restore_latest()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < before_bytes + 2**29
    built = make()
    built(ROW)
    with CheckpointManager(tmp_path, {"model": built}) as manager:
        manager.restore_latest()
    assert all(map(np.array_equal, built.get_weights(), model.get_weights()))
