"""Weights in legacy HDF5 files, whose order depends on what was frozen, go to the variables whose they are.

Stock Keras takes them by their order alone, and gives those of one shape to other layers without a word.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tf_keras

import ckptflow
from ckptflow.errors import StateMismatchError, UsageError
from tests.interop.models import KERASES

pytestmark = pytest.mark.usefixtures("unprobed")

FRAMEWORKS: dict[str, Any] = {"keras": keras, "tf_keras": tf_keras}
KINDS = ("whole", "weights")


def nested(framework: str, seed: int, *, frozen: str = "", names: str = "ab", is_normalised: bool = False) -> Any:
    """A model in a model, of which a layer, or all, is frozen."""
    kit = FRAMEWORKS[framework]
    kit.utils.set_random_seed(seed)
    inner = kit.Sequential([kit.layers.Input((4,))], name="inner")
    for name in names:
        inner.add(kit.layers.Dense(4, name=name))
        if is_normalised:
            inner.add(kit.layers.BatchNormalization(name=f"{name}_normalised"))
    if frozen:
        (inner if frozen == "inner" else inner.get_layer(frozen)).trainable = False
    inputs = kit.Input((4,))
    return kit.Model(inputs, kit.layers.Dense(2, name="head")(inner(inputs)))


def saved(model: Any, kind: str, path: Path) -> Path:
    """A legacy file as the model's Keras writes it; Keras 3 has no public way to write one of weights alone."""
    values = np.random.default_rng(len(path.name))  # one for all: no two weights may be equal
    for each in model.weights:
        each.assign(values.random(each.shape))
    if kind == "whole":
        model.save(path)
    elif isinstance(model, keras.Model):
        from keras.src.legacy.saving import legacy_h5_format

        with h5py.File(path, "w") as file:
            legacy_h5_format.save_weights_to_hdf5_group(file, model)
    else:
        model.save_weights(path)
    return path


def weights(model: Any) -> dict[str, Any]:
    layers = [*model.get_layer("inner").layers, model.get_layer("head")]
    return {f"{each.name}/{i}": value for each in layers for i, value in enumerate(each.get_weights())}


def assert_equal(one: Any, other: Any) -> None:
    ours, theirs = weights(one), weights(other)
    assert [name for name in theirs if not np.array_equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize(("kind", "framework"), [("whole", "keras"), ("weights", "tf_keras")])
def test_frozen_in_part_before_or_after(kind: str, framework: str, tmp_path: Path) -> None:
    for there, here in (("", "a"), ("a", ""), ("a", "b")):
        model = nested(framework, 1, frozen=there)
        path = saved(model, kind, tmp_path / f"{there}-{here}.h5")
        for is_partial in (False, True):
            mine = nested(framework, 2, frozen=here)
            ckptflow.import_model(path, tmp_path / f"{there}-{here}-{is_partial}", model=mine, partial=is_partial)
            assert_equal(mine, model)


@pytest.mark.parametrize("framework", KERASES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_backbone_with_statistics_that_is_frozen_now(kind: str, framework: str, tmp_path: Path) -> None:
    """Stock Keras cannot read it: shapes differ in the order of today."""
    model = nested(framework, 1, is_normalised=True)
    path = saved(model, kind, tmp_path / "m.h5")
    mine = nested(framework, 2, is_normalised=True, frozen="inner")
    ckptflow.import_model(path, tmp_path / "run", model=mine)
    assert_equal(mine, model)


@pytest.mark.parametrize("framework", KERASES)
def test_an_order_that_nothing_tells(framework: str, tmp_path: Path) -> None:
    model = nested(framework, 1, names="ab")
    path = saved(model, "weights", tmp_path / "m.h5")
    mine = nested(framework, 2, names="cd", frozen="c")
    before = weights(mine)
    with pytest.raises(StateMismatchError, match="inner is frozen in part"):
        ckptflow.import_model(path, tmp_path / "run", model=mine)
    assert all(map(np.array_equal, before.values(), weights(mine).values()))
    mine = nested(framework, 2, names="cd")  # by their order, as Keras does
    ckptflow.import_model(path, tmp_path / "run", model=mine)
    assert all(map(np.array_equal, weights(mine).values(), weights(model).values()))


def test_a_layer_of_another_implementation_is_not_taken_in_part(tmp_path: Path) -> None:
    """cuDNN's kernels have the shape of others and another order: stock tf_keras turns one into the other."""
    from tf_keras.src.layers.rnn.cudnn_lstm import CuDNNLSTM

    def make(layer: Any) -> Any:
        return tf_keras.Sequential([tf_keras.layers.Input((5, 4)), layer, tf_keras.layers.Dense(2, name="head")])

    model = make(CuDNNLSTM(3, name="lstm"))
    model.save_weights(tmp_path / "m.h5")
    mine = make(tf_keras.layers.LSTM(3, name="lstm", recurrent_activation="sigmoid"))
    before = mine.layers[0].get_weights()
    imported = ckptflow.import_model(tmp_path / "m.h5", tmp_path / "run", model=mine, partial=True)
    assert all(map(np.array_equal, mine.layers[0].get_weights(), before))
    assert all(map(np.array_equal, mine.layers[1].get_weights(), model.layers[1].get_weights()))
    assert imported.metadata["imported"]["left_as_they_were"]
    stock = make(tf_keras.layers.LSTM(3, name="lstm", recurrent_activation="sigmoid"))
    stock.load_weights(tmp_path / "m.h5")
    ckptflow.import_model(tmp_path / "m.h5", tmp_path / "whole", model=mine)
    assert all(map(np.array_equal, mine.get_weights(), stock.get_weights()))
    model.save(tmp_path / "whole.h5")
    before = mine.get_weights()
    with pytest.raises(UsageError, match="its layer 'lstm' is a CuDNNLSTM, that of model= a LSTM"):
        ckptflow.import_model(tmp_path / "whole.h5", tmp_path / "refused", model=mine, partial=True)
    assert all(map(np.array_equal, mine.get_weights(), before))
    ckptflow.import_model(tmp_path / "whole.h5", tmp_path / "converted", model=mine)
    assert all(map(np.array_equal, mine.get_weights(), stock.get_weights()))


def a_sequence(framework: str, what: str) -> Any:
    kit = FRAMEWORKS[framework]
    if what == "nested":
        model = nested(framework, 1, frozen="inner")
        model.get_layer("inner").get_layer("b").trainable = True
        return model
    layers = kit.layers
    model = kit.Sequential(
        [layers.Input((4, 1)), layers.Bidirectional(layers.SimpleRNN(4), name="both"), layers.Dense(2, name="head")]
    )
    model.get_layer("both").forward_layer.trainable = False
    return model


@pytest.mark.parametrize("framework", KERASES)
@pytest.mark.parametrize("what", ["nested", "both_ways"])
def test_a_whole_file_of_what_was_frozen_apart(what: str, framework: str, tmp_path: Path) -> None:
    """Made again from its config, a model may have another order than the one that was saved."""
    model = a_sequence(framework, what)
    path = saved(model, "whole", tmp_path / "m.h5")
    ckptflow.import_model(path, tmp_path / "run")
    mine = a_sequence(framework, what)
    with ckptflow.CheckpointManager(tmp_path / "run", {"model": mine}) as manager:
        manager.restore_latest()
    pairs = zip(in_one_order(model), in_one_order(mine), strict=True)
    assert all(np.array_equal(one, other) for one, other in pairs)


def in_one_order(model: Any) -> list[Any]:
    """A model's weights as if nothing of it were frozen."""
    model.trainable = True
    return [np.asarray(each) for each in model.trainable_weights]
