"""SavedModels for serving and for reuse: read by stock TensorFlow, TensorFlow Hub and both Kerases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ckptflow.errors import StorageError
from ckptflow.interop.provenance import Provenance, decode
from ckptflow.interop.tensorflow.reusable import write_saved_model
from tests.interop import models
from tests.interop.stock import run_stock

pytestmark = pytest.mark.usefixtures("unprobed")

# `test_architectures` has stock read others.
EXPORTS = [
    *(("keras", name) for name in ("dense", "text", "many_inputs")),
    *(("tf_keras", name) for name in ("dense", "text")),
    ("tensorflow", "module"),
]
PROVENANCE = Provenance(
    run_url="s3://bucket/run",
    run_id="run",
    folder="000000000003-i0001",
    step=3,
    incarnation=1,
    manifest_sha256="0" * 64,
    format="saved-model",
    ckptflow="1",
    exported_at="2026-01-01T00:00:00+00:00",
)

LOADER = """
import numpy as np, tensorflow as tf, tensorflow_hub as hub

answer = {}
for key, case in argument.items():
    data = np.load(case["data"])
    inputs = {name[3:]: data[name] for name in data if name.startswith("in_")}
    if list(inputs) == ["0"]:
        structure = tf.constant(inputs["0"])
    elif "0" in inputs:
        structure = [tf.constant(inputs[str(position)]) for position in range(len(inputs))]
    else:
        structure = {name: tf.constant(value) for name, value in inputs.items()}
    loaded = hub.load(case["folder"])
    signature = loaded.signatures["serving_default"]
    names = list(signature.structured_input_signature[1])
    if isinstance(structure, dict):
        assert sorted(names) == sorted(structure), names
        named = structure
    else:
        flat = tf.nest.flatten(structure)
        named = dict(zip(case["names"] or names, flat, strict=True))
    difference = lambda value: float(np.abs(np.asarray(value) - data["out"]).max())
    one = {name: value[:1] for name, value in named.items()}
    answer[key] = {
        "call": difference(loaded(structure)),
        "signature": difference(next(iter(signature(**named).values()))),
        "one": next(iter(signature(**one).values())).shape[0],
        "inputs": names,
        "outputs": list(signature.structured_outputs),
        "variables": len(loaded.variables),
        "trainable": len(loaded.trainable_variables),
        "losses": [float(loss()) for loss in getattr(loaded, "regularization_losses", ())],
    }
"""


def save_case(path: Path, inputs: Any, outputs: Any) -> str:
    """Inputs and outputs as arrays in one file, strings without pickle."""
    parts = inputs if isinstance(inputs, dict) else dict(enumerate(inputs if isinstance(inputs, list) else [inputs]))
    arrays: dict[str, Any] = {f"in_{name}": np.asarray(value.tolist()) for name, value in parts.items()}
    arrays = {name: value.astype(np.float32) if value.dtype == np.float64 else value for name, value in arrays.items()}
    for name, value in arrays.items():
        if value.dtype == np.int64:
            arrays[name] = value.astype(np.int32)
    np.savez(path, out=np.asarray(outputs), **arrays)
    return str(path)


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return {f"{framework}-{name}": models.CASES[name].make(framework) for framework, name in EXPORTS}


@pytest.fixture(scope="module")
def exports(made: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("exports")
    for key, model in made.items():
        write_saved_model(str(root / key), model, PROVENANCE)
    return root


@pytest.fixture(scope="module")
def loaded(made: dict[str, Any], exports: Path) -> Any:
    """What stock TensorFlow and Hub say of every export, in one process."""
    cases = {}
    for framework, name in EXPORTS:
        key, case = f"{framework}-{name}", models.CASES[name]
        data = save_case(exports / f"{key}.npz", case.sample_inputs(), case.predict(made[key]))
        names = ["picture", "numbers"] if name == "many_inputs" else None
        cases[key] = {"folder": str(exports / key), "data": data, "names": names}
    return run_stock(LOADER, cases)


@pytest.mark.parametrize("key", [f"{framework}-{name}" for framework, name in EXPORTS])
def test_stock_tensorflow_predicts_the_same(key: str, loaded: Any, made: dict[str, Any]) -> None:
    answer = loaded[key]
    assert answer["call"] <= 1e-6
    assert answer["signature"] <= 1e-6
    assert answer["one"] == 1  # any batch size
    assert answer["trainable"] == len(made[key].trainable_variables)
    assert answer["variables"] >= answer["trainable"] > 0


def test_names_of_inputs_and_outputs(loaded: Any, tmp_path: Path) -> None:
    assert sorted(loaded["keras-text"]["inputs"]) == ["author", "text"]
    assert sorted(loaded["keras-many_inputs"]["inputs"]) == ["numbers", "picture"]
    assert loaded["keras-dense"]["inputs"] == ["inputs"]  # Keras made the layer's name up
    assert loaded["keras-dense"]["outputs"] == ["output_0"]
    inputs = keras.Input((3,), name="features")
    heads = [keras.layers.Dense(1, name="price")(inputs), keras.layers.Dense(2)(inputs)]
    write_saved_model(str(tmp_path / "m"), keras.Model(inputs, heads), None)
    signature = tf.saved_model.load(str(tmp_path / "m")).signatures["serving_default"]
    assert sorted(signature.structured_outputs) == ["output_1", "price"]


REUSER = """
import os
import numpy as np, tensorflow as tf, tensorflow_hub as hub, tf_keras, keras

