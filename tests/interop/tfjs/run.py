"""TensorFlow.js and LiteRT's Flex delegate, proved in an environment of their own: `make tfjs`.

Installs the stock `tensorflowjs_converter`, with the older TensorFlow that it needs, and `@tensorflow/tfjs`; exports
checkpoints as SavedModels, converts them, predicts in Node, and compares. That TensorFlow has the Flex delegate which
ours has no more, so it runs the LiteRT file of a text model, too. Takes some minutes and 3 GB, most of it to install.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np

import ckptflow
from tests.interop import models
from tests.interop.stock import run_stock

HERE = Path(__file__).resolve().parent
NODE_PACKAGE = "@tensorflow/tfjs@4.22.0"
TOLERANCE = 1e-5  # other kernels, in float32
CASES = [("keras", name) for name in ("dense", "many_inputs", "subclassed", "mobilenet_v2")]
CASES += [("tf_keras", "dense")]
NAMES = {"many_inputs": ["picture", "numbers"]}

FLEX = """
import numpy as np, tensorflow as tf
runner = tf.lite.Interpreter(model_path=argument["file"]).get_signature_runner("serving_default")
outputs = runner(**{name: np.array(value, object) for name, value in argument["inputs"].items()})
answer = [tf.__version__, next(iter(outputs.values())).tolist()]
"""


def call(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def install(root: Path) -> None:
    """Both environments, unless they are there from the last time (`--keep`)."""
    if not (root / "python" / "done").exists():
        print("installing tensorflowjs and its TensorFlow …", flush=True)
        venv.create(root / "python", with_pip=True, clear=True)
        pip = str(root / "python" / "bin" / "pip")
        call(pip, "install", "--quiet", "--disable-pip-version-check", "-r", str(HERE / "requirements.txt"))
        (root / "python" / "done").touch()
    if not (root / "node" / "node_modules").exists():
        print(f"installing {NODE_PACKAGE} …", flush=True)
        (root / "node").mkdir(exist_ok=True)
        call("npm", "install", "--silent", "--no-audit", "--prefix", str(root / "node"), NODE_PACKAGE)


def export(framework: str, name: str, work: Path, destination: Path, **how: Any) -> Any:
    """A trained model's checkpoint as an export; what the model says to its sample inputs."""
    case = models.CASES[name]
    model = case.make(framework)
    run = work / "runs" / destination.name
    with ckptflow.CheckpointManager(run, {"model": model}) as manager:
        manager.save(1)
    ckptflow.export_checkpoint(run, destination, imports=case.modules, **how)
    return np.asarray(case.predict(model))


def in_javascript(root: Path, work: Path) -> list[tuple[str, float]]:
    """By case, how far Node's predictions are from the model's, as a part of the largest."""
    cases: dict[str, Any] = {}
    expected: dict[str, Any] = {}
    for framework, name in CASES:
        key = f"{framework}-{name}"
        print(f"{key}: export, convert …", flush=True)
        expected[key] = export(framework, name, work, work / "saved" / key, format="saved-model")
        converter = str(root / "python" / "bin" / "tensorflowjs_converter")
        call(converter, "--input_format=tf_saved_model", "--signature_name=serving_default",
             str(work / "saved" / key), str(work / "web" / key))  # fmt: skip
        inputs = models.CASES[name].sample_inputs()
        arrays = inputs if isinstance(inputs, list) else [inputs]
        signature = json.loads((work / "web" / key / "model.json").read_text())["signature"]
        names = NAMES.get(name) or list(signature["inputs"])
        cases[key] = {"folder": str(work / "web" / key), "inputs": dict(zip(names, map(_json, arrays), strict=True))}
    (work / "cases.json").write_text(json.dumps(cases))
    shutil.copy(HERE / "predict.js", root / "node")
    call("node", str(root / "node" / "predict.js"), str(work / "cases.json"), str(work / "answer.json"))
    answers = json.loads((work / "answer.json").read_text())
    return [(key, _distance(next(iter(answers[key].values())), expected[key])) for key in cases]


def _json(array: Any) -> dict[str, Any]:
    dtype = "int32" if array.dtype.kind == "i" else "float32"
    return {"dtype": dtype, "shape": list(array.shape), "values": array.reshape(-1).tolist()}


def _distance(values: Any, expected: Any) -> float:
    found = np.asarray(values, np.float32).reshape(expected.shape)
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


def with_flex(root: Path, work: Path) -> tuple[str, float]:
    """The same for the LiteRT file of a text model with an LSTM, which needs operations of TensorFlow's own."""
    print("text: LiteRT with TensorFlow's operations …", flush=True)
    file = work / "text.tflite"
    expected = export("keras", "text", work, file)
    inputs = {name: value.tolist() for name, value in models.CASES["text"].sample_inputs().items()}
    python = str(root / "python" / "bin" / "python")
    version, values = run_stock(FLEX, {"file": str(file), "inputs": inputs}, python=python)
    return f"keras-text, Flex delegate of TensorFlow {version}", _distance(values, expected)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", help="a folder for the two environments, to be used again")
    keep = parser.parse_args().keep
    with tempfile.TemporaryDirectory(prefix="ckptflow-tfjs-") as folder:
        work = Path(folder)
        root = Path(os.path.abspath(keep)) if keep else work
        root.mkdir(parents=True, exist_ok=True)
        (work / "saved").mkdir()
        install(root)
        results = [*in_javascript(root, work), with_flex(root, work)]
    for name, distance in results:
        print(f"{'ok  ' if distance <= TOLERANCE else 'FAIL'} {name}: {distance:.1e}")
    return int(any(distance > TOLERANCE for _, distance in results))


if __name__ == "__main__":
    sys.exit(main())
