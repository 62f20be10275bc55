"""A checkpoint of TensorFlow 1 has no graph: tensors go by the variables' own names, all of an optimizer or nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ckptflow
from ckptflow.errors import StateMismatchError
from ckptflow.state.kinds import raw_variable
from ckptflow.state.tree import walk


def test_a_checkpoint_by_names_that_does_not_fit_is_told_by_names(tmp_path: Path) -> None:
    """TensorFlow's own message has the variables' values in it."""
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "v1"), tensor_names=["a", "b", "c", "d"], shape_and_slices=[""] * 4,
        tensors=[tf.ones([2]), tf.ones([3]), tf.ones([2], tf.float64), tf.ones([2])],
    )  # fmt: skip
    module = tf.Module()
    module.kept = [tf.Variable([7125.5, 7125.5], name=name) for name in ("a", "b", "c", "d", "d", "e")]
    with pytest.raises(StateMismatchError, match="no value was changed") as caught:
        ckptflow.import_model(tmp_path / "v1", tmp_path / "run", model=module)
    text = str(caught.value)
    assert "7125" not in text
    assert "kept/1: shape [3] in the checkpoint, [2] in the state" in text
    assert "kept/2: dtype float64 in the checkpoint, float32 in the state" in text
    assert "kept/3: another one is called d as well" in text
    assert "kept/5: there is no e in the checkpoint" in text
    assert {value for each in module.kept for value in each.numpy().tolist()} == {7125.5}
    of_sevens = keras.initializers.Constant(7125)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, bias_initializer=of_sevens)])
    with pytest.raises(StateMismatchError, match="bias: there is no") as caught:
        ckptflow.import_model(tmp_path / "v1", tmp_path / "run", model=model)
    assert "7125" not in str(caught.value)


def _written_by_names(prefix: Path, tensors: dict[str, Any]) -> Path:
    tf.raw_ops.SaveV2(
        prefix=str(prefix), tensor_names=[*tensors], shape_and_slices=[""] * len(tensors), tensors=[*tensors.values()]
    )
    return prefix


@pytest.mark.parametrize("kind", ["new", "legacy", "legacy built"])
def test_a_checkpoint_by_names_without_the_optimizer(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As TensorFlow 1 has weights: whatever lacks of the optimizer, it starts fresh, and the weights come."""
    adam = tf_keras.optimizers.Adam if kind == "new" else tf_keras.optimizers.legacy.Adam

    def make() -> Any:
        layers = [tf_keras.layers.Input((3,)), tf_keras.layers.Dense(2, name=f"own_{kind[:3]}")]
        model = tf_keras.Sequential(layers)
        model.compile(adam(0.25), "mse")
        if kind == "legacy built":
            model.train_on_batch(np.ones((1, 3)), np.ones((1, 2)))
        return model

    weights = {f"own_{kind[:3]}/{name}": tf.ones(shape) for name, shape in (("kernel", [3, 2]), ("bias", [2]))}
    count = {"iteration": tf.constant(7, tf.int64), "Adam/iter": tf.constant(7, tf.int64)}  # and nothing else of it
    for name, more in (("none", {}), ("some", count)):
        prefix = _written_by_names(tmp_path / name, weights | more)
        for is_wanted in (True, False):
            model = make()
            before = int(model.optimizer.iterations)
            caplog.clear()
            ckptflow.import_model(prefix, tmp_path / f"{name}-{is_wanted}", model=model, optimizer=is_wanted)
            assert [each.tolist() for each in model.get_weights()] == [[[1, 1]] * 3, [1, 1]]
            assert int(model.optimizer.iterations) == before
            assert ("it starts fresh: model/optimizer/" in caplog.text) == is_wanted


OPTIMIZERS: dict[str, tuple[Any, Callable[[], Any]]] = {
    "keras": (keras, lambda: keras.optimizers.Adam(0.25, name="adam")),
    "tf_keras": (tf_keras, lambda: tf_keras.optimizers.Adam(0.25)),
    "tf_keras legacy": (tf_keras, lambda: tf_keras.optimizers.legacy.Adam(0.25)),
}


def _with_optimizer(name: str, *, is_held: bool) -> dict[str, Any]:
    """A model and its optimizer, which the model is compiled with or that stands beside two of them."""
    kit, make = OPTIMIZERS[name]
    model = kit.Sequential([kit.layers.Input((3,)), kit.layers.Dense(2, name="named")], name="whole")
    if is_held:
        other = kit.Sequential([kit.layers.Input((3,)), kit.layers.Dense(1, name="other")], name="second")
        return {"model": model, "optimizer": make(), "other": other}
    model.compile(make(), "mse")
    return {"model": model}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_checkpoint_by_names_into_an_optimizer_that_is_not_built(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All of it comes or nothing: not the count of steps alone."""

    def tensors_of(state: dict[str, Any]) -> dict[str, Any]:
        return {raw_variable(each).name.partition(":")[0]: each for each in walk(state).variables.values()}

    saved = _with_optimizer(name, is_held=False)
    optimizer = saved["model"].optimizer
    for _ in range(3):
        ones = [tf.ones(each.shape) for each in saved["model"].trainable_variables]
        optimizer.apply_gradients(zip(ones, saved["model"].trainable_variables, strict=True))
    tensors = {key: tf.convert_to_tensor(each) for key, each in tensors_of(saved).items()}
    prefix = _written_by_names(tmp_path / "v1", tensors)
    mine = _with_optimizer(name, is_held=False)
    ckptflow.import_model(prefix, tmp_path / "run", model=mine["model"])
    found = tensors_of(mine)
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(np.asarray(found[key]), np.asarray(tensors[key])) for key in tensors)
    mine = _with_optimizer(name, is_held=False)
    caplog.clear()
    ckptflow.import_model(prefix, tmp_path / "without", model=mine["model"], optimizer=False)
    assert int(mine["model"].optimizer.iterations) == 0
    assert "it starts fresh" not in caplog.text
    mine = _with_optimizer(name, is_held=True)  # of which model it is, nothing tells
    others = {raw_variable(each).name.partition(":")[0]: tf.ones(each.shape) for each in mine["other"].variables}
    prefix = _written_by_names(tmp_path / "more", tensors | others)
    ckptflow.import_model(prefix, tmp_path / "held", model=mine)
    assert int(mine["optimizer"].iterations) == 0
    assert "it starts fresh: optimizer" in caplog.text


def test_a_checkpoint_by_names_changes_nothing_before_all_is_checked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """TensorFlow says what it does not find once it has changed the rest."""
    module = tf.Module()
    module.kernel = tf.Variable(tf.zeros([2]), name="dense/kernel")
    module.table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
    module.table.insert("a", 1)
    prefix = _written_by_names(tmp_path / "v1", {"dense/kernel": tf.ones([2])})
    ckptflow.import_model(prefix, tmp_path / "run", model=module)
    assert module.kernel.numpy().tolist() == [1, 1]
    assert int(module.table.lookup(tf.constant("a"))) == 1
    assert "does not have state/table" in caplog.text
    model = tf_keras.Sequential([tf_keras.layers.Input((3,)), tf_keras.layers.Dense(2, name="other")])
    model.compile("adam", "mse")
    before = model.get_weights()
    prefix = _written_by_names(tmp_path / "half", {"other/kernel": tf.ones([3, 2])})
    with pytest.raises(StateMismatchError, match=r"(?s)no value was changed.*there is no other/bias"):
        ckptflow.import_model(prefix, tmp_path / "none", model=model)
    assert all(map(np.array_equal, model.get_weights(), before))
