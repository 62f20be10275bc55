"""Models that nobody should load: each would run code of its author's, and none does unless the user says so."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ckptflow
from ckptflow.errors import CkptflowError, CorruptCheckpointError, UsageError
from ckptflow.interop.export import export_checkpoint
from ckptflow.interop.import_ import import_model
from ckptflow.interop.keras import files as keras_files
from ckptflow.interop.keras import weights as keras_weights
from ckptflow.interop.keras.config import build_model
from ckptflow.interop.tensorflow.saved_model import read_keras_saved_model
from ckptflow.interop.untrusted import keras_trust
from tests.interop import keras_configs
from tests.interop.attacks import (
    FRAMEWORKS,
    SPECIAL,
    Initialised,
    h5_of,
    hostile_graph,
    keras_of,
    lambda_layer,
    marshalled,
    old_config,
)
from tests.interop.forged import forge_models
from tests.interop.models import KERASES, without_graph


@pytest.fixture(autouse=True)
def unprobed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a process for each file: HDF5 is sound in all of them."""
    monkeypatch.setattr(keras_weights, "check_survives", lambda _: None)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that is there once code of a model's author has run."""
    return tmp_path / "mark"


# What a text of JSON says, and what Keras's decoder makes of it


@pytest.mark.parametrize("framework", KERASES)
@pytest.mark.parametrize("name", SPECIAL)
def test_what_is_checked_in_hdf5_is_what_is_built(name: str, framework: str, mark: Path, tmp_path: Path) -> None:
    for code in (marshalled(mark), marshalled(mark)[0]):  # tf_keras takes it as a list and as a text
        layer = lambda_layer(code, SPECIAL[name])
        path = h5_of(tmp_path / "m.h5", framework, old_config(layer))
        with pytest.raises(CkptflowError) as caught:
            keras_files.read_model(path)
        assert not mark.exists()
        assert framework == "keras" or "--unsafe" in str(caught.value)


@pytest.mark.parametrize("framework", KERASES)
def test_the_training_config_is_decoded_by_nobody_else(framework: str, mark: Path, tmp_path: Path) -> None:
    path = h5_of(tmp_path / "m.h5", framework, old_config({"class_name": "Dense", "config": {"units": 2, "name": "d"}}))
    with h5py.File(path, "r+") as file:
        training = {"loss": SPECIAL["a tensor"], "optimizer_config": {"class_name": "SGD", "config": {}}}
        file.attrs["training_config"] = json.dumps(training)
        group = file["model_weights"]
        for old in list(group):
            del group[old]
        group.attrs["layer_names"] = ["d"]
        weights = group.create_group("d")
        weights.attrs["weight_names"] = ["kernel", "bias"]
        weights["kernel"], weights["bias"] = np.ones((3, 2), "f4"), np.zeros(2, "f4")
    model = keras_files.read_model(path)
    assert type(model.optimizer).__name__ == "SGD"
    assert not mark.exists()


def test_a_sound_file_of_old_comes_whole(tmp_path: Path) -> None:
    inputs = tf_keras.Input((4, 3))
    shared = tf_keras.layers.Dense(3, name="shared")
    outputs = tf.nn.relu(shared(shared(inputs))[..., :2]) * 2.0
    outputs = tf_keras.layers.GRU(2)(tf_keras.layers.LayerNormalization()(outputs))
    model = tf_keras.Model(inputs, outputs)
    model.compile(tf_keras.optimizers.legacy.Adam(0.25), tf_keras.losses.Huber(), metrics=["mae"])
    data = np.random.default_rng(0).normal(size=(5, 4, 3)).astype("f4")
    without_graph(model).fit(data, np.zeros((5, 2)), verbose=0)
    model.save(tmp_path / "m.h5")
    made = keras_files.read_model(str(tmp_path / "m.h5"))
    assert len(made.trainable_variables) == len(model.trainable_variables)
    np.testing.assert_allclose(made(data), model(data), atol=1e-6)
    assert made.optimizer.get_config() == model.optimizer.get_config()


# Classes that load or run what a file is, or carries


