"""Checkpoints of TensorFlow's and SavedModels of a model of which other layers were frozen, all layers of one shape.

An optimizer of Keras 3 lists the variables that it trains, by position: the same position is another variable's then.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ckptflow
from tests.interop.models import without_graph

pytestmark = pytest.mark.usefixtures("unprobed")

FRAMEWORKS: dict[str, Any] = {"keras": keras, "tf_keras": tf_keras}
NAMES = ("first", "second", "third")
FROZEN = [  # of the inner model there, and here
    ("keras", "", "first"),
    ("keras", "first", "second"),
    ("tf_keras", "first", ""),
    ("tf_keras", "first", "second"),
]


def make(framework: str, frozen: str) -> Any:
    kit = FRAMEWORKS[framework]
    inner = kit.Sequential([kit.layers.Input((4,)), *(kit.layers.Dense(4, name=name) for name in NAMES[:2])])
    model = kit.Sequential([kit.layers.Input((4,)), inner, kit.layers.Dense(4, name=NAMES[2])])
    if frozen:
        inner.get_layer(frozen).trainable = False
    model.compile("adam", "mean_squared_error")
    return without_graph(model)


def train(model: Any) -> Any:
    for scale in (1, 2):
        model.train_on_batch(np.full((4, 4), scale, "f4"), np.ones((4, 4), "f4"))
    return model


def layers_of(model: Any) -> dict[str, Any]:
    return {each.name: each for each in (*model.layers[0].layers, model.layers[-1]) if each.name in NAMES}


def slots_of(model: Any, name: str) -> list[bytes]:
    """The values of an optimizer's slots for a layer, where they are not zero."""
    found = model.optimizer.variables
    slots = [each for each in (found() if callable(found) else found) if len(each.shape)]
    of_layer = [np.array(each) for each in slots if name in getattr(each, "path", each.name)]
    return sorted(each.tobytes() for each in of_layer if each.any())


def assert_comes(model: Any, mine: Any) -> None:
    """Every weight is its layer's, and every slot its variable's or as it was made."""
    theirs, ours = layers_of(model), layers_of(mine)
    for name in NAMES:
        assert all(map(np.array_equal, ours[name].get_weights(), theirs[name].get_weights())), name
        assert slots_of(mine, name) in ([], slots_of(model, name)), name


@pytest.mark.parametrize(("framework", "there", "here"), FROZEN)
def test_a_checkpoint(framework: str, there: str, here: str, tmp_path: Path) -> None:
    model = train(make(framework, there))
    sources = {
        "both": tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(str(tmp_path / "both/m.ckpt")),
        "apart": tf.train.Checkpoint(network=model, optimizer=model.optimizer).write(str(tmp_path / "apart/m.ckpt")),
        "one": tf.train.Checkpoint(network=model).write(str(tmp_path / "one/m.ckpt")),
    }
    for name, source in sources.items():
        for is_partial in (False, True):
            mine = make(framework, here)
            state = {"model": mine, "optimizer": mine.optimizer} if name != "one" else {"model": mine}
            ckptflow.import_model(source, tmp_path / f"{name}-{is_partial}", model=state, partial=is_partial)
            assert_comes(model, mine)
            if is_partial:
                assert slots_of(mine, "third") == slots_of(model, "third") != []
        ckptflow.import_model(source, tmp_path / name / "run")
        mine = make(framework, here)
        state = {"model": mine, "optimizer": mine.optimizer} if name != "one" else {"model": mine}
        with ckptflow.CheckpointManager(tmp_path / name / "run", state) as manager:
            manager.restore_latest(partial=True)
        assert_comes(model, mine)


@pytest.mark.parametrize(("framework", "there", "here"), FROZEN)
def test_a_saved_model(framework: str, there: str, here: str, tmp_path: Path) -> None:
    model = train(make(framework, there))
    tf.saved_model.save(model, str(tmp_path / "m"))
    for is_partial in (False, True):
        mine = make(framework, here)
        ckptflow.import_model(tmp_path / "m", tmp_path / f"run{is_partial}", model=mine, partial=is_partial)
        assert_comes(model, mine)
