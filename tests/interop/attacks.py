"""What an attacker would hand over: models whose code leaves a mark when it runs, and the files around them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import tensorflow as tf
import tf_keras

FRAMEWORKS: dict[str, Any] = {"keras": keras, "tf_keras": tf_keras}


def marshalled(mark: Path) -> list[Any]:
    """A lambda as tf_keras keeps it, which leaves the mark when it is called."""
    from tf_keras.src.utils.generic_utils import func_dump

    code = compile(f"lambda x: (open({str(mark)!r}, 'w').close(), x)[1]", "evil", "eval")
    return list(func_dump(eval(code)))  # noqa: S307 - code of this file's own


class Initialised(tf.saved_model.experimental.TrackableResource):  # type: ignore[misc]
    """A resource whose initialiser, which every loader runs, leaves the mark."""

    def __init__(self, mark: Path) -> None:
        super().__init__()
        self._mark = str(mark)

    def _create_resource(self) -> Any:
        return tf.raw_ops.MutableHashTableV2(key_dtype=tf.string, value_dtype=tf.int64, shared_name="evil")

    def _initialize(self) -> None:
        tf.io.write_file(self._mark, "ran")


def hostile_graph(folder: Path, mark: Path) -> Path:
    """A SavedModel of plain TensorFlow's that leaves the mark when it is loaded."""
    module = tf.Module()
    module.evil = Initialised(mark)
    module.serve = tf.function(lambda x: x + 0.0, input_signature=[tf.TensorSpec([None, 3])])
    tf.saved_model.save(module, str(folder))
    mark.unlink(missing_ok=True)
    return folder


def h5_of(path: Path, framework: str, config: dict[str, Any]) -> str:
    """A whole `.h5` file of a sound model, with another config."""
    kit = FRAMEWORKS[framework]
    kit.Sequential([kit.layers.Input((3,)), kit.layers.Dense(2)]).save(path)
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = json.dumps(config)
    return str(path)


def keras_of(path: Path, framework: str, config: dict[str, Any]) -> str:
    """A `.keras` file of a sound model, with another config."""
    kit = FRAMEWORKS[framework]
    sound = path.with_name(f"sound-{path.name}")
    kit.Sequential([kit.layers.Input((3,)), kit.layers.Dense(2)]).save(sound)
    with zipfile.ZipFile(sound) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, json.dumps(config) if name == "config.json" else old.read(name))
    return str(path)


def old_config(*layers: dict[str, Any]) -> dict[str, Any]:
    """A sequential model as HDF5 files of tf_keras and of Keras 2 describe it."""
    first = {"class_name": "InputLayer", "config": {"batch_input_shape": [None, 3], "dtype": "float32", "name": "i"}}
    return {"class_name": "Sequential", "config": {"name": "hostile", "layers": [first, *layers]}}


def lambda_layer(code: Any, function_type: Any = "lambda") -> dict[str, Any]:
    config = {
        "name": "evil", "trainable": True, "dtype": "float32", "function": code, "function_type": function_type,
        "module": "builtins", "output_shape": None, "output_shape_type": "raw", "output_shape_module": None,
        "arguments": {},
    }  # fmt: skip
    return {"class_name": "Lambda", "config": config}


# Objects in JSON that Keras's decoder for HDF5 turns into something else, and other things than a word.

SPEC: dict[str, Any] = {"class_name": "TypeSpec", "type_spec": "tf.TensorSpec", "serialized": [[], "string", None]}
SPECIAL: dict[str, Any] = {
    "a tensor": {"class_name": "CompositeTensor", "spec": "x", "tensors": [["string", "lambda"]]},
    "a tensor by its type": {"class_name": "CompositeTensor", "spec": SPEC, "tensors": [["string", "lambda"]]},
    "a tensor in a tuple": {"class_name": "__tuple__", "items": [
        {"class_name": "CompositeTensor", "spec": "x", "tensors": [["string", "lambda"]]}]},
    "a type": SPEC,
    "a shape": {"class_name": "TensorShape", "items": [1]},
    "bytes": {"class_name": "__bytes__", "value": "lambda"},
    "the word itself": "lambda",
    "no word": ["lambda"],
    "nothing": None,
}  # fmt: skip
