from __future__ import annotations

import io
import json
import logging
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ckptflow.errors import StateMismatchError, UnsupportedStateError, UsageError
from ckptflow.interop.keras import files as keras_files
from ckptflow.interop.keras import provenance as keras_provenance
from ckptflow.interop.keras import weights as keras_weights
from ckptflow.interop.keras.backup import find_backup
from ckptflow.state.kinds import is_built
from tests.interop import keras_configs
from tests.interop.keras_readers import ORIGIN, ask_stock, optimizer_values, write_all
from tests.interop.models import CASES, KERASES, without_graph
from tests.waiting import HANG_S

pytestmark = pytest.mark.usefixtures("unprobed")

FRAMEWORKS: dict[str, Any] = {"keras": keras, "tf_keras": tf_keras}
# `test_architectures` has stock Keras read the others, as exports of a run, and a run go on from what it wrote.
NAMES = ("dense", pytest.param("text", marks=pytest.mark.chaos), pytest.param("subclassed", marks=pytest.mark.chaos))
NOT_IN_H5 = [("keras", "subclassed"), ("tf_keras", "subclassed"), ("tf_keras", "text")]


def same(first: list[Any], second: list[Any]) -> bool:
    """Whether two lists of arrays are equal bit for bit."""
    return len(first) == len(second) and all(map(np.array_equal, first, second))


@pytest.mark.parametrize(("framework", "name"), NOT_IN_H5)
def test_what_the_legacy_format_cannot_hold(framework: str, name: str, tmp_path: Path) -> None:
    """Subclassed models, and of tf_keras vocabularies."""
    with pytest.raises(UnsupportedStateError):
        keras_files.write_h5(str(tmp_path / "model.h5"), CASES[name].build(framework), ORIGIN)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("framework", KERASES)
def test_stock_keras_reads_what_is_written_and_so_do_we(framework: str, name: str, tmp_path: Path) -> None:
    asks, expected = [], []
    case = CASES[name]
    model = case.make(framework)
    before = (json.dumps(model.get_compile_config()), optimizer_values(model))
    written = write_all(model, name, tmp_path)
    assert ("h5" not in written) == ((framework, name) in NOT_IN_H5)
    for kind, path in written.items():
        asks.append({"framework": framework, "case": name, "path": str(path)})
        expected.append((case.predict(model), before[1], model.optimizer.get_config()))
        with path.open("rb") as file:
            assert keras_provenance.read_provenance(file, str(path)) == ORIGIN
        assert keras_files.is_whole_model(str(path)) == (kind != "weights")
        if kind != "weights":
            made = keras_files.read_model(str(path))
            assert type(made) is type(model)
            assert np.array_equal(case.predict(made), expected[-1][0]), path
            assert same(optimizer_values(made), before[1]), path
            case.train(made)
        made = case.build(framework)
        keras_weights.load_weights(str(path), made)
        assert np.array_equal(case.predict(made), expected[-1][0]), path
        assert same(optimizer_values(made), before[1]), path
    assert (json.dumps(model.get_compile_config()), before[1]) == before, "writing changed the live model"
    for ask, answer, (outputs, values, config) in zip(asks, ask_stock(asks), expected, strict=True):
        what = (framework, ask["path"])
        np.testing.assert_allclose(answer["outputs"], outputs, rtol=0, atol=1e-6, err_msg=str(what))
        config = json.loads(json.dumps(config, default=float))
        assert answer["optimizer"] | {"name": ""} == config | {"name": ""}, what
        if framework == "keras" and ask["path"].endswith(f"{ask['case']}.h5"):
            # Stock Keras 3, of its own files as well: the step and the learning rate, and no slots.
            assert same(answer["values"], values[: len(answer["values"])]), what
            assert str(answer["trains"]).startswith("Unknown variable"), what
            continue
        assert same(answer["values"], values), what
        assert answer["trains"] is True, what
        assert answer["loss"] == "SparseCategoricalCrossentropy", what


def small(framework: str, **compiled: Any) -> Any:
    """A trained model of two layers."""
    kit = FRAMEWORKS[framework]
    model = kit.Sequential([kit.layers.Input((3,)), kit.layers.Dense(4, activation="relu"), kit.layers.Dense(2)])
    if compiled:
        model.compile(**compiled)
        without_graph(model).fit(np.ones((8, 3), "f4"), np.ones((8, 2), "f4"), epochs=2, verbose=0)
    return model


