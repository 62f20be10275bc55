"""`export_checkpoint`: what it refuses, what it leaves behind, what it tells; and each way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import ckptflow
from ckptflow.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    ObjectExistsError,
    ObjectNotFoundError,
    StateMismatchError,
    UnsupportedStateError,
    UsageError,
)
from ckptflow.interop.keras import files as keras_files
from ckptflow.interop.origin import find_provenance
from tests.interop.doors import MODEL_FORMATS, TENSOR_FORMATS, make_model, names_in, predict, save
from tests.interop.models import without_graph
from tests.processes import run_python


@pytest.mark.parametrize("name", [*MODEL_FORMATS, *TENSOR_FORMATS])
def test_every_export_says_where_it_comes_from(name: str, run: str, tmp_path: Path) -> None:
    import hashlib

    destination = str(tmp_path / {**MODEL_FORMATS, **TENSOR_FORMATS}[name])
    exported = ckptflow.export_checkpoint(run, destination, format=name)
    assert (exported.url, exported.format, exported.step) == (destination, name, 3)
    provenance = find_provenance(destination)
    assert provenance is not None
    assert (provenance.run_url, provenance.step, provenance.incarnation) == (run, 3, 1)
    assert provenance.format == name
    manifest = Path(run, provenance.folder, "manifest.json").read_bytes()
    assert provenance.manifest_sha256 == hashlib.sha256(manifest).hexdigest()


# A packed module is the SavedModel in a tar: `test_architectures` reads one.
@pytest.mark.parametrize(
    "name", ["keras", "h5", "weights", "saved-model", pytest.param("hub", marks=pytest.mark.chaos), *TENSOR_FORMATS]
)
def test_each_way_back_into_the_model(name: str, run: str, trained: Any, tmp_path: Path) -> None:
    """With the model's code: predictions, and the optimizer where the format holds it, as they were."""
    destination = str(tmp_path / {**MODEL_FORMATS, **TENSOR_FORMATS}[name])
    ckptflow.export_checkpoint(run, destination, format=name)
    model = make_model()
    model.optimizer.build(model.trainable_variables)
    checkpoint = ckptflow.import_model(destination, tmp_path / "again", model=model, step=7, format=name)
    assert checkpoint.step == 7
    assert checkpoint.metadata["imported"]["format"] == name
    again = make_model()
    with ckptflow.CheckpointManager(tmp_path / "again", {"model": again}) as manager:
        restored = manager.restore_latest()
    assert restored is not None
    assert restored.step == 7
    np.testing.assert_allclose(predict(again), predict(trained), atol=1e-6)
    if name not in ("saved-model", "hub"):
        assert int(again.optimizer.iterations) == 3


def test_what_a_format_has_no_place_for_is_named(run: str, tmp_path: Path) -> None:
    seed = "model/dropout/seed_generator/state"
    exported = ckptflow.export_checkpoint(run, tmp_path / "m.keras")
    assert seed in exported.left_out
    assert not any("optimizer" in name for name in exported.left_out)
    exported = ckptflow.export_checkpoint(run, tmp_path / "m.tflite")
    assert "model/optimizer/iterations" in exported.left_out
    assert ckptflow.export_checkpoint(run, tmp_path / "m.safetensors").left_out == ()


def test_entries_beside_the_model_are_named(trained: Any, tmp_path: Path) -> None:
    class Position:
        def get_state(self) -> int:
            return 5

        def set_state(self, state: int) -> None:
            pass

    save(str(tmp_path / "run"), {"model": trained, "extra": tf.Variable(1.0), "position": Position()})
    exported = ckptflow.export_checkpoint(tmp_path / "run", tmp_path / "m.keras")
    assert {"extra", "position"} <= set(exported.left_out)


def test_a_format_that_cannot_hold_the_state(plain_run: str, tmp_path: Path) -> None:
    for name, file in MODEL_FORMATS.items():
        with pytest.raises(UnsupportedStateError, match="tf-checkpoint, safetensors"):
            ckptflow.export_checkpoint(plain_run, tmp_path / file, format=name)
    assert names_in(tmp_path) == []
    for name, file in TENSOR_FORMATS.items():
        ckptflow.export_checkpoint(plain_run, tmp_path / file, format=name)
    reader = tf.train.load_checkpoint(str(tmp_path / "m.ckpt"))
    assert reader.get_tensor("w/.ATTRIBUTES/VARIABLE_VALUE").tolist() == [1.0, 2.0]


def test_which_of_two_models(tmp_path: Path) -> None:
    small, large = make_model(2), make_model(5)
    save(str(tmp_path / "run"), {"small": small, "large": large})
    with pytest.raises(UsageError, match=r"several models.*small, large"):
        ckptflow.export_checkpoint(tmp_path / "run", tmp_path / "m.keras")
    with pytest.raises(UsageError, match="no entry 'other'"):
        ckptflow.export_checkpoint(tmp_path / "run", tmp_path / "m.keras", entry="other")
    exported = ckptflow.export_checkpoint(tmp_path / "run", tmp_path / "m.keras", entry="small")
    assert any(name.startswith("large/") for name in exported.left_out)
    np.testing.assert_allclose(predict(keras.models.load_model(tmp_path / "m.keras")), predict(small), atol=1e-6)