def test_layers_that_load_a_saved_model(mark: Path, tmp_path: Path) -> None:
    graph = str(hostile_graph(tmp_path / "graph", mark))
    places = ("tf_keras.src.export.export_lib", "keras.src.export.export_lib", None)
    for number, place in enumerate(places):
        layer = keras_configs.layer(place, "ReloadedLayer", filepath=graph, call_endpoint="serve", name="evil")
        inside = keras_configs.sequential("tf_keras", layer)
        for name, config in {"inside": inside, "root": layer}.items():
            entry = {"kind": "model", "framework": "tf_keras", "class": name, "variables": 0, "config": config}
            with pytest.raises(UsageError, match="ReloadedLayer") as caught:
                build_model(entry, "model")
            assert "--import" in str(caught.value)
            assert "--unsafe" in str(caught.value)
            path = keras_of(tmp_path / f"{name}{number}.keras", "tf_keras", config)
            with pytest.raises(UsageError, match="ReloadedLayer"):
                keras_files.read_model(path)
    assert not mark.exists()


def refusal_of(config: dict[str, Any], framework: Any) -> str:
    """Why nothing is made of a config, or an empty text."""
    try:
        keras_trust.check_config(config, framework, "x")
    except UsageError as error:
        return str(error)
    return ""


def test_only_what_is_public_is_made() -> None:
    """Whatever else the two Kerases define, now or in a release to come, is not on a list and so is refused."""
    import sys

    refused = 0
    for framework, kit in FRAMEWORKS.items():
        own = [name for name in list(sys.modules) if name.startswith(f"{framework}.src.")]
        public = {id(each) for place in ("layers", "losses", "metrics") for each in vars(getattr(kit, place)).values()}
        for module in own:
            for name, found in list(vars(sys.modules[module]).items()):
                if not isinstance(found, type) or found.__module__ != module or id(found) in public:
                    continue
                said = refusal_of(keras_configs.layer(module, name), framework)
                if said:
                    assert "--import" in said
                    assert "--unsafe" in said
                    refused += 1
                else:
                    words = ("Reloaded", "Export", "Callback", "Iterator", "Dataset", "Loader")
                    assert not any(word in name for word in words)
    assert refused > 300


@pytest.mark.parametrize("framework", KERASES)
def test_a_registered_name_covers_nothing_else(framework: str) -> None:
    """Old formats make what the class is called, new ones what is registered, and functions have three names."""
    kit = FRAMEWORKS[framework]

    @kit.saving.register_keras_serializable("hostile")
    class Known(kit.layers.Layer):  # type: ignore[misc, name-defined]
        pass

    try:
        known = {"module": "mine", "registered_name": "hostile>Known", "config": {}}
        assert not refusal_of({**known, "class_name": "Known"}, framework)
        assert not refusal_of({"class_name": "hostile>Known", "config": {}}, framework)
        for name in ("Other", "VocabularyFileCategoricalColumn", "ReloadedLayer", "deserialize_keras_object", "get"):
            assert refusal_of({**known, "class_name": name}, framework), name
        loader = "DenseFeatures" if framework == "tf_keras" else "TFSMLayer"
        assert refusal_of({**known, "class_name": loader}, framework)
        evil = {"function": "code", "function_type": "lambda"} if framework == "tf_keras" else {"function": ["code"]}
        assert refusal_of({**known, "class_name": "Lambda", "config": evil}, framework)
        function = {"class_name": "function", "module": "keras.activations", "config": "relu"}
        assert not refusal_of({**function, "registered_name": "relu"}, framework)
        assert refusal_of({**function, "registered_name": "get"}, framework)
        assert refusal_of({**function, "config": "get", "registered_name": "relu"}, framework)
    finally:
        kit.saving.get_custom_objects().pop("hostile>Known")


@pytest.mark.parametrize("framework", KERASES)
def test_the_root_of_a_config_is_a_model(framework: str, tmp_path: Path) -> None:
    dense = keras_configs.layer("keras.layers", "Dense", units=2, name="dense")
    for root in (dense, keras_configs.layer("keras.losses", "MeanSquaredError"), {"class_name": "Dense"}, {}):
        entry = {"kind": "model", "framework": framework, "class": "x", "variables": 0, "config": root}
        with pytest.raises(CorruptCheckpointError, match="not a model"):
            build_model(entry, "model")
        for path in (keras_of(tmp_path / "m.keras", framework, root), h5_of(tmp_path / "m.h5", framework, root)):
            with pytest.raises((CorruptCheckpointError, UsageError)):
                keras_files.read_model(path)
    for special in ({"class_name": "__ellipsis__"}, {"class_name": "__bytes__", "value": "x"}, SPECIAL["a tensor"]):
        path = h5_of(tmp_path / "m.h5", framework, special)
        with pytest.raises((CorruptCheckpointError, UsageError)):
            keras_files.read_model(path)


