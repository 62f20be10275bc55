"""Optimizers of TensorFlow 1 keep their slots by how this process knows the variables; a checkpoint by their paths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ckptflow import CheckpointManager, UsageError, export_checkpoint, import_model
from ckptflow.state.tree import walk
from tests.state import roundtrip

TF1 = tf.compat.v1.train


def two(order: str, *, steps: int) -> dict[str, Any]:
    """Two variables of one name, made in that order, and an optimizer with a slot for each."""
    found = {name: tf.Variable([1.0], name="w") for name in order}
    optimizer = TF1.MomentumOptimizer(0.1, 0.9)
    for _ in range(steps):
        optimizer.apply_gradients([(tf.constant([float(ord(name))]), found[name]) for name in order])
    return {**found, "optimizer": optimizer}


def slots_of(state: dict[str, Any]) -> dict[str, Any]:
    return {name: state["optimizer"].get_slot(state[name], "momentum").numpy().tolist() for name in "ab"}


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("order", ["ab", "ba"])
def test_slots_go_by_the_names_of_their_variables(order: str, steps: int) -> None:
    saved, fresh = two("ab", steps=3), two(order, steps=steps)
    assert {leaf.name for leaf in walk(saved).leaves} == {"a", "b", "optimizer/momentum/a", "optimizer/momentum/b"}
    roundtrip.restore(fresh, roundtrip.save(saved))
    assert slots_of(fresh) == slots_of(saved)


def compiled() -> Any:
    model = tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(3,)), tf_keras.layers.Dense(1)])
    model.compile(TF1.AdamOptimizer(0.01), "mse")
    return model


def test_a_model_of_tf_keras_goes_on(tmp_path: Path) -> None:
    model, again = compiled(), compiled()
    model.fit(np.ones((4, 3)), np.ones((4, 1)), epochs=2, verbose=0)
    with CheckpointManager(tmp_path, {"model": model}) as manager:
        manager.save(2)
    with CheckpointManager(tmp_path, {"model": again}) as manager:
        manager.restore_latest()
    for each in (model, again):
        each.fit(np.ones((4, 3)), np.ones((4, 1)), verbose=0)
    assert all(map(np.array_equal, again.get_weights(), model.get_weights()))
    assert int(again.optimizer.iterations) == 3


def test_under_a_strategy() -> None:
    def trained(*, steps: int) -> dict[str, Any]:
        strategy = tf.distribute.MirroredStrategy(["CPU:0"])
        with strategy.scope():
            variable, optimizer = tf.Variable([1.0], name="w"), TF1.AdamOptimizer(0.1)
        for _ in range(steps):
            strategy.run(lambda: optimizer.apply_gradients([(tf.constant([2.0]), variable)]))
        return {"w": variable, "optimizer": optimizer, "run": strategy.run}

    def step(found: dict[str, Any]) -> Any:
        found["run"](lambda: found["optimizer"].apply_gradients([(tf.constant([2.0]), found["w"])]))
        return found["w"].numpy()

    trainings = trained(steps=2), trained(steps=0)
    saved, fresh = ({name: found[name] for name in ("w", "optimizer")} for found in trainings)
    roundtrip.restore(fresh, roundtrip.save(saved))
    assert step(trainings[0]) == step(trainings[1])


def test_a_rate_in_a_variable_is_saved() -> None:
    rate = tf.Variable(0.5)
    assert [leaf.name for leaf in walk({"o": TF1.GradientDescentOptimizer(rate)}).leaves] == ["o/learning_rate"]


@pytest.mark.parametrize("name", ["out.keras", "out.weights.h5"])
def test_an_export_leaves_it_out(name: str, tmp_path: Path) -> None:
    state = pair("model", "optimizer", TF1.AdamOptimizer(0.01), steps=1)
    with CheckpointManager(tmp_path / "run", state) as manager:
        manager.save(1)
    done = export_checkpoint(tmp_path / "run", tmp_path / name)
    slots = {leaf.name for leaf in walk(state).leaves if leaf.name.startswith("optimizer/")}
    assert len(slots) >= 4
    assert slots <= set(done.left_out)


def pair(model: str, optimizer: str, made: Any, *, steps: int) -> dict[str, Any]:
    """A model and an optimizer beside it, which has been applied to it that often."""
    found = tf_keras.Sequential([tf_keras.layers.Dense(1, input_shape=(1,), name="dense")])
    for _ in range(steps):
        made.apply_gradients([(tf.ones(each.shape), each) for each in found.trainable_variables])
    return {model: found, optimizer: made}


def scaled() -> Any:
    return TF1.experimental.MixedPrecisionLossScaleOptimizer(
        TF1.AdamOptimizer(0.01), TF1.experimental.DynamicLossScale(increment_period=2)
    )


def two_models(make: Callable[[], Any], *, steps: int) -> dict[str, Any]:
    return pair("g", "og", make(), steps=steps) | pair("d", "od", make(), steps=steps)


def test_one_around_another_beside_two_models() -> None:
    saved, fresh = two_models(scaled, steps=3), two_models(scaled, steps=0)
    roundtrip.restore(fresh, roundtrip.save(saved))
    values = roundtrip.save(saved).by_name()
    assert len([name for name in values if name.startswith("og/")]) > 4
    assert roundtrip.save(fresh).by_name() == values


def test_what_is_advised_where_it_is_not_clear_whose_it_is() -> None:
    saved, fresh = (two_models(lambda: TF1.AdamOptimizer(0.01), steps=steps) for steps in (1, 0))
    checkpoint = roundtrip.save(saved)
    checkpoint.models["og"]["variables"] = ["another"]
    with pytest.raises(UsageError, match=r"could be its model; apply it once \(og\.apply_gradients\)"):
        roundtrip.restore(fresh, checkpoint)


def test_checkpoints_of_tensorflow(tmp_path: Path) -> None:
    """Its own names for slots, in both directions, into an optimizer that has none yet."""
    model, url = compiled(), tmp_path / "run"
    model.fit(np.ones((4, 3)), np.ones((4, 1)), epochs=2, verbose=0)
    stock = tf.train.Checkpoint(model=model).write(str(tmp_path / "stock"))
    import_model(stock, url, model=compiled())
    exported = str(tmp_path / "exported")
    export_checkpoint(url, exported, format="tf-checkpoint", model=compiled())
    keys = [key for key, _ in tf.train.list_variables(stock) if "OPTIMIZER_SLOT" in key or "beta1_power" in key]
    assert len(keys) == 9
    for key in keys:
        np.testing.assert_array_equal(tf.train.load_variable(exported, key), tf.train.load_variable(stock, key))
