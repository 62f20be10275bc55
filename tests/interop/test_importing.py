"""`import_model`: how a run begins, what is refused, and what it tells of a warm start."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import ckptflow
from ckptflow.errors import (
    CorruptCheckpointError,
    StateMismatchError,
    UsageError,
)
from tests.interop.doors import MODEL_FORMATS, TENSOR_FORMATS, make_model, predict
from tests.interop.models import without_graph

pytestmark = pytest.mark.usefixtures("unprobed")


def test_an_import_begins_a_run(run: str, tmp_path: Path) -> None:
    ckptflow.export_checkpoint(run, tmp_path / "m.keras")
    first = ckptflow.import_model(tmp_path / "m.keras", tmp_path / "again")
    assert first.step == 0
    assert first.metadata == {"imported": {"source": str(tmp_path / "m.keras"), "format": "keras"}}
    with pytest.raises(UsageError, match="an import begins a run"):
        ckptflow.import_model(tmp_path / "m.keras", tmp_path / "again", step=1)
    assert len(ckptflow.list_checkpoints(tmp_path / "again")) == 1


def test_a_warm_start(run: str, trained: Any, tmp_path: Path) -> None:
    backbone = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="dense")], name="backbone")
    model = keras.Sequential([keras.Input((3,)), backbone, keras.layers.Dense(7, name="other")])
    ckptflow.export_checkpoint(run, tmp_path / "m.keras")
    rename = {"model/features": "model/backbone/dense"}
    fresh = model.layers[1].kernel.numpy()
    done = ckptflow.import_model(tmp_path / "m.keras", tmp_path / "warm", model=model, partial=True, rename=rename)
    about = done.metadata["imported"]
    assert about["left_as_they_were"] == ["model/other/bias", "model/other/kernel"]
    assert {"model/head/kernel", "model/optimizer/iterations"} <= set(about["not_used"])
    assert np.array_equal(backbone.layers[0].kernel, trained.layers[0].kernel)
    assert np.array_equal(model.layers[1].kernel, fresh)
    with pytest.raises(StateMismatchError, match="model/other/kernel"):
        ckptflow.import_model(tmp_path / "m.keras", tmp_path / "strict", model=model, rename=rename)
    with pytest.raises(UsageError, match="give model="):
        ckptflow.import_model(tmp_path / "m.keras", tmp_path / "nowhere", partial=True)
    with pytest.raises(UsageError, match=r"no tensor of .* matches model="):
        ckptflow.import_model(tmp_path / "m.keras", tmp_path / "strict", model={"other": model}, partial=True)
    with pytest.raises(UsageError, match="rename is a dict from text to text"):
        ckptflow.import_model(tmp_path / "m.keras", tmp_path / "strict", model=model, rename=[("a", "b")])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="is a run of ckptflow"):
        ckptflow.import_model(run, tmp_path / "strict", model=model)
    assert not (tmp_path / "strict").exists()
    assert not (tmp_path / "nowhere").exists()


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


def cut(data: bytes) -> bytes:
    return data[: len(data) // 16]


def garbage(data: bytes) -> bytes:
    return b"not at all" * 100


@pytest.mark.parametrize("damage", [cut, garbage])
@pytest.mark.parametrize("name", ["keras", "h5", "weights", "hub", "safetensors", "saved-model", "tf-checkpoint"])
def test_a_damaged_source(name: str, damage: Callable[[bytes], bytes], run: str, tmp_path: Path) -> None:
    destination = tmp_path / {**MODEL_FORMATS, **TENSOR_FORMATS}[name]
    ckptflow.export_checkpoint(run, destination, format=name)
    files = [destination]
    if name == "saved-model":
        files = [destination / "saved_model.pb", *(destination / "variables").iterdir()]
    elif name == "tf-checkpoint":
        files = sorted(tmp_path.glob("m.ckpt.*"))
    for file in files:
        good = file.read_bytes()
        file.write_bytes(damage(good))
        for model in (None, make_model()):
            with pytest.raises(CorruptCheckpointError) as caught:
                ckptflow.import_model(destination, tmp_path / "again", format=name, model=model)
            assert str(destination) in str(caught.value)
            assert ckptflow.list_checkpoints(tmp_path / "again") == []
        file.write_bytes(good)


def test_a_module_that_cannot_be_imported(run: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'no\.such\.module' cannot be imported"):
        ckptflow.export_checkpoint(run, tmp_path / "m.keras", imports=["no.such.module"])


def test_a_source_of_one_model_for_several_objects(run: str, tmp_path: Path) -> None:
    ckptflow.export_checkpoint(run, tmp_path / "m.keras")
    state = {"model": make_model(), "step": tf.Variable(5)}
    with pytest.raises(StateMismatchError, match="nothing for step of model="):
        ckptflow.import_model(tmp_path / "m.keras", tmp_path / "again", model=state)
    done = ckptflow.import_model(tmp_path / "m.keras", tmp_path / "again", model=state, partial=True)
    assert done.metadata["imported"]["left_as_they_were"] == ["step"]


def test_optimizers_that_the_compile_config_does_not_tell(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that a policy wrapped, in a file that is read under another policy; and one of a class that nobody knows."""
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = make_model()
        without_graph(model).fit(np.ones((8, 3), np.float32), np.ones((8, 2), np.float32), epochs=3, verbose=0)
        model.save(tmp_path / "scaled.keras")
    finally:
        keras.mixed_precision.set_global_policy("float32")
    ckptflow.import_model(tmp_path / "scaled.keras", tmp_path / "scaled")
    with ckptflow.open_checkpoint(tmp_path / "scaled") as found:
        step = "model/optimizer/inner_optimizer/iterations"
        assert int(found[step]) == int(model.optimizer.inner_optimizer.iterations)

    class Mine(keras.optimizers.SGD):  # type: ignore[misc]
        pass

    model = make_model()
    model.compile(Mine(0.1, momentum=0.9), "mse")
    without_graph(model).fit(np.ones((8, 3), np.float32), np.ones((8, 2), np.float32), verbose=0)
    model.save(tmp_path / "mine.keras")
    with caplog.at_level(logging.WARNING, "ckptflow"):
        ckptflow.import_model(tmp_path / "mine.keras", tmp_path / "mine")
    assert "its optimizer cannot be created from its config" in caplog.text
    with ckptflow.open_checkpoint(tmp_path / "mine") as found:
        assert np.array_equal(found["model/features/kernel"], model.layers[0].kernel)


