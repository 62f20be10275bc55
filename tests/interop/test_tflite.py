"""LiteRT files: run by LiteRT's own interpreter, in a process without TensorFlow or ckptflow."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ckptflow.errors import CorruptCheckpointError, UnsupportedStateError, UsageError
from ckptflow.interop.provenance import Provenance
from ckptflow.interop.tensorflow import tflite
from ckptflow.interop.tensorflow.tflite import write_tflite
from ckptflow.interop.tensorflow.tflite_metadata import read_provenance
from tests.interop import models
from tests.interop.stock import run_stock
from tests.waiting import HANG_S

pytestmark = pytest.mark.usefixtures("unprobed")

# `test_architectures` has LiteRT run a dense model of Keras 3 and one of tf_keras with several inputs.
CASES = [("tf_keras", "dense"), ("tensorflow", "module")]
MORE = [("keras", "dense"), ("keras", "transformer"), ("keras", "subclassed"), ("tf_keras", "many_inputs")]
PROVENANCE = Provenance(
    run_url="s3://bucket/rün",
    run_id="run",
    folder="000000000003-i0001",
    step=3,
    incarnation=1,
    manifest_sha256="0" * 64,
    format="tflite",
    ckptflow="1",
    exported_at="2026-01-01T00:00:00+00:00",
)

INTERPRETER = """
import numpy as np
from ai_edge_litert.interpreter import Interpreter

sys.modules["tensorflow"] = None
answer = {}
for key, case in argument.items():
    interpreter = Interpreter(model_path=case["file"])
    signatures = interpreter.get_signature_list()
    runner = interpreter.get_signature_runner(case["signature"])
    data = np.load(case["data"])
    inputs = {name[3:]: data[name] for name in data if name.startswith("in_")}
    outputs = runner(**inputs)
    one = runner(**{name: value[:1] for name, value in inputs.items()}) if case["any_batch"] else None
    answer[key] = {
        "difference": max(
            float(np.abs(outputs[name] - data[f"out_{name}"]).max() / max(1, np.abs(data[f"out_{name}"]).max()))
            for name in outputs
        ),
        "outputs": sorted(outputs),
        "one": None if one is None else next(iter(one.values())).shape[0],
        "signatures": {name: sorted(each["inputs"]) for name, each in signatures.items()},
    }
"""


def case_of(folder: Path, key: str, inputs: dict[str, Any], outputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What the interpreter's program needs to know of one file."""
    arrays = {f"in_{name}": value for name, value in inputs.items()}
    arrays |= {f"out_{name}": np.asarray(value) for name, value in outputs.items()}
    np.savez(folder / f"{key}.npz", **arrays)
    about = {"file": str(folder / f"{key}.tflite"), "data": str(folder / f"{key}.npz")}
    return {**about, "signature": "serving_default", "any_batch": True, **more}


@pytest.mark.parametrize("pairs", [CASES, pytest.param(MORE, marks=pytest.mark.chaos)], ids=["some", "more"])
def test_litert_predicts_the_same(pairs: list[tuple[str, str]], tmp_path: Path) -> None:
    cases = {}
    for framework, name in pairs:
        case, key = models.CASES[name], f"{framework}-{name}"
        model = case.make(framework)
        assert write_tflite(str(tmp_path / f"{key}.tflite"), model, PROVENANCE) == ()
        inputs = case.sample_inputs()
        names = {"many_inputs": ["picture", "numbers"], "transformer": ["tokens"]}.get(name, ["inputs"])
        if framework == "tf_keras" and name != "many_inputs":
            names = list(model.input_names)
        named = dict(zip(names, inputs if isinstance(inputs, list) else [inputs], strict=True))
        output = model.output_names[0] if framework == "tf_keras" else "output_0"
        cases[key] = case_of(tmp_path, key, named, {output: case.predict(model)})
    lstm = keras.Sequential([keras.Input((6,)), keras.layers.Embedding(9, 4), keras.layers.LSTM(5)])
    fixed = tf.TensorSpec([2, 6], tf.float32, name="words")
    assert write_tflite(str(tmp_path / "lstm.tflite"), lstm, None, input_signature=fixed) == ()
    words = np.arange(12, dtype=np.float32).reshape(2, 6) % 9
    cases["lstm"] = case_of(tmp_path, "lstm", {"words": words}, {"output_0": lstm(words)}, any_batch=False)
    for key, answer in run_stock(INTERPRETER, cases).items():
        assert answer["difference"] <= 1e-5, key  # LiteRT has other kernels
        assert answer["one"] == (None if key == "lstm" else 1), key
        assert list(answer["signatures"]) == ["serving_default"], key


