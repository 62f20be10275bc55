"""What was once lost on the way: warm starts by place, models that keras files cannot hold, files half right."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ckptflow import import_model, open_checkpoint
from ckptflow.errors import StateMismatchError, UnsupportedStateError, UsageError
from ckptflow.interop.keras import files as keras_files
from ckptflow.interop.keras import weights as keras_weights
from tests.interop.keras_readers import ORIGIN
from tests.interop.models import KERASES, without_graph
from tests.interop.stock import run_stock

pytestmark = pytest.mark.usefixtures("unprobed")

FRAMEWORKS: dict[str, Any] = {"keras": keras, "tf_keras": tf_keras}


def make(framework: str, classes: int = 2) -> Any:
    """A compiled model with a head."""
    kit = FRAMEWORKS[framework]
    layers = [kit.layers.Input((3,)), kit.layers.Dense(4), kit.layers.BatchNormalization(), kit.layers.Dense(classes)]
    model = kit.Sequential(layers)
    model.compile("adam", "mean_squared_error", metrics=["mae"])
    return model


def train(model: Any) -> Any:
    """The model after a step."""
    without_graph(model).fit(np.ones((4, 3), "f4"), np.ones((4, model.output_shape[-1]), "f4"), verbose=0)
    return model


@pytest.mark.parametrize(
    ("framework", "suffix"), [("keras", ".weights.h5"), ("tf_keras", ".weights.h5"), ("tf_keras", "legacy.h5")]
)
def test_a_warm_start_from_weights_goes_by_their_place(framework: str, suffix: str, tmp_path: Path) -> None:
    trained = train(make(framework))
    path = str(tmp_path / f"w{suffix}")
    trained.save_weights(path)
    same, other = make(framework), make(framework, classes=5)
    metadata = import_model(path, tmp_path / "same", model={"net": same}, partial=True).metadata["imported"]
    for before, after in zip(trained.get_weights(), same.get_weights(), strict=True):
        assert np.array_equal(before, after)
    if suffix == ".weights.h5":
        assert metadata["not_used"] == [] or framework == "tf_keras"
        step = same.optimizer.iterations.numpy()
        assert step == trained.optimizer.iterations.numpy() == 1
    head = other.layers[-1].kernel.numpy()
    metadata = import_model(path, tmp_path / "other", model={"net": other}, partial=True).metadata["imported"]
    assert "net/dense_1/kernel" in metadata["left_as_they_were"]
    assert "net/dense/kernel" not in metadata["left_as_they_were"]
    assert np.array_equal(other.layers[0].kernel, trained.layers[0].kernel)
    assert np.array_equal(other.layers[1].moving_mean, trained.layers[1].moving_mean)
    assert np.array_equal(other.layers[-1].kernel, head)
    with open_checkpoint(tmp_path / "other") as opened:
        assert np.array_equal(opened["net/dense/kernel"], trained.layers[0].kernel)
    with pytest.raises(UsageError, match="nothing"):
        import_model(path, tmp_path / "none", model={"net": other}, partial=True, rename={"net": "other"})


@pytest.mark.parametrize("framework", KERASES)
def test_a_whole_h5_that_does_not_fit_changes_nothing(framework: str, tmp_path: Path) -> None:
    path = str(tmp_path / "m.h5")
    keras_files.write_h5(path, train(make(framework)), ORIGIN)
    kit = FRAMEWORKS[framework]
    layers = [kit.layers.Input((3,)), kit.layers.Dense(4), kit.layers.Dense(7), kit.layers.Dense(9)]
    other = kit.Sequential(layers)
    before = [np.array(each) for each in other.get_weights()]
    said = r"(?s)no value was changed.*batch_normalization\S* has 4 weights.*\S*dense_\S+kernel\S* is "
    with pytest.raises(StateMismatchError, match=said):
        keras_weights.load_weights(path, other)
    sgd = make(framework)
    sgd.compile("sgd", "mean_squared_error")
    keras_weights.load_weights(path, sgd)
    assert all(map(np.array_equal, before, other.get_weights()))
    assert int(sgd.optimizer.iterations) == 0


@pytest.mark.parametrize("framework", KERASES)
@pytest.mark.parametrize("units", [4, 5])
def test_a_recurrent_layer_that_does_not_fit_changes_nothing(units: int, framework: str, tmp_path: Path) -> None:
    """tf_keras turns one implementation's weights into another's, where it can; Keras 3 does not."""
    kit = FRAMEWORKS[framework]

    def recurrent(units: int, *, reset_after: bool) -> Any:
        layers = [kit.layers.Dense(3), kit.layers.GRU(units, reset_after=reset_after, name="own")]
        return kit.Sequential([kit.layers.Input((5, 3)), *layers])

    path = str(tmp_path / "m.h5")
    recurrent(4, reset_after=True).save(path)
    other = recurrent(units, reset_after=units != 4)
    before = [np.array(each) for each in other.get_weights()]
    with pytest.raises(StateMismatchError, match=r"(?s)no value was changed.*own"):
        keras_weights.load_weights(path, other)
    assert all(map(np.array_equal, before, other.get_weights()))


def test_stock_tf_keras_loads_weights_into_a_model_that_was_trained(tmp_path: Path) -> None:
    path = str(tmp_path / "w.weights.h5")
    keras_files.write_weights(path, make("tf_keras"), ORIGIN)  # made from a checkpoint, it has seen no batch
    program = """