def test_a_backup_of_tf_keras(tmp_path: Path) -> None:
    """Beside the model it holds what the callback keeps for itself: no place in the model, and no reason to refuse."""
    import tf_keras

    def make() -> Any:
        model = tf_keras.Sequential([tf_keras.layers.InputLayer((3,)), tf_keras.layers.Dense(2)])
        model.compile(tf_keras.optimizers.Adam(0.01), "mse")
        return model

    model = make()
    backup = tf_keras.callbacks.BackupAndRestore(str(tmp_path / "backup"), save_freq=2, delete_checkpoint=False)
    data = np.ones((8, 3), np.float32), np.ones((8, 2), np.float32)
    model.fit(*data, batch_size=2, epochs=2, verbose=0, callbacks=[backup])
    for given in (None, make()):
        name = f"run-{given is None}"
        ckptflow.import_model(tmp_path / "backup", tmp_path / name, model=given)
        again = make()
        again.optimizer.build(again.trainable_variables)
        with ckptflow.CheckpointManager(tmp_path / name, {"model": again}) as manager:
            assert manager.restore_latest() is not None
        assert int(again.optimizer.iterations) > 0
        np.testing.assert_array_equal(again.layers[0].kernel, model.layers[0].kernel)


def test_a_model_made_under_a_strategy(run: str, trained: Any, tmp_path: Path) -> None:
    ckptflow.export_checkpoint(run, tmp_path / "m.keras")
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = make_model()
    ckptflow.import_model(tmp_path / "m.keras", tmp_path / "again", model=model)
    np.testing.assert_allclose(predict(model), predict(trained), atol=1e-6)