# A file that is another one when it is loaded


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize("framework", KERASES)
def test_a_file_that_is_swapped_after_the_check(
    framework: str, suffix: str, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = FRAMEWORKS[framework]
    path, other = tmp_path / f"m.{suffix}", tmp_path / f"other.{suffix}"
    kit.Sequential([kit.layers.Input((3,)), kit.layers.Dense(2)]).save(path)
    code = marshalled(mark)
    if suffix == "h5":
        h5_of(other, framework, old_config(lambda_layer(code)))
    else:
        evil = lambda_layer(code) | {"module": "keras.layers", "registered_name": None}
        keras_of(other, framework, keras_configs.sequential(framework, evil))
    check = keras_trust._Check.check

    def swap(self: Any, described: Any) -> None:
        check(self, described)
        if other.exists():
            other.replace(path)

    monkeypatch.setattr(keras_trust._Check, "check", swap)
    model = keras_files.read_model(str(path))
    assert not other.exists()
    assert [type(layer).__name__ for layer in model.layers] == ["Dense"]
    assert not mark.exists()


@pytest.mark.parametrize("suffix", ["keras", "h5", "weights.h5"])
def test_weights_that_are_swapped_after_the_check(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What HDF5 would die of, in the process that asks, came after another one had read the file."""
    from ckptflow.interop.keras import weights as keras_weights

    def make() -> Any:
        model = tf_keras.Sequential([tf_keras.layers.Input((3,)), tf_keras.layers.Dense(2)])
        model.compile("adam", "mse")
        return model

    path, model = tmp_path / f"m.{suffix}", make()
    (model.save_weights if suffix == "weights.h5" else model.save)(path)
    monkeypatch.setattr(keras_weights, "check_survives", lambda _: path.write_bytes(b"\x89HDF\r\n\x1a\n" * 9))
    again = make()
    import_model(path, tmp_path / "run", model=again)
    np.testing.assert_array_equal(again.layers[0].kernel, model.layers[0].kernel)
    assert path.read_bytes() == b"\x89HDF\r\n\x1a\n" * 9
    assert str(path) in caplog.text  # of the learning rate, which no file of tf_keras's has
    assert "ckptflow-copy" not in caplog.text


def test_errors_name_the_file_and_not_its_copy(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + b"x" * 100)
    with pytest.raises(CorruptCheckpointError) as caught:
        keras_files.read_model(str(path))
    assert str(path) in str(caught.value)
    assert "ckptflow-copy" not in str(caught.value)


# Graphs


def packed(model: Any, mark: Path, tmp_path: Path) -> Path:
    """A module as Hub gives them out, which tf_keras would load: its initialiser leaves the mark."""
    model.evil = Initialised(mark)
    model.save(tmp_path / "module", save_format="tf")
    mark.unlink(missing_ok=True)
    target = tmp_path / "module.tar.gz"
    with tarfile.open(target, "w:gz") as tar:
        tar.add(tmp_path / "module", ".")
    return target


def test_a_graph_runs_for_those_who_say_so(mark: Path, tmp_path: Path) -> None:
    model = tf_keras.Sequential([tf_keras.layers.Input((3,)), tf_keras.layers.Dense(2)])
    model.compile("adam", "mse")
    without_graph(model).fit(np.ones((2, 3)), np.ones((2, 2)), verbose=0)
    source = packed(model, mark, tmp_path)
    import_model(source, tmp_path / "run")
    assert not mark.exists()
    again = tf_keras.Sequential([tf_keras.layers.Input((3,)), tf_keras.layers.Dense(2)])
    again.compile("adam", "mse")
    with ckptflow.CheckpointManager(tmp_path / "run", {"model": again}) as manager:
        manager.restore_latest()
    np.testing.assert_array_equal(again.layers[0].kernel, model.layers[0].kernel)
    assert int(again.optimizer.iterations.numpy()) == 1
    import_model(source, tmp_path / "into", model=again)
    assert not mark.exists()
    read_keras_saved_model(str(tmp_path / "module"), unsafe=True)
    assert mark.exists()


def test_a_model_that_only_its_graph_has_says_what_can_be_done(mark: Path, tmp_path: Path) -> None:
    class Own(tf_keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.dense = tf_keras.layers.Dense(2)

        def call(self, inputs: Any) -> Any:
            return self.dense(inputs)

    model = Own()
    model(np.ones((1, 3), "f4"))
    source = packed(model, mark, tmp_path)
    with pytest.raises(UsageError, match="Own") as caught:
        import_model(source, tmp_path / "run")
    for way in ("model=", "--import", "--unsafe"):
        assert way in str(caught.value)
    again = Own()
    again(np.ones((1, 3), "f4"))
    import_model(source, tmp_path / "into", model=again)
    np.testing.assert_array_equal(again.dense.kernel, model.dense.kernel)
    assert not mark.exists()


def test_metadata_are_checked_like_any_config(mark: Path, tmp_path: Path) -> None:
    model = tf_keras.Sequential([tf_keras.layers.Input((3,)), tf_keras.layers.Dense(2)])
    model.save(tmp_path / "m", save_format="tf")
    from tf_keras.protobuf import saved_metadata_pb2

    graph = str(hostile_graph(tmp_path / "graph", mark))
    evil = {
        "lambda": lambda_layer(marshalled(mark)),
        "tensor": lambda_layer(marshalled(mark), SPECIAL["a tensor"]),
        "tuple": lambda_layer(marshalled(mark), SPECIAL["a tensor in a tuple"]),
        "graph": {"class_name": "ReloadedLayer", "config": {"filepath": graph}},
        "constant": {"class_name": "Dense", "config": {"units": 2, "name": "d"}, "inbound_nodes": [
            {"class_name": "__tuple__", "items": [{"_TYPE": "COMPOSITE"}, json.dumps(SPECIAL["a tensor"])]}]},
    }  # fmt: skip
    sound = (tmp_path / "m" / "keras_metadata.pb").read_bytes()
    for layer in evil.values():
        metadata = saved_metadata_pb2.SavedMetadata()
        metadata.ParseFromString(sound)
        root = json.loads(metadata.nodes[0].metadata)
        metadata.nodes[0].metadata = json.dumps({**root, **old_config(layer)})
        (tmp_path / "m" / "keras_metadata.pb").write_bytes(metadata.SerializeToString())
        with pytest.raises(UsageError, match="nothing was run"):
            read_keras_saved_model(str(tmp_path / "m"))
    assert not mark.exists()


# The way from a hostile root


def test_an_export_of_a_hostile_root(mark: Path, tmp_path: Path) -> None:
    graph = str(hostile_graph(tmp_path / "graph", mark))
    model = tf_keras.Sequential([tf_keras.layers.Input((3,)), tf_keras.layers.Dense(2)])
    with ckptflow.CheckpointManager(tmp_path / "run", {"model": model}) as manager:
        manager.save(1).result()
    layer = keras_configs.layer("tf_keras.src.export.export_lib", "ReloadedLayer", filepath=graph)
    forge_models(tmp_path / "run", lambda models: models["model"].update(config=layer))
    for target in ("m.keras", "m.h5", "m.tflite"):
        with pytest.raises(UsageError, match="ReloadedLayer"):
            export_checkpoint(tmp_path / "run", tmp_path / target)
    assert not mark.exists()


def test_of_tensorflow_itself_only_initializers_are_made() -> None:
    """tf_keras's own EfficientNetV2 names one."""
    dense: dict[str, Any] = {"units": 2, "name": "dense", "activation": None}
    for module in ("tensorflow.python.ops.init_ops_v2", "tensorflow.python.ops.init_ops"):
        constant = keras_configs.layer(module, "Constant", value=0.5)
        config = keras_configs.sequential("tf_keras", keras_configs.layer("keras.layers", "Dense", **dense))
        config["config"]["layers"][1]["config"]["kernel_initializer"] = {**constant, "registered_name": "Constant"}
        entry = {"kind": "model", "framework": "tf_keras", "class": "x", "variables": 2, "config": config}
        assert float(build_model(entry, "model").layers[0].kernel[0, 0]) == 0.5
    for module, name in (
        ("tensorflow.python.ops.init_ops_v2", "Initializer"),
        ("tensorflow.python.ops.init_ops_v2", "ops"),
        ("tensorflow.python.ops.lookup_ops", "TextFileInitializer"),
        ("tensorflow.python.ops.script_ops", "py_func"),
        ("tensorflow", "Module"),
    ):
        assert refusal_of(keras_configs.layer(module, name), "tf_keras"), name