def outputs(model: Any) -> Any:
    """What a model of three inputs says to some."""
    return np.asarray(model(np.asarray([[1.0, -2.0, 3.0]], "f4")))


@pytest.mark.parametrize("framework", KERASES)
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_model_that_keras_saved_itself(framework: str, suffix: str, tmp_path: Path) -> None:
    model = small(framework, optimizer="adam", loss="mse", metrics=["mae"])
    path = str(tmp_path / f"model{suffix}")
    values = optimizer_values(model)
    model.save(path)
    made = keras_files.read_model(path)
    assert type(made).__module__.partition(".")[0] == framework
    assert np.array_equal(outputs(made), outputs(model))
    assert same(optimizer_values(made), values)
    without_graph(made).fit(np.ones((8, 3), "f4"), np.ones((8, 2), "f4"), verbose=0)
    shutil.copy(path, tmp_path / "renamed")
    assert np.array_equal(outputs(keras_files.read_model(str(tmp_path / "renamed"))), outputs(model))


@pytest.mark.parametrize("framework", KERASES)
def test_a_loss_by_its_short_name_is_read_by_stock_keras(framework: str, tmp_path: Path) -> None:
    kit = FRAMEWORKS[framework]
    model = small(framework, optimizer="adam", loss="mse", metrics=["mae", "acc", kit.metrics.AUC()])
    keras_files.write_h5(str(tmp_path / "model.h5"), model, ORIGIN)
    stock = kit.models.load_model(str(tmp_path / "model.h5"))
    assert str(getattr(stock.loss, "__name__", stock.loss)) in ("mean_squared_error", "mse")


@pytest.mark.parametrize("framework", KERASES)
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_loss_that_is_a_lambda_is_left_out(
    framework: str, suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kit = FRAMEWORKS[framework]
    model = small(framework, optimizer=kit.optimizers.SGD(0.5, momentum=0.9), loss=lambda y, p: (y - p) ** 2)
    path = str(tmp_path / f"model{suffix}")
    with caplog.at_level(logging.WARNING, "ckptflow"):
        (keras_files.write_keras if suffix == ".keras" else keras_files.write_h5)(path, model, ORIGIN)
        made = keras_files.read_model(path)
    assert "without its loss" in caplog.text
    assert same(optimizer_values(made), optimizer_values(model))
    assert made.optimizer.get_config() == model.optimizer.get_config()
    assert np.array_equal(outputs(made), outputs(model))


@pytest.mark.parametrize("kind", ["scaled", "scaled tf_keras", "legacy"])
def test_optimizers_inside_of_others_and_legacy_ones(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer: Any = {
        "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.5)),
        "scaled tf_keras": lambda: tf_keras.mixed_precision.LossScaleOptimizer(tf_keras.optimizers.Adam(0.5)),
        "legacy": lambda: tf_keras.optimizers.legacy.Adam(0.5),
    }[kind]()
    model = small("keras" if kind == "scaled" else "tf_keras", loss="mse")
    model.compile(optimizer, "mse")
    without_graph(model).fit(np.ones((8, 3), "f4"), np.ones((8, 2), "f4"), verbose=0)
    variables = optimizer.variables() if kind == "legacy" else optimizer.variables
    values = [np.array(each.numpy()) for each in variables]
    for name, path in write_all(model, "model", tmp_path).items():
        if name == "weights":
            continue
        made = keras_files.read_model(str(path))
        assert type(made.optimizer) is type(optimizer)
        if (name, kind) == ("keras", "legacy"):
            assert "legacy optimizer into a .keras file" in caplog.text
            continue
        found = made.optimizer.variables() if kind == "legacy" else made.optimizer.variables
        assert same([np.array(each.numpy()) for each in found], values), name


@pytest.mark.parametrize("framework", KERASES)
def test_weights_without_a_model(framework: str, tmp_path: Path) -> None:
    model = small(framework, optimizer="adam", loss="mse")
    keras_files.write_weights(str(tmp_path / "w.weights.h5"), model, ORIGIN)
    found = keras_weights.read_weights(str(tmp_path / "w.weights.h5"))
    kernel = model.layers[0].kernel.numpy()
    assert np.array_equal(found.read("layers/dense/0"), kernel)
    assert (found.infos["layers/dense/0"].dtype, found.infos["layers/dense/0"].shape) == ("float32", (3, 4))
    assert sum(name.startswith("optimizer/") for name in found.infos) == len(optimizer_values(model))
    with pytest.raises(UsageError, match="model="):
        keras_files.read_model(str(tmp_path / "w.weights.h5"))
    if framework == "tf_keras":
        model.save_weights(tmp_path / "legacy.h5")
        legacy = keras_weights.read_weights(str(tmp_path / "legacy.h5"))
        name = model.layers[0].name
        assert np.array_equal(legacy.read(f"{name}/kernel"), kernel)
        assert len(legacy.infos) == 4
        assert not keras_files.is_whole_model(str(tmp_path / "legacy.h5"))
        made = small(framework)
        keras_weights.load_weights(str(tmp_path / "legacy.h5"), made)
        assert np.array_equal(outputs(made), outputs(model))


def test_dtypes_that_hdf5_does_not_know(tmp_path: Path) -> None:
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2, dtype="bfloat16")])
    keras_files.write_weights(str(tmp_path / "w.weights.h5"), model, ORIGIN)
    found = keras_weights.read_weights(str(tmp_path / "w.weights.h5"))
    assert found.infos["layers/dense/0"].dtype == "bfloat16"
    assert np.array_equal(found.read("layers/dense/0"), model.layers[0].kernel.numpy())