def test_a_model_given_by_code_is_filled(run: str, trained: Any, tmp_path: Path) -> None:
    model = make_model()
    ckptflow.export_checkpoint(run, tmp_path / "m.weights.h5", model=model)
    np.testing.assert_allclose(predict(model), predict(trained), atol=1e-6)
    with pytest.raises(StateMismatchError, match="features/kernel"):
        ckptflow.export_checkpoint(run, tmp_path / "other.weights.h5", model=make_model(width=5))
    assert names_in(tmp_path) == ["m.weights.h5"]


@pytest.mark.parametrize(
    ("name", "format_name", "words"),
    [
        ("model", None, "does not identify the format"),
        ("model.keras", "pickle", "unknown format 'pickle'; one of keras"),
        ("model.bin", "keras", "has to end with .keras"),
        ("model.keras", "safetensors", "says 'keras', not 'safetensors'"),
        ("model.weights.h5", "h5", r"has to end with .h5"),
    ],
)
def test_names_that_do_not_fit(run: str, tmp_path: Path, name: str, format_name: str | None, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ckptflow.export_checkpoint(run, tmp_path / name, format=format_name)
    assert names_in(tmp_path) == []


def test_a_destination_that_exists(run: str, tmp_path: Path) -> None:
    file, folder = tmp_path / "m.keras", tmp_path / "served"
    file.write_bytes(b"mine")
    folder.mkdir()
    (folder / "mine").write_bytes(b"mine")
    for destination, name in ((file, None), (folder, "saved-model")):
        with pytest.raises(ObjectExistsError, match="overwrite"):
            ckptflow.export_checkpoint(run, destination, format=name)
    assert file.read_bytes() == b"mine"
    assert names_in(folder) == ["mine"]
    ckptflow.export_checkpoint(run, file, overwrite=True)
    ckptflow.export_checkpoint(run, folder, format="saved-model", overwrite=True)
    assert keras.models.load_model(file) is not None
    assert "saved_model.pb" in names_in(folder)
    assert "mine" not in names_in(folder)
    assert names_in(tmp_path) == ["m.keras", "served"]


def test_a_failed_export_leaves_nothing(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str, *_: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("the disk went away")

    monkeypatch.setattr(keras_files, "write_keras", fail)
    old = tmp_path / "old.keras"
    old.write_bytes(b"old")
    for destination in (tmp_path / "new.keras", old):
        with pytest.raises(OSError, match="went away"):
            ckptflow.export_checkpoint(run, destination, overwrite=True)
    assert names_in(tmp_path) == ["old.keras"]
    assert old.read_bytes() == b"old"


def test_a_damaged_checkpoint_is_not_exported(trained: Any, tmp_path: Path) -> None:
    save(str(tmp_path / "run"), {"model": trained})
    (shard,) = (tmp_path / "run").rglob("*.safetensors")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    for name, file in {**MODEL_FORMATS, **TENSOR_FORMATS}.items():
        with pytest.raises(CorruptCheckpointError):
            ckptflow.export_checkpoint(tmp_path / "run", tmp_path / file, format=name)
    assert names_in(tmp_path) == ["run"]


def test_what_is_not_there(run: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="there are steps 3"):
        ckptflow.export_checkpoint(run, tmp_path / "m.keras", step=9)
    with pytest.raises(ObjectNotFoundError, match=r"nothing\.keras"):
        ckptflow.import_model(tmp_path / "nothing.keras", tmp_path / "again")
    assert names_in(tmp_path) == []


def test_signatures_where_there_are_none(run: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no signatures"):
        ckptflow.export_checkpoint(run, tmp_path / "m.keras", signatures={"serve": lambda: 1})


def test_losses_that_were_scaled_by_the_policy(tmp_path: Path) -> None:
    """The compile config does not tell of the optimizer that scales losses; the policy of this process is another."""
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = without_graph(make_model())
        model.fit(np.ones((8, 3), np.float32), np.ones((8, 2), np.float32), epochs=3, verbose=0)
        save(str(tmp_path / "run"), {"model": model})
    finally:
        keras.mixed_precision.set_global_policy("float32")
    exported = ckptflow.export_checkpoint(tmp_path / "run", tmp_path / "m.keras")
    assert not any("optimizer" in name for name in exported.left_out)
    again = keras.models.load_model(tmp_path / "m.keras")
    assert float(again.optimizer.learning_rate) == pytest.approx(0.01)
    assert int(again.optimizer.iterations) == int(model.optimizer.iterations)
    assert len(again.optimizer.variables) == len(model.optimizer.variables)


def test_a_module_that_holds_a_keras_model(tmp_path: Path) -> None:
    class Module(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
            self.scale = tf.Variable(2.0)

        @tf.function(input_signature=[tf.TensorSpec([None, 3])])
        def __call__(self, x: Any) -> Any:
            return self.net(x) * self.scale

    module, other = Module(), Module()
    module.scale.assign(5.0)
    save(str(tmp_path / "run"), {"m": module})
    ckptflow.export_checkpoint(tmp_path / "run", tmp_path / "served", format="saved-model", model=other)
    loaded = tf.saved_model.load(str(tmp_path / "served"))
    x = tf.ones([2, 3])
    np.testing.assert_allclose(loaded(x), module(x), atol=1e-6)
    with pytest.raises(UsageError, match="has the complete state"):
        ckptflow.export_checkpoint(tmp_path / "run", tmp_path / "m.ckpt", entry="m")


def test_what_comes_of_the_optimizers_of_tf_keras(tmp_path: Path) -> None:
    import tf_keras

    x = np.ones((8, 3), np.float32)
    for optimizer, lost in ((tf_keras.optimizers.Adam(0.01), 0), (tf_keras.optimizers.legacy.Adam(0.01), 1 + 2 * 2)):
        model = tf_keras.Sequential([tf_keras.layers.InputLayer((3,)), tf_keras.layers.Dense(2)])
        model.compile(optimizer, "mse")
        without_graph(model).fit(x, np.ones((8, 2), np.float32), epochs=3, verbose=0)
        name = f"m{lost}"
        save(str(tmp_path / name), {"model": model})
        exported = ckptflow.export_checkpoint(tmp_path / name, tmp_path / f"{name}.keras")
        assert len(exported.left_out) == lost, exported.left_out
        again = tf_keras.models.load_model(tmp_path / f"{name}.keras")
        assert (int(again.optimizer.iterations) == 3) == (not lost)


def test_entries_that_are_containers(tmp_path: Path) -> None:
    """As `tf.train.Checkpoint(nets={…}, steps=[…])` has them."""

    def state() -> dict[str, Any]:
        return {"nets": {"small": make_model(2)}, "steps": [tf.Variable(0.0), make_model(3)]}

    saved, restored = state(), state()
    saved["steps"][0].assign(7.0)
    save(str(tmp_path / "run"), saved)
    assert not [
        name for name in ckptflow.export_checkpoint(tmp_path / "run", tmp_path / "m.ckpt").left_out if "kernel" in name
    ]
    tf.train.Checkpoint(**restored).read(str(tmp_path / "m.ckpt")).assert_existing_objects_matched()
    assert restored["steps"][0].numpy() == 7.0
    np.testing.assert_array_equal(predict(restored["nets"]["small"]), predict(saved["nets"]["small"]))


def test_slots_go_to_their_variables_whatever_the_order_of_the_optimizer(tmp_path: Path) -> None:
    """A custom loop's optimizer, built for the head first; a file of Keras's is read in the model's order."""

    def make() -> tuple[Any, Any]:
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(4)])
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        optimizer.build([*model.layers[1].trainable_variables, *model.layers[0].trainable_variables])
        return model, optimizer

    model, optimizer = make()
    for number, slot in enumerate(optimizer.variables[2:]):
        slot.assign(np.full(slot.shape, number + 1.0, np.float32))
    save(str(tmp_path / "run"), {"model": model, "optimizer": optimizer})
    ckptflow.export_checkpoint(tmp_path / "run", tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert [float(slot.numpy().flat[0]) for slot in again.optimizer.variables[2:]] == [3, 4, 1, 2]
    other, unordered = make()
    other.optimizer = unordered
    with pytest.raises(UsageError, match="another order"):
        ckptflow.export_checkpoint(tmp_path / "run", tmp_path / "other.keras", model=other)


def test_inputs_with_names_that_no_argument_can_have(tmp_path: Path) -> None:
    inputs = [keras.Input((2,), name="my-feature"), keras.Input((2,), name="1st")]
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Concatenate()(inputs)))
    save(str(tmp_path / "run"), {"model": model})
    ckptflow.export_checkpoint(tmp_path / "run", tmp_path / "served", format="saved-model")
    serve = tf.saved_model.load(str(tmp_path / "served")).signatures["serving_default"]
    x = tf.ones([1, 2])
    (answer,) = serve(my_feature=x, arg_1st=2 * x).values()
    np.testing.assert_allclose(answer, model([x, 2 * x]), atol=1e-6)


_FULL = """
import resource, sys
import ckptflow
from ckptflow.errors import StorageFullError
import keras, tensorflow
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for name in ("m.keras", "m.h5", "m.weights.h5", "m.safetensors", "m.ckpt", "m.tflite"):
    try:
        ckptflow.export_checkpoint(sys.argv[1], f"{sys.argv[2]}/{name}")
    except StorageFullError as error:
        print(name, "is told")
"""


def test_a_full_disk(tmp_path: Path) -> None:
    """In a process of its own: libhdf5 would take it down."""
    model = keras.Sequential([keras.Input((100,)), keras.layers.Dense(300)])
    save(str(tmp_path / "run"), {"model": model})
    (tmp_path / "out").mkdir()
    done = run_python("-c", _FULL, str(tmp_path / "run"), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("is told") == 6
    assert names_in(tmp_path / "out") == []
