"""Layers that user code named go by their names, although Keras takes them by their places alone."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras

import ckptflow
from ckptflow import import_model
from ckptflow.errors import StateMismatchError
from ckptflow.interop.keras.named import counterparts, names_in_config
from tests.interop.models import KERASES, without_graph
from tests.interop.test_keras_legacy_order import saved

pytestmark = pytest.mark.usefixtures("unprobed")

FRAMEWORKS: dict[str, Any] = {"keras": keras, "tf_keras": tf_keras}
BY_PLACE = [("keras", "weights.h5"), ("keras", "keras"), ("tf_keras", "keras")]  # tf_keras's weights have no names


def chain(framework: str, names: str, *, seed: int = 1, is_nested: bool = False, is_compiled: bool = False) -> Any:
    """Layers of one shape, by their names; "-" is one that Keras names."""
    kit = FRAMEWORKS[framework]
    kit.utils.set_random_seed(seed)
    model = kit.Sequential([kit.layers.Input((4,))])
    for name in names:
        model.add(kit.layers.Dense(4, name=None if name == "-" else name))
    if is_nested:
        model = kit.Sequential([kit.layers.Input((4,)), model, kit.layers.Dense(4, name="z")])
    if is_compiled:
        model.compile(kit.optimizers.Adam(0.01), "mse")
        without_graph(model).train_on_batch(np.ones((4, 4), "f4"), np.zeros((4, 4), "f4"))
    return model


def kernels(model: Any) -> dict[str, Any]:
    inner = [each for layer in model.layers for each in getattr(layer, "layers", [layer])]
    return {layer.name: layer.get_weights() for layer in inner if layer.get_weights()}


def is_equal(one: list[Any], other: list[Any]) -> bool:
    return all(np.array_equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


def file_of(model: Any, suffix: str, folder: Path) -> Path:
    if suffix in ("whole", "weights"):
        return saved(model, suffix, folder / "m.h5")
    path = folder / f"m.{suffix}"
    (model.save_weights if suffix == "weights.h5" else model.save)(path)
    return path


@pytest.mark.parametrize("framework", KERASES)
@pytest.mark.parametrize(("kind", "is_nested"), [("whole", True), ("weights", False)])
def test_a_legacy_file_goes_by_the_names(is_nested: bool, kind: str, framework: str, tmp_path: Path) -> None:
    model = chain(framework, "abc", is_nested=is_nested)
    path = file_of(model, kind, tmp_path)
    for is_partial in (False, True):
        mine = chain(framework, "bca", seed=2, is_nested=is_nested)
        ckptflow.import_model(path, tmp_path / f"{is_partial}", model=mine, partial=is_partial)
        theirs = kernels(model)
        assert [name for name, values in kernels(mine).items() if not is_equal(values, theirs[name])] == []


@pytest.mark.parametrize("framework", KERASES)
@pytest.mark.parametrize("kind", ["whole", "weights"])
def test_names_and_order_that_say_different_things(kind: str, framework: str, tmp_path: Path) -> None:
    path = file_of(chain(framework, "abo"), kind, tmp_path)
    mine = chain(framework, "sab", seed=2)
    before = kernels(mine)
    with pytest.raises(StateMismatchError, match="b: in another place"):
        ckptflow.import_model(path, tmp_path / "run", model=mine)
    assert all(is_equal(values, before[name]) for name, values in kernels(mine).items())


@pytest.mark.parametrize(("framework", "suffix"), BY_PLACE)
@pytest.mark.parametrize("is_nested", [False, True])
def test_what_keras_takes_by_place_is_refused(is_nested: bool, framework: str, suffix: str, tmp_path: Path) -> None:
    path = file_of(chain(framework, "ab", is_nested=is_nested), suffix, tmp_path)
    mine = chain(framework, "ba", seed=2, is_nested=is_nested)
    before = kernels(mine)
    with pytest.raises(
        StateMismatchError, match=r"layers/dense: in the file this is 'a', and 'b' is at .*layers/dense_1"
    ):
        ckptflow.import_model(path, tmp_path / "run", model=mine)
    assert all(is_equal(values, before[name]) for name, values in kernels(mine).items())


@pytest.mark.parametrize(
    ("framework", "suffix"), [*BY_PLACE, ("keras", "whole"), ("keras", "weights"), ("tf_keras", "weights")]
)
def test_a_warm_start_takes_the_same_names(framework: str, suffix: str, tmp_path: Path) -> None:
    model = chain(framework, "abo")
    path = file_of(model, suffix, tmp_path)
    mine = chain(framework, "sab", seed=2)
    made, theirs = kernels(mine)["s"], kernels(model)
    checkpoint = ckptflow.import_model(path, tmp_path / "run", model=mine, partial=True)
    ours = kernels(mine)
    assert is_equal(ours["a"] + ours["b"] + ours["s"], theirs["a"] + theirs["b"] + made)
    assert checkpoint.metadata["imported"]["left_as_they_were"] == ["model/s/bias", "model/s/kernel"]
    assert checkpoint.metadata["imported"]["not_used"]


@pytest.mark.parametrize(
    ("framework", "suffix"), [("keras", "weights.h5"), ("keras", "weights"), ("tf_keras", "weights")]
)
def test_a_head_of_another_name_is_another_one(framework: str, suffix: str, tmp_path: Path) -> None:
    model = chain(framework, "a-o")
    path = file_of(model, suffix, tmp_path)
    mine = chain(framework, "a-n", seed=2)
    head, theirs = kernels(mine)["n"], list(kernels(model).values())
    ckptflow.import_model(path, tmp_path / "run", model=mine, partial=True)
    ours = list(kernels(mine).values())
    assert [is_equal(one, other) for one, other in zip(ours, theirs, strict=True)] == [True, True, False]
    assert is_equal(ours[2], head)


@pytest.mark.parametrize(
    ("framework", "suffix"), [*BY_PLACE, ("keras", "whole"), ("keras", "weights"), ("tf_keras", "weights")]
)
def test_names_that_keras_made_say_nothing(framework: str, suffix: str, tmp_path: Path) -> None:
    """The layers of one process are numbered on: a name may be that of another layer in another process."""
    first = chain(framework, "---")
    kit = FRAMEWORKS[framework]
    kit.backend.clear_session()
    model = chain(framework, "---")
    path = file_of(model, suffix, tmp_path)
    kit.backend.clear_session()
    kit.layers.Dense(4)(np.ones((1, 4)))
    for is_partial in (False, True):
        mine = chain(framework, "---", seed=2)
        if suffix in ("whole", "keras") and is_partial:
            continue  # by the names in the state
        ckptflow.import_model(path, tmp_path / f"{is_partial}", model=mine, partial=is_partial)
        theirs = list(kernels(model).values())
        assert all(is_equal(one, other) for one, other in zip(kernels(mine).values(), theirs, strict=True))
    assert len(first.layers) == 3


@pytest.mark.parametrize("framework", KERASES)
def test_slots_in_another_order_begin_anew(framework: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = chain(framework, "ab", is_compiled=True)
    path = file_of(model, "whole", tmp_path)
    mine = chain(framework, "ba", seed=2, is_compiled=True)
    before = [np.asarray(each) for each in slots(mine)]
    with caplog.at_level(logging.WARNING, "ckptflow"):
        ckptflow.import_model(path, tmp_path / "run", model=mine)
    assert "b is not in its place among the layers there" in caplog.text
    assert is_equal(before, [np.asarray(each) for each in slots(mine)])
    assert is_equal(kernels(mine)["a"], kernels(model)["a"])


def test_slots_of_another_order_in_a_warm_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = file_of(chain("keras", "ab", is_compiled=True), "weights.h5", tmp_path)
    mine = chain("keras", "ba", seed=2, is_compiled=True)
    before = [np.asarray(each) for each in slots(mine)]
    with caplog.at_level(logging.WARNING, "ckptflow"):
        ckptflow.import_model(path, tmp_path / "run", model=mine, partial=True)
    assert "is not in its place among the layers there" in caplog.text
    assert is_equal(before, [np.asarray(each) for each in slots(mine)])


def slots(model: Any) -> list[Any]:
    variables = model.optimizer.variables
    return list(variables() if callable(variables) else variables)


@pytest.mark.parametrize("framework", KERASES)
def test_a_config_tells_the_places_that_keras_gives(framework: str, tmp_path: Path) -> None:
    from ckptflow.interop.keras.places import places_of

    kit = FRAMEWORKS[framework]
    inputs = kit.Input((4, 4))
    both = kit.layers.Bidirectional(kit.layers.LSTM(3, name="r"), name="both")(inputs)
    inner = kit.Sequential([kit.layers.Input((6,)), kit.layers.Dense(6, name="i"), kit.layers.Dense(6)], name="inner")
    hidden = kit.layers.LayerNormalization(name="n")(inner(both) + kit.layers.Dropout(0.1)(both))
    model = kit.Model(inputs, kit.layers.Dense(2, name="o")(kit.layers.BatchNormalization()(hidden)))
    layers = places_of(model, framework).layers  # type: ignore[arg-type]
    told = names_in_config({"class_name": "Functional", "config": model.get_config()})
    # Keras counts no inputs among the layers of a sequential model.
    assert {place: name for place, name in told.items() if place in layers and layers[place].name != name} == {}
    assert set(told.values()) >= {"both", "inner", "i", "n", "o"}
    assert all(there == place for place, there in counterparts(layers, told).items())


@pytest.mark.parametrize("partial", [False, True])
def test_attributes_are_names_whatever_layers_are_called(tmp_path: Path, partial: bool) -> None:
    """One that has its class's name and was given another one says nothing of the others."""

    class Model(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(4, name="enc")
            self.layer_normalization = keras.layers.LayerNormalization(name="ln")
            self.bn = keras.layers.BatchNormalization()
            self.head = keras.layers.Dense(3)

        def call(self, inputs: Any) -> Any:
            return self.head(self.bn(self.layer_normalization(self.dense(inputs))))

    saved, model = Model(), Model()
    for each in (saved, model):
        each(np.zeros((1, 4), np.float32))
    path = tmp_path / "m.weights.h5"
    saved.save_weights(path)
    import_model(path, tmp_path / "run", model={"model": model}, partial=partial)
    for weight, expected in zip(model.get_weights(), saved.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)