@pytest.mark.parametrize("framework", KERASES)
def test_weights_that_do_not_fit_are_all_listed(
    framework: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kit = FRAMEWORKS[framework]
    model = small(framework, optimizer="adam", loss="mse")
    paths = write_all(model, "model", tmp_path)
    layers = [kit.layers.Input((3,)), kit.layers.Dense(4), kit.layers.Dense(5), kit.layers.BatchNormalization()]
    other = kit.Sequential(layers)
    before = outputs(other)
    for kind in ("keras", "weights"):
        with pytest.raises(
            StateMismatchError, match=r"(?s)batch_normalization/vars/0: in the model.*dense_1/vars/0: sh"
        ):
            keras_weights.load_weights(str(paths[kind]), other)
    with pytest.raises(StateMismatchError, match="does not fit"):
        keras_weights.load_weights(str(paths["h5"]), other)
    fewer = kit.Sequential([kit.layers.Input((3,)), kit.layers.Dense(4)])
    with pytest.raises(StateMismatchError, match="layers/dense_1/vars/0: in the file, not in the model"):
        keras_weights.load_weights(str(paths["weights"]), fewer)
    assert np.array_equal(outputs(other), before)
    with caplog.at_level(logging.WARNING, "ckptflow"):
        plain = small(framework)
        keras_weights.load_weights(str(paths["weights"]), plain)
        assert "not compiled" in caplog.text
        keras_files.write_weights(str(tmp_path / "plain.weights.h5"), plain, ORIGIN)
        keras_weights.load_weights(str(tmp_path / "plain.weights.h5"), model)  # compiled, with metrics
        assert "has no optimizer state" in caplog.text
    assert np.array_equal(outputs(plain), outputs(model))
    unbuilt = kit.Sequential([kit.layers.Dense(4), kit.layers.Dense(2)])
    for write in (keras_files.write_keras, keras_files.write_h5, keras_files.write_weights):
        with pytest.raises(UsageError, match="call it once"):
            write(str(tmp_path / "unbuilt"), unbuilt, ORIGIN)
    with pytest.raises(UnsupportedStateError, match="not a Keras model"):
        keras_files.write_keras(str(tmp_path / "module"), tf.Module(), ORIGIN)
    with pytest.raises(UsageError, match="call it once"):
        keras_weights.load_weights(str(paths["weights"]), unbuilt)


@pytest.mark.parametrize("framework", KERASES)
def test_a_class_that_is_not_registered(framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = f"unregistered_file_{framework}"
    (tmp_path / f"{module}.py").write_text(keras_configs.UNREGISTERED.replace("KERAS", framework))
    monkeypatch.syspath_prepend(tmp_path)
    own = __import__(module)
    kit = FRAMEWORKS[framework]
    model = kit.Sequential([kit.layers.Input((3,)), own.Twice(), kit.layers.Dense(2, activation=own.swell)])
    for suffix, write in ((".keras", keras_files.write_keras), (".h5", keras_files.write_h5)):
        path = str(tmp_path / f"model{suffix}")
        write(path, model, ORIGIN)
        with pytest.raises(UsageError, match="--import"):
            keras_files.read_model(path)
        made = keras_files.read_model(path, imports=(module,))
        assert np.array_equal(outputs(made), outputs(model))


def test_masks_in_hdf5_that_stock_keras_cannot_read(tmp_path: Path) -> None:
    inputs = keras.Input((4,), dtype="int32")
    hidden = keras.layers.LSTM(3)(keras.layers.Embedding(9, 3, mask_zero=True)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(hidden))
    with pytest.raises(UnsupportedStateError, match=r"NotEqual.*keras file"):
        keras_files.write_h5(str(tmp_path / "model.h5"), model, ORIGIN)
    assert list(tmp_path.iterdir()) == []
    model.save(tmp_path / "stock.h5")
    data = np.asarray([[1, 2, 0, 0]])
    assert np.array_equal(keras_files.read_model(str(tmp_path / "stock.h5"))(data), model(data))


@pytest.mark.parametrize("framework", KERASES)
def test_weights_of_idf_and_integers_in_vocabularies(framework: str, tmp_path: Path) -> None:
    kit = FRAMEWORKS[framework]
    words = kit.layers.TextVectorization(output_mode="tf_idf")
    words.adapt(np.asarray(["a b b", "a c"]))
    model = kit.Sequential([kit.Input((1,), dtype="string"), words, kit.layers.Dense(2)])
    numbers = kit.layers.IntegerLookup(output_mode="one_hot")
    numbers.adapt(np.asarray([[7], [9]]))
    other = kit.Sequential([kit.Input((1,), dtype="int64"), numbers, kit.layers.Dense(2)])
    for name, each, data in (("idf", model, np.asarray([["a b"]])), ("integers", other, np.asarray([[9]]))):
        for kind, path in write_all(each, name, tmp_path).items():
            if kind == "weights":
                continue
            made = keras_files.read_model(str(path))
            assert np.allclose(made(kit.ops.convert_to_tensor(data) if framework == "keras" else data), each(data)), (
                path
            )


def test_which_keras_wrote_it_is_told_by_the_file(tmp_path: Path) -> None:
    for framework in KERASES:
        path = tmp_path / f"{framework}.keras"
        small(framework).save(path)
        bare = tmp_path / f"{framework}-bare.keras"
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(bare, "w") as new:
            for each in old.infolist():
                data = b"{}" if each.filename == "metadata.json" else old.read(each)
                new.writestr(each.filename, data)
        assert type(keras_files.read_model(str(bare))).__module__.startswith(f"{framework}.")
    with pytest.raises(UsageError, match="framework"):
        keras_files.read_model(str(bare), framework="torch")


def test_provenance_is_read_without_tensorflow_and_absent_where_there_is_none(tmp_path: Path) -> None:
    model = small("keras")
    keras_files.write_keras(str(tmp_path / "m.keras"), model, ORIGIN)
    keras_files.write_h5(str(tmp_path / "m.h5"), model, ORIGIN)
    model.save(tmp_path / "stock.keras")
    model.save(tmp_path / "stock.h5")
    for name, expected in (("m.keras", ORIGIN), ("m.h5", ORIGIN), ("stock.keras", None), ("stock.h5", None)):
        assert keras_provenance.read_provenance(io.BytesIO((tmp_path / name).read_bytes()), name) == expected
    program = """
import sys
from ckptflow.interop.keras import provenance as keras_provenance
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        assert keras_provenance.read_provenance(file, path).step == 1500
sys.exit(sorted({"tensorflow", "keras", "tf_keras"} & set(sys.modules)) or 0)
"""
    import subprocess

    command = [sys.executable, "-c", program, str(tmp_path / "m.keras"), str(tmp_path / "m.h5")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        assert sorted(archive.namelist()) == ["config.json", "metadata.json", "model.weights.h5"]


def test_a_long_provenance_fits_into_an_attribute(tmp_path: Path) -> None:
    import msgspec

    long = msgspec.structs.replace(ORIGIN, run_url="é" * 4096, run_id="x" * 4096, format="ü" * 4096, folder="ß" * 4096)
    keras_files.write_weights(str(tmp_path / "w.weights.h5"), small("keras"), long)
    with open(tmp_path / "w.weights.h5", "rb") as file:
        assert keras_provenance.read_provenance(file, "w") == long


@pytest.mark.parametrize("framework", KERASES)
def test_what_callbacks_leave(framework: str, tmp_path: Path) -> None:
    kit = FRAMEWORKS[framework]
    make = kit.callbacks.ModelCheckpoint
    backup = kit.callbacks.BackupAndRestore(str(tmp_path / "backup"), delete_checkpoint=False)
    callbacks = [
        backup,
        make(str(tmp_path / "one" / "best.keras"), monitor="loss", save_best_only=True),
        make(str(tmp_path / "many" / "m-{epoch:02d}.keras")),
        make(str(tmp_path / "weights" / "w.weights.h5"), save_weights_only=True),
        make(str(tmp_path / "batches" / "m.h5"), save_freq=3),
    ]
    if framework == "tf_keras":
        callbacks.append(make(str(tmp_path / "tensors" / "ckpt-{epoch}"), save_weights_only=True))
    model = small(framework)
    model.compile("adam", "mse")
    without_graph(model).fit(
        np.ones((8, 3), "f4"), np.ones((8, 2), "f4"), batch_size=2, epochs=2, verbose=0, callbacks=callbacks
    )

    def found(name: str) -> Any:
        result = find_backup(str(tmp_path / name))
        return result and (result[0], str(Path(result[1]).relative_to(tmp_path)), result[2])

    assert found("one") == ("keras", "one/best.keras", {})
    assert found("weights") == ("weights", "weights/w.weights.h5", {})
    assert found("batches") == ("h5", "batches/m.h5", {})
    with pytest.raises(UsageError, match=r"m-01\.keras, m-02\.keras"):
        found("many")
    assert found("nothing") is None
    (tmp_path / "empty").mkdir()
    assert found("empty") is None
    if framework == "tf_keras":
        assert found("tensors") == ("tf-checkpoint", "tensors/ckpt-2", {})
        assert found("backup") == ("tf-checkpoint", "backup/chief/ckpt-2", {"written_by": "BackupAndRestore"})
        assert found("backup/chief") == ("tf-checkpoint", "backup/chief/ckpt-2", {})
        return
    notes = {"written_by": "BackupAndRestore", "epoch": 2, "batch": 0}
    assert found("backup") == ("weights", "backup/latest.weights.h5", notes)
    made = small(framework)
    made.compile("adam", "mse")
    keras_weights.load_weights(str(tmp_path / "backup" / "latest.weights.h5"), made)
    assert np.array_equal(outputs(made), outputs(model))
    assert is_built(made.optimizer)
    assert same(optimizer_values(made), optimizer_values(model))


def test_a_damaged_backup_gives_way_to_the_one_before(tmp_path: Path) -> None:
    callback = keras.callbacks.BackupAndRestore(str(tmp_path), delete_checkpoint=False, double_checkpoint=True)
    model = small("keras")
    model.compile("adam", "mse")
    without_graph(model).fit(np.ones((8, 3), "f4"), np.ones((8, 2), "f4"), epochs=2, verbose=0, callbacks=[callback])
    latest = tmp_path / "latest.weights.h5"
    latest.write_bytes(latest.read_bytes()[:1000])
    kind, path, notes = find_backup(str(tmp_path)) or ("", "", {})
    assert (kind, Path(path).name, notes["epoch"]) == ("weights", "latest.weights.h5.bkp", 1)
    made = small("keras")
    made.compile("adam", "mse")
    keras_weights.load_weights(path, made)
    with h5py.File(path) as file:
        assert np.array_equal(made.layers[0].kernel, file["layers/dense/vars/0"][()])