def fit(folder):
    layer = hub.KerasLayer(folder, trainable=True)
    model = tf_keras.Sequential([tf_keras.Input((8,)), layer])
    model.compile(tf_keras.optimizers.SGD(0.1), "mse")
    x = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    before = {v.name: v.numpy().copy() for v in layer.variables}
    dropped = [model(x, training=True).numpy() for _ in range(2)]
    still = [model(x, training=False).numpy() for _ in range(2)]
    moved = {v.name: bool((v.numpy() != before[v.name]).any()) for v in layer.variables}
    losses = [float(loss) for loss in layer.losses]
    model.fit(x, np.zeros((16, 5), np.float32), epochs=2, verbose=0)
    trained = [bool((v.numpy() != before[v.name]).any()) for v in layer.trainable_variables]
    return {
        "random": bool((dropped[0] != dropped[1]).any()),
        "repeats": bool((still[0] == still[1]).all()),
        "moved": sorted(name for name, value in moved.items() if value),
        "trained": trained,
        "losses": losses,
    }

answer = {key: fit(os.path.join(argument["root"], key)) for key in ("keras-dense", "tf_keras-dense")}
answer["regularized"] = fit(argument["regularized"])["losses"]

folder = os.path.join(argument["root"], "keras-dense")
data = np.load(argument["data"])
layer = keras.layers.TFSMLayer(folder, call_training_endpoint="serve_training")
named = keras.layers.TFSMLayer(folder, call_endpoint="serving_default")
answer["tfsm"] = [
    float(np.abs(np.asarray(layer(data["in_0"])) - data["out"]).max()),
    float(np.abs(np.asarray(named(data["in_0"])["output_0"]) - data["out"]).max()),
]
model = keras.Sequential([keras.Input((8,)), layer])
model.compile("sgd", "mse")
before = [v.numpy() for v in layer.trainable_variables]
model.fit(data["in_0"], np.zeros_like(data["out"]), epochs=2, verbose=0)
answer["tfsm trained"] = [bool((v.numpy() != old).any()) for v, old in zip(layer.trainable_variables, before)]

