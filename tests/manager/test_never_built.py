"""A model whose weights do not exist yet is not saved without a word; one that needs no build is saved as ever."""

from __future__ import annotations

import re
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
from tests.manager.test_unbuilt import nested, with_own_build

KERASES: dict[str, Any] = {"keras": keras, "tf_keras": tf_keras}
ROW = tf.ones([1, 3])


def model_of(kit: Any, make: Callable[[Any], None]) -> Any:
    """A subclassed model that nobody calls, with what `make` gives it."""

    class Own(kit.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            make(self)

        def call(self, inputs: Any) -> Any:
            return inputs

    return Own()


def own_layer(kit: Any) -> Any:
    class Scale(kit.layers.Dense):  # type: ignore[misc]
        def build(self, shape: Any) -> None:
            super().build(shape)

    return Scale(2)


NOT_THERE: dict[str, Callable[[Any], Any]] = {
    "Sequential": lambda kit: kit.Sequential([kit.layers.Dropout(0.5), kit.layers.Dense(1)]),
    "nested": lambda kit: kit.Sequential([nested(kit, lambda: kit.layers.Conv1D(2, 3))]),
    "in a list": lambda kit: nested(kit, lambda: kit.layers.BatchNormalization()),
    "cells": lambda kit: kit.Sequential([kit.layers.Bidirectional(kit.layers.LSTM(2)), kit.layers.Embedding(2, 2)]),
    "a build of its own": with_own_build,
    "a layer of the user's": lambda kit: kit.Sequential([own_layer(kit)]),
}


@pytest.mark.parametrize("kit", KERASES.values(), ids=KERASES)
@pytest.mark.parametrize("kind", NOT_THERE)
def test_a_model_that_has_no_weights_yet_is_refused(tmp_path: Path, kit: Any, kind: str) -> None:
    model = NOT_THERE[kind](kit)
    model.compile("adam", "mse", metrics=["mae"])
    with CheckpointManager(tmp_path, {"net": model, "step": tf.Variable(1)}) as manager:
        with pytest.raises(UsageError, match=r"nothing was saved: net \(\w+\) is not built.*call it once on a batch"):
            manager.save(0)
        assert manager.latest() is None


@pytest.mark.parametrize("kit", KERASES.values(), ids=KERASES)
def test_once_it_was_called_it_is_saved(tmp_path: Path, kit: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The manager may be made before: many scripts build with the first batch."""
    model = kit.Sequential([kit.layers.Dense(2), kit.layers.Dropout(0.5)])
    model.compile("adam", "mse")
    with CheckpointManager(tmp_path, model) as manager:
        with pytest.raises(UsageError, match="is not built"):
            manager.save(0)
        model(ROW)
        manager.save(0).result()
    assert "not built" not in caplog.text


def makes_sublayers(kit: Any) -> Any:
    class Block(kit.layers.Layer):  # type: ignore[misc]
        def build(self, shape: Any) -> None:
            self.inner = kit.layers.Dense(4)
            self.inner.build(shape)
            super().build(shape)

        def call(self, inputs: Any) -> Any:
            return self.inner(inputs)

    return Block()


def by_a_helper(kit: Any) -> Any:
    class Scale(kit.layers.Layer):  # type: ignore[misc]
        def build(self, shape: Any) -> None:
            self._make(shape[-1])

        def _make(self, size: int) -> None:
            self.kernel = self.add_weight(name="kernel", shape=(size, 4))

        def call(self, inputs: Any) -> Any:
            return inputs @ self.kernel

    return Scale()


def attention(kit: Any) -> Any:
    class Attends(kit.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.attention = kit.layers.MultiHeadAttention(2, 4)

        def call(self, inputs: Any) -> Any:
            return self.attention(inputs[:, None], inputs[:, None])

    return Attends()


def built_in_name(kit: Any) -> Any:
    class Claims(kit.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = kit.layers.Dense(4)

        def build(self, shape: Any) -> None:
            self.built = True

        def call(self, inputs: Any) -> Any:
            return self.inner(inputs)

    model = Claims()
    model.build((None, 3))
    return model


UNTOLD: dict[str, Callable[[Any], Any]] = {
    "sublayers made in build": lambda kit: kit.Sequential([makes_sublayers(kit)]),
    "a build that calls a helper": lambda kit: kit.Sequential([by_a_helper(kit)]),
    "attention": attention,
    "a build that makes nothing": built_in_name,
}


def compiled(kit: Any, model: Any) -> dict[str, Any]:
    model.compile("adam", "mse")
    return {"net": model}


OWNERS: dict[str, Callable[[Any, Any], dict[str, Any]]] = {
    "compiled": compiled,
    "beside a value": lambda kit, model: {**compiled(kit, model), "value": tf.Variable([1.0])},
    "by an entry": lambda kit, model: {"a": compiled(kit, model)["net"].optimizer, "net": model, "b": tf.Variable(1.0)},
    "optimizer alone": lambda kit, model: {"net": model, "optimizer": kit.optimizers.Adam()},
}


@pytest.mark.parametrize("kit", KERASES.values(), ids=KERASES)
@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("kind", UNTOLD)
def test_weights_of_which_no_code_tells_are_a_warning(
    tmp_path: Path, kit: Any, kind: str, owner: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = UNTOLD[kind](kit)
    with CheckpointManager(tmp_path, OWNERS[owner](kit, model)) as manager:
        for step in range(2):
            manager.save(step).result()
        assert len(re.findall(r"net \(\w+\) has no weights \(yet\): .* call it once on a batch", caplog.text)) == 1
        model(ROW)
        manager.save(2).result()
        assert caplog.text.count("no weights") == 1
    with ckptflow.open_checkpoint(tmp_path) as found:
        assert any(name.startswith("net/") and name.endswith("kernel") for name in found)


def raw(model: Any) -> None:
    model.value = tf.Variable([1.0])


def add(model: Any) -> None:
    model.value = model.add_weight(name="value", shape=(2,))


def layer_with_weights(model: Any) -> None:
    kit = keras if isinstance(model, keras.Model) else tf_keras

    class Early(kit.layers.Layer):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.scale = self.add_weight(name="scale", shape=(2,))

        def call(self, inputs: Any) -> Any:
            return inputs * self.scale

    model.early = Early()


def adapted(kit: Any) -> Any:
    layer = kit.layers.Normalization()
    layer.adapt(np.array([[1.0], [2.0]]))
    return layer


NEEDS_NONE: dict[str, Callable[[Any], Any]] = {
    "variables of TensorFlow": lambda kit: model_of(kit, raw),
    "weights from the start": lambda kit: model_of(kit, add),
    "a layer with weights from the start": lambda kit: model_of(kit, layer_with_weights),
    "nothing": lambda kit: model_of(kit, lambda model: None),
    "no weights": lambda kit: kit.Sequential([kit.layers.Dropout(0.5), kit.layers.Flatten(), kit.layers.ReLU()]),
    "merges": lambda kit: model_of(kit, lambda model: setattr(model, "join", kit.layers.Concatenate())),
    "a vocabulary": lambda kit: kit.Sequential([kit.layers.StringLookup(vocabulary=["a"])]),
    "given statistics": lambda kit: kit.Sequential([kit.layers.Normalization(mean=0.0, variance=1.0)]),
    "adapted": lambda kit: kit.Sequential([adapted(kit)]),
    "functional": lambda kit: kit.Sequential([kit.Input((3,)), kit.layers.Dense(1)]),
}


@pytest.mark.parametrize("kit", KERASES.values(), ids=KERASES)
@pytest.mark.parametrize("kind", NEEDS_NONE)
def test_a_model_that_needs_no_build_is_saved(
    tmp_path: Path, kit: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = NEEDS_NONE[kind](kit)
    model.compile("sgd", "mse")
    with CheckpointManager(tmp_path, {"net": model}) as manager:
        manager.save(0).result()
        manager.save(1).result()
    assert "not built" not in caplog.text
    has_none = kind in ("nothing", "no weights", "merges", "given statistics")
    assert caplog.text.count("has no weights (yet)") == has_none


def net(kit: Any) -> Any:
    return kit.Sequential([kit.layers.Dense(1)])


def with_state_of_its_own(kit: Any) -> Any:
    class Counts(kit.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.spare = kit.layers.Dense(2)

        def get_state(self) -> dict[str, int]:
            return {"seen": 3}

        def set_state(self, state: dict[str, int]) -> None: ...

    return Counts()


def module(kit: Any) -> tf.Module:
    made = tf.Module()
    made.value, made.later = tf.Variable([1.0]), net(kit)
    return made


def with_spare(kit: Any, value: Any) -> Any:
    def both(model: Any) -> None:
        value(model)
        model.spare = kit.layers.Dense(2)

    return model_of(kit, both)


def table() -> Any:
    return tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)


IN_DOUBT: dict[str, Callable[[Any], Any]] = {
    "a variable of TensorFlow": lambda kit: with_spare(kit, raw),
    "a weight": lambda kit: with_spare(kit, add),
    "a metric": lambda kit: with_spare(kit, lambda model: setattr(model, "mean", kit.metrics.Mean())),
    "a table": lambda kit: with_spare(kit, lambda model: setattr(model, "table", table())),
    "a table beside": lambda kit: {"net": net(kit), "table": table()},
    "an encoder that is trained first": lambda kit: {
        "encoder": kit.Sequential([kit.Input((3,)), kit.layers.Dense(2)]),
        "head": net(kit),
    },
    "a state of its own": with_state_of_its_own,
    "a module": module,
    "a vocabulary": lambda kit: kit.Sequential([kit.layers.StringLookup(vocabulary=["a"]), kit.layers.Embedding(3, 2)]),
}


@pytest.mark.parametrize("kit", KERASES.values(), ids=KERASES)
@pytest.mark.parametrize("kind", IN_DOUBT)
def test_in_doubt_it_is_a_warning_and_only_one(
    tmp_path: Path, kit: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Layers that have no weights beside what may be all that is used."""
    made = IN_DOUBT[kind](kit)
    state = made if isinstance(made, dict) else {"state": made}
    late = tf.Module()
    with CheckpointManager(tmp_path, {**state, "late": late}) as manager:
        for step in range(2):
            manager.save(step).result()
        late.value = tf.Variable(1.0)
        manager.save(2).result()
    assert caplog.text.count("is not built: the weights of") == 1
    assert "do not exist yet, and are not saved" in caplog.text


def test_a_save_that_is_refused_is_not_counted(tmp_path: Path) -> None:
    checkpoint = tf.train.Checkpoint(net=net(tf_keras))
    with CheckpointManager(tmp_path, checkpoint) as manager:
        with pytest.raises(UsageError, match="is not built"):
            manager.save(0)
        assert int(checkpoint.save_counter) == 0
        checkpoint.net(ROW)
        manager.save(0).result()
    assert int(checkpoint.save_counter) == 1