import numpy as np, tf_keras
layers = [tf_keras.layers.Input((3,)), tf_keras.layers.Dense(4), tf_keras.layers.BatchNormalization()]
answer = []
for train in (False, True):
    model = tf_keras.Sequential([*layers[:1], tf_keras.layers.Dense(4), tf_keras.layers.BatchNormalization(),
                                 tf_keras.layers.Dense(2)])
    model.compile("adam", "mean_squared_error", metrics=["mae"])
    if train:
        model.fit(np.ones((4, 3), "f4"), np.ones((4, 2), "f4"), verbose=0)
    model.load_weights(argument)
    answer.append(model.layers[0].kernel.numpy().tolist())
"""
    first, second = run_stock(program, path)
    assert first == second


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_file_whose_compile_config_names_no_optimizer(
    optimizer: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make("keras")
    model.compile(optimizer, "mean_squared_error")
    train(model)
    model.save(tmp_path / "first.h5")
    model.save(tmp_path / "m.keras")
    with caplog.at_level(logging.WARNING, "ckptflow"):
        read = keras_files.read_model(str(tmp_path / "m.keras"))
    assert "names no optimizer" in caplog.text
    assert getattr(read, "optimizer", None) is None  # Keras would make it RMSprop
    assert np.array_equal(read.layers[0].kernel, model.layers[0].kernel)
    made = make("keras")
    made.compile(optimizer, "mean_squared_error")
    keras_weights.load_weights(str(tmp_path / "m.keras"), made)
    assert made.optimizer.iterations.numpy() == 1


def test_operators_and_dtypes_that_hdf5_loses(tmp_path: Path) -> None:
    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(3)(inputs)
    model = keras.Model(inputs, hidden + inputs)
    with pytest.raises(UnsupportedStateError, match=r"Add.*\.keras file"):
        keras_files.write_h5(str(tmp_path / "m.h5"), model, ORIGIN)
    keras_files.write_keras(str(tmp_path / "m.keras"), model, ORIGIN)
    data = tf.ones((1, 3))
    assert np.array_equal(keras_files.read_model(str(tmp_path / "m.keras"))(data), model(data))
    narrow = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2, dtype="bfloat16")])
    with pytest.raises(UnsupportedStateError, match="bfloat16"):
        keras_files.write_h5(str(tmp_path / "n.h5"), narrow, ORIGIN)
    keras_files.write_keras(str(tmp_path / "n.keras"), narrow, ORIGIN)
    assert np.array_equal(keras_files.read_model(str(tmp_path / "n.keras"))(data), narrow(data))
    narrow = tf_keras.Sequential([tf_keras.layers.Input((3,)), tf_keras.layers.Dense(2, dtype="bfloat16")])
    for write in (keras_files.write_h5, keras_files.write_keras, keras_files.write_weights):
        with pytest.raises(UnsupportedStateError, match="bfloat16"):
            write(str(tmp_path / "n"), narrow, ORIGIN)
    with pytest.raises(UsageError, match="folder"):
        keras_files.read_model(str(tmp_path))
