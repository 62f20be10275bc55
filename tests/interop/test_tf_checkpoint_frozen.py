"""A tf-checkpoint of a model of which other layers were frozen when it was compiled: no value goes astray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ckptflow
from ckptflow.interop.import_ import import_model

FRAMEWORKS: dict[str, Any] = {"keras": keras, "tf_keras": tf_keras}
pytestmark = pytest.mark.usefixtures("unprobed")


def make(framework: str, frozen: str, *, first: float = 0.0, is_subclass: bool = False, order: int = 1) -> Any:
    """Three layers of one shape, "a" to "c"; each weight and slot has a value of its own from `first` on, if given."""
    kit = FRAMEWORKS[framework]
    layers = [kit.layers.Dense(3, name=name) for name in "abc"]

    class Net(kit.Model):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = layers

        def call(self, inputs: Any) -> Any:
            return self.c(self.b(self.a(inputs)))

    model = Net() if is_subclass else kit.Sequential([kit.layers.Input((3,)), *layers])
    model(np.zeros((1, 3), np.float32))
    for layer in layers:
        layer.trainable = layer.name not in frozen
    model.compile(kit.optimizers.Adam(0.01), "mse")
    if first:
        model.optimizer.build(model.trainable_variables[::order])
        slots = [*model.optimizer._momentums, *model.optimizer._velocities]
        for number, variable in enumerate([*model.weights, *slots]):
            variable.assign(np.full(variable.shape, first + number))
    return model


def weights(model: Any) -> dict[str, float]:
    return {f"{layer.name}{place}": float(np.ravel(weight)[0]) for layer in model.layers
            for place, weight in enumerate(layer.get_weights())}  # fmt: skip


def slots(model: Any) -> dict[str, float]:
    """The first value of each momentum by the weight that it is for."""
    optimizer = model.optimizer
    if isinstance(optimizer, tf_keras.optimizers.Optimizer):
        key = optimizer._var_key
        places = optimizer._index_dict
    else:
        key, places = id, {id(variable): number for number, variable in enumerate(optimizer._trainable_variables)}
    owners = {key(weight): f"{layer.name}{place}" for layer in model.layers
              for place, weight in enumerate(layer.weights)}  # fmt: skip
    return {owners[each]: float(np.ravel(optimizer._momentums[place])[0]) for each, place in places.items()}


def stock(model: Any, prefix: Path, *, is_beside: bool) -> str:
    entries = {"model": model, "optimizer": model.optimizer} if is_beside else {"model": model}
    return str(tf.train.Checkpoint(**entries).write(str(prefix)))


@pytest.mark.parametrize("is_subclass", [False, True], ids=["sequential", "subclass"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_weights_come_and_slots_go_with_them(
    framework: str, is_subclass: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ways = [("", "a", True), ("a", "", False), ("a", "b", False), ("b", "a", True), ("a", "a", True)]
    for number, (saved, now, is_beside) in enumerate(ways):
        caplog.clear()
        source = make(framework, saved, first=1.0, is_subclass=is_subclass)
        prefix = stock(source, tmp_path / f"{number}", is_beside=is_beside)
        model = make(framework, now, first=100.0 if number % 2 else 0.0, is_subclass=is_subclass)
        before = slots(model) if number % 2 else {}
        state = {"model": model, "optimizer": model.optimizer} if is_beside else {"model": model}
        import_model(prefix, tmp_path / f"run{number}", model=state)
        assert weights(model) == weights(source), (saved, now)
        if saved == now:
            assert slots(model) == slots(source)
        else:
            assert slots(model) == before or not any(slots(model).values())
            assert "starts fresh" in caplog.text


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_warm_start_takes_the_slots_of_what_is_trained_in_both(framework: str, tmp_path: Path) -> None:
    source = make(framework, "a", first=1.0, is_subclass=True)
    prefix = stock(source, tmp_path / "c", is_beside=False)
    import_model(prefix, tmp_path / "run")
    directly, later = (make(framework, "b", first=100.0, is_subclass=True) for _ in range(2))
    import_model(prefix, tmp_path / "again", model={"model": directly}, partial=True)
    with ckptflow.CheckpointManager(tmp_path / "run", {"model": later}) as manager:
        manager.restore_latest(partial=True)
    for model in (directly, later):
        assert weights(model) == weights(source)
        there, before = slots(source), slots(make(framework, "b", first=100.0, is_subclass=True))
        assert slots(model) == {name: there.get(name, old) for name, old in before.items()}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_optimizer_that_was_built_for_variables_in_another_order(framework: str, tmp_path: Path) -> None:
    source = make(framework, "", first=1.0, is_subclass=True, order=-1)
    prefix = stock(source, tmp_path / "c", is_beside=True)
    model = make(framework, "", first=100.0, is_subclass=True)
    import_model(prefix, tmp_path / "run", model={"model": model, "optimizer": model.optimizer})
    assert weights(model) == weights(source)
    assert slots(model) == slots(source)