def test_signatures_by_name(tmp_path: Path) -> None:
    model = models.CASES["dense"].make("keras")

    def signatures(given: Any) -> dict[str, Any]:
        table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(["one", "two"], tf.constant([10, 20], tf.int64)), -1
        )

        @tf.function(input_signature=[tf.TensorSpec([None, 8], tf.float32, name="pixels")])
        def best(pixels: Any) -> dict[str, Any]:
            scores = given(pixels / 255.0, training=False)
            return {"scores": scores, "best": tf.argmax(scores, axis=-1)}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="keys")])
        def look(keys: Any) -> Any:
            return {"values": table.lookup(keys)}

        return {"best": best, "look": look}

    assert write_tflite(str(tmp_path / "best.tflite"), model, PROVENANCE, signatures=signatures) == ()
    (tmp_path / "look.tflite").write_bytes((tmp_path / "best.tflite").read_bytes())
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8)).astype(np.float32)
    scores = np.asarray(model(pixels / 255.0, training=False))
    outputs = {"scores": scores, "best": scores.argmax(axis=-1)}
    keys = {"keys": np.asarray([b"two", b"one", b"five"])}
    answers = run_stock(
        INTERPRETER,
        {
            "best": case_of(tmp_path, "best", {"pixels": pixels}, outputs, signature="best"),
            "look": case_of(tmp_path, "look", keys, {"values": [20, 10, -1]}, signature="look"),
        },
    )
    assert answers["best"]["difference"] <= 1e-5
    assert answers["best"]["outputs"] == ["best", "scores"]
    assert answers["look"]["difference"] == 0
    expected = {"best": ["pixels"], "look": ["keys"], "serving_default": ["inputs"]}
    assert answers["best"]["signatures"] == expected


def test_operations_that_litert_does_not_have(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Text(keras.Model):  # type: ignore[misc]
        def call(self, words: Any) -> Any:
            return tf.strings.length(tf.strings.lower(words))

    selected = write_tflite(
        str(tmp_path / "m.tflite"), Text(), PROVENANCE, input_signature=tf.TensorSpec([None], tf.string)
    )
    assert "StringLower" in selected
    assert "StringLower" in caplog.text
    assert "Flex" in caplog.text
    with open(tmp_path / "m.tflite", "rb") as file:
        assert read_provenance(file, "m") == PROVENANCE


def test_what_cannot_be_converted_is_named(tmp_path: Path) -> None:
    class Python(keras.Model):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return tf.py_function(lambda value: value, [x], tf.float32)

    with pytest.raises(UnsupportedStateError, match=r"EagerPyFunc.*saved-model"):
        write_tflite(str(tmp_path / "m.tflite"), Python(), None, input_signature=tf.TensorSpec([None, 2]))
    with pytest.raises(UsageError, match="hand over input_signature="):
        write_tflite(str(tmp_path / "m.tflite"), Python(), None)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tflite, "MAX_TFLITE_BYTES", 1000)
    model = keras.Sequential([keras.Input((40,)), keras.layers.Dense(8)])
    with pytest.raises(UnsupportedStateError, match=r"the model has 1,312 bytes, .* at most 1,000"):
        write_tflite(str(tmp_path / "m.tflite"), model, None)
    assert list(tmp_path.iterdir()) == []


# Provenance


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("tflite") / "m.tflite"
    write_tflite(str(path), keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), PROVENANCE)
    return path


def test_provenance_without_tensorflow(written: Path, tmp_path: Path) -> None:
    program = f"""
import sys
from ckptflow.interop.tensorflow.tflite_metadata import read_provenance
with open({str(written)!r}, "rb") as file:
    print(read_provenance(file, "m").run_url)
sys.exit(f"loaded {{loaded}}" if (loaded := {{"tensorflow", "keras"}} & set(sys.modules)) else 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG_S, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, PROVENANCE.run_url), done.stderr
    plain = tmp_path / "plain.tflite"
    write_tflite(str(plain), keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), None)
    with open(plain, "rb") as file:
        assert read_provenance(file, "m") is None


def test_damaged_files(written: Path) -> None:
    """Whatever the bytes: the note that was written, or an error that names the file. Never a wrong note."""
    data = written.read_bytes()
    for bad in (b"", b"TFL3", b"not at all" * 50, data[:40]):
        with pytest.raises(CorruptCheckpointError, match="here"):
            read_provenance(io.BytesIO(bad), "here")
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(3000):
        changed = bytearray(data if rng.random() < 0.8 else data[: rng.integers(0, len(data))])
        for _ in range(rng.integers(0, 4) if changed else 0):
            changed[rng.integers(0, min(len(changed), 200))] = rng.integers(0, 256)
        try:
            found = read_provenance(io.BytesIO(bytes(changed)), "here")
        except CorruptCheckpointError:
            outcomes.add("refused")
        else:
            outcomes.add("none" if found is None else "found")
            assert found in (None, PROVENANCE)
    assert outcomes == {"refused", "none", "found"}