model = tf_keras.models.load_model(os.path.join(argument["root"], "tf_keras-dense"))
answer["tf_keras"] = {
    "class": type(model.optimizer).__name__,
    "difference": float(np.abs(model.predict(data["tf_keras_in"], verbose=0) - data["tf_keras_out"]).max()),
}
# Its own loader brings the optimizer's config alone; the values are there for TensorFlow's.
model.optimizer.build(model.trainable_variables)
variables = os.path.join(argument["root"], "tf_keras-dense", "variables", "variables")
tf.train.Checkpoint(model).read(variables).assert_existing_objects_matched()
answer["tf_keras"]["iterations"] = int(model.optimizer.iterations.numpy())
answer["tf_keras"]["slots"] = [float(np.abs(v.numpy()).sum()) for v in model.optimizer.variables]
text = hub.KerasLayer(os.path.join(argument["root"], "tf_keras-text"), trainable=True)
answer["text"] = len(text.trainable_weights)
"""


def test_reuse_in_larger_models(made: dict[str, Any], exports: Path, tmp_path: Path) -> None:
    """Fine-tuning: Dropout is random and moving averages move in training alone; weights learn; losses come along."""
    regularized = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(5, kernel_regularizer="l2"), keras.layers.Dropout(0.5, seed=1)]
    )
    write_saved_model(str(tmp_path / "regularized"), regularized, None)
    case, key = models.CASES["dense"], "keras-dense"
    other = made["tf_keras-dense"]
    inputs = case.sample_inputs()
    np.savez(
        tmp_path / "data.npz",
        in_0=inputs,
        out=case.predict(made[key]),
        tf_keras_in=inputs,
        tf_keras_out=case.predict(other),
    )
    about = {"root": str(exports), "regularized": str(tmp_path / "regularized"), "data": str(tmp_path / "data.npz")}
    answer = run_stock(REUSER, about)
    for name in ("keras-dense", "tf_keras-dense"):
        reused = answer[name]
        assert reused["random"]
        assert reused["repeats"]
        assert reused["trained"] == [True] * 6
        assert any("moving_mean" in moved for moved in reused["moved"])
        assert not any("kernel" in moved for moved in reused["moved"])
    np.testing.assert_allclose(answer["regularized"], [float(loss) for loss in regularized.losses], rtol=1e-6)
    assert max(answer["tfsm"]) <= 1e-6
    assert answer["tfsm trained"] == [True] * 6
    restored = answer["tf_keras"]
    assert (restored["class"], restored["iterations"]) == ("Adam", 3)
    slots = [float(np.abs(variable.numpy()).sum()) for variable in other.optimizer.variables]
    np.testing.assert_allclose(restored["slots"], slots, rtol=1e-6)
    assert restored["difference"] <= 1e-6
    assert answer["text"] == len(made["tf_keras-text"].trainable_variables)


COMMANDS = """
import contextlib, io, sys
from tensorflow.python.tools import saved_model_cli

answer = []
for command in argument:
    sys.argv = ["saved_model_cli", *command]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            saved_model_cli.main()
        except SystemExit as done:
            assert not done.code, done.code
    answer.append(printed.getvalue())
"""


def test_the_stock_command(made: dict[str, Any], exports: Path, tmp_path: Path) -> None:
    folder, case = str(exports / "keras-dense"), models.CASES["dense"]
    np.save(tmp_path / "in.npy", case.sample_inputs())
    show = ["show", "--dir", folder, "--all"]
    run = ["run", "--dir", folder, "--tag_set", "serve", "--signature_def", "serving_default"]
    run += ["--inputs", f"inputs={tmp_path}/in.npy", "--outdir", str(tmp_path)]
    shown, _ = run_stock(COMMANDS, [show, run])
    assert "MetaGraphDef with tag-set: 'serve'" in shown
    assert "inputs['inputs'] tensor_info:\n        dtype: DT_FLOAT\n        shape: (-1, 8)" in shown
    np.testing.assert_allclose(np.load(tmp_path / "output_0.npy"), case.predict(made["keras-dense"]), atol=1e-6)


def test_it_says_where_it_comes_from(exports: Path) -> None:
    for framework, name in EXPORTS:
        text = (exports / f"{framework}-{name}" / "assets.extra" / "ckptflow.json").read_text()
        assert decode(text, name) == PROVENANCE


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for framework in models.KERASES:
        model = models.CASES["dense"].build(framework)
        with pytest.raises(StorageError, match="file"):
            write_saved_model(str(tmp_path / "file" / "m"), model, None)
