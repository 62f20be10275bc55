"""Layers that do not get their name back from their config: exports find their values by their place, as Keras does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras

import ckptflow
from ckptflow.errors import StateMismatchError
from tests.interop.models import KERASES, without_graph

pytestmark = pytest.mark.usefixtures("unprobed")

FRAMEWORKS: dict[str, Any] = {"keras": keras, "tf_keras": tf_keras}
ONES = np.ones((1, 4), "f4")


def classes(kit: Any) -> tuple[type, type]:
    """Registered, without a get_config; Keras leaves the name out of the config that it makes for them."""

    @kit.saving.register_keras_serializable("from_places")
    class Scale(kit.layers.Layer):  # type: ignore[misc]
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)

        def build(self, shape: Any) -> None:
            self.factor = self.add_weight(shape=(shape[-1],), initializer="random_normal", name="factor")
            super().build(shape)

        def call(self, inputs: Any) -> Any:
            return inputs * self.factor

    @kit.saving.register_keras_serializable("from_places")
    class Block(kit.layers.Layer):  # type: ignore[misc]
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.first, self.second = kit.layers.Dense(4), kit.layers.Dense(4)

        def call(self, inputs: Any) -> Any:
            return self.second(self.first(inputs))

    return Scale, Block


def sequential(kit: Any) -> Any:
    scale, block = classes(kit)
    layers = [scale(name="zebra"), scale(name="ape"), block(name="cat"), kit.layers.Dense(2), scale(name="dense")]
    return kit.Sequential([kit.layers.Input((4,)), *layers])


def functional(kit: Any) -> Any:
    scale, block = classes(kit)
    inputs = kit.layers.Input((4,))
    hidden = block(name="zebra")(scale(name="own")(inputs))
    return kit.Model(inputs, kit.layers.Dense(2)(hidden) + scale(name="ape")(kit.layers.Dense(2)(inputs)))


@pytest.mark.parametrize("framework", KERASES)
@pytest.mark.parametrize("build", [sequential, functional])
def test_an_export_goes_by_places(build: Any, framework: str, tmp_path: Path) -> None:
    kit = FRAMEWORKS[framework]
    model = build(kit)
    model.compile(kit.optimizers.Adam(0.01), "mse")
    without_graph(model).train_on_batch(np.ones((4, 4), "f4"), np.ones((4, 2), "f4"))
    with ckptflow.CheckpointManager(tmp_path / "run", {"model": model}) as manager:
        manager.save(1)
    done = ckptflow.export_checkpoint(tmp_path / "run", tmp_path / "m.keras")
    assert done.left_out == ()
    read = kit.models.load_model(tmp_path / "m.keras")
    assert np.array_equal(read(ONES), model(ONES))
    mine, theirs = ([np.array(each) for each in of(found)] for of, found in ((_slots, read), (_slots, model)))
    assert all(map(np.array_equal, mine, theirs))
    assert any(each.any() for each in mine)


def _slots(model: Any) -> list[Any]:
    variables = model.optimizer.variables
    return list(variables() if callable(variables) else variables)


def test_what_has_no_place_says_to_hand_the_model_over(tmp_path: Path) -> None:
    units = [1]

    @keras.saving.register_keras_serializable("from_places")
    class Changing(keras.layers.Layer):  # type: ignore[misc]
        def build(self, shape: Any) -> None:
            for number in range(units[0]):
                setattr(self, f"weight_{number}", self.add_weight(shape=(shape[-1],)))

        def call(self, inputs: Any) -> Any:
            return inputs * self.weight_0

    model = keras.Sequential([keras.Input((4,)), Changing(name="own")])
    with ckptflow.CheckpointManager(tmp_path / "run", {"model": model}) as manager:
        manager.save(1)
    units[0] = 2
    with pytest.raises(StateMismatchError, match=r"(?s)own/weight_1: in the state, not in the.*model="):
        ckptflow.export_checkpoint(tmp_path / "run", tmp_path / "m.keras")
