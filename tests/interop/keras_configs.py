"""Configs that nobody should build, each with what it would do if Keras got it, and classes that configs may name."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

PROBE = """
import pathlib
pathlib.Path(MARK).touch()  # on import
import tf_keras

class Probe(tf_keras.layers.Layer):
    pass

def probe(inputs):
    pathlib.Path(MARK).touch()
    return inputs
"""
PROBES = ("hostile_probe", "keras_probe", "tf_keras_probe")


def place_probes(folder: Path, mark: Path) -> None:
    """Modules that leave `mark` when they are imported or run, to be found in `folder`."""
    for name in PROBES:
        (folder / f"{name}.py").write_text(PROBE.replace("MARK", repr(str(mark))))


# The module that users import, with classes and a function that are not registered, for either Keras.
UNREGISTERED = """
import KERAS as keras

class Twice(keras.layers.Layer):
    def call(self, inputs):
        return 2.0 * inputs

def swell(inputs):
    return 3.0 * inputs

class Plain(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)
"""


def sequential(framework: str, *layers: dict[str, Any]) -> dict[str, Any]:
    """The config of a sequential model of these layers."""
    keras = importlib.import_module(framework)
    config = keras.saving.serialize_keras_object(keras.Sequential([keras.layers.Input((3,))], name="hostile"))
    config.pop("compile_config", None)
    config["config"]["layers"] += layers
    return dict(config)


def layer(place: str | None, class_name: str, /, registered_name: Any = None, **config: Any) -> dict[str, Any]:
    """One object of a config."""
    return {"module": place, "class_name": class_name, "config": config, "registered_name": registered_name}


def function(module: str, name: str) -> dict[str, Any]:
    """A function in a config."""
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def hostile(framework: str, mark: str) -> dict[str, dict[str, Any]]:
    """Configs of models by what is wrong with them. `mark` is a file that some would make or delete."""
    dense = {"units": 2, "name": "dense"}
    layers: dict[str, dict[str, Any]] = {
        "a module to import": layer("hostile_probe", "Probe"),
        "a function of it": layer("keras.layers", "Dense", **dense, activation=function("hostile_probe", "probe")),
        "a call of the system": layer("keras.layers", "Dense", **dense, activation=function("os", "system")),
        "a built-in function": layer("keras.layers", "Dense", **dense, activation=function("builtins", "exec")),
        "a function of Keras that reads": layer(
            "keras.layers", "Dense", **dense, activation=function("keras.utils", "get_file")
        ),
        "a data set of Keras": layer(
            "keras.layers", "Dense", **dense, activation=function("keras.datasets.imdb", "load_data")
        ),
        "a class of Keras that is no layer": layer("keras.callbacks", "CSVLogger", filename=mark),
        "an attribute of a module of Keras": layer("keras.src.utils.file_utils", "os"),
        "an attribute of an attribute": layer(
            "keras.layers", "Dense", **dense, activation=function("keras.src.utils.data_utils", "os.system")
        ),
        "a module called like Keras": layer("keras_probe", "Probe"),
        "a lambda": layer("keras.layers", "Dense", **dense, activation={
            "class_name": "__lambda__", "config": {"value": ["", None, None]},
        }),
        "a SavedModel": layer("keras.layers", "TFSMLayer", filepath=mark),
        "a vocabulary file": layer("keras.layers", "StringLookup", vocabulary=mark),
        "a name that is no text": layer("keras.layers", "Dense", registered_name=["x"], **dense),
        "a class that is no text": layer("keras.layers", "Dense", **dense, x=layer(None, ["x"])),  # type: ignore[arg-type]
        "a type": layer("keras.layers", "Dense", **dense, spec={
            "class_name": "__typespec__", "module": "hostile_probe", "spec_name": "Probe", "registered_name": None,
            "config": [],
        }),
    }  # fmt: skip
    if framework == "keras":
        layers["pickled weights of torch"] = layer("keras.layers", "TorchModuleWrapper", module={})
        return {name: sequential(framework, each) for name, each in layers.items()}
    layers |= {
        "a lambda of tf_keras": layer(
            "keras.layers", "Lambda", function=["", None, None], function_type="lambda", module="os",
            output_shape=None, output_shape_type="raw", output_shape_module=None, arguments={},
        ),
        "a function of a module": layer(
            "keras.layers", "Lambda", function="system", function_type="function", module="os",
            output_shape=None, output_shape_type="raw", output_shape_module=None, arguments={},
        ),
        "a residual in a cell": layer(
            "keras.layers", "ResidualWrapper", residual_fn=["", None, None], residual_fn_type="lambda",
            residual_fn_module="os", cell=layer("keras.layers", "LSTMCell", units=2),
        ),
        "a function that is none": layer(
            None, "ResidualWrapper", residual_fn=["x"], residual_fn_type="function",
            residual_fn_module=None, cell=layer("keras.layers", "LSTMCell", units=2),
        ),
        "the globals of a module": layer(
            None, "ResidualWrapper", residual_fn="x", residual_fn_module="keras.layers",
            cell=layer("keras.layers", "LSTMCell", units=2),
        ),
        "the globals of a module, for a state": layer(
            None, "DropoutWrapper", dropout_state_filter_visitor={"class_name": "Dense", "config": {}},
            dropout_state_filter_visitor_type="function", dropout_state_filter_visitor_module="sys",
            cell=layer("keras.layers", "LSTMCell", units=2),
        ),
        "an operation in bytes": layer(
            "keras.src.layers.core.tf_op_layer", "TensorFlowOpLayer", node_def="{}", constants={}
        ),
    }  # fmt: skip
    configs = {name: sequential(framework, each) for name, each in layers.items()}
    for name, symbol in {"an operation that writes": "io.write_file", "one that deletes": "io.gfile.remove"}.items():
        configs[name] = _op_layer(symbol, mark)
    configs["one that loads code"] = _op_layer("load_op_library", mark)
    method = copy.deepcopy(configs["one that deletes"])
    method["config"]["layers"][1] = {
        **method["config"]["layers"][1], "class_name": "ClassMethod",
        "config": {"name": "op", "cls_symbol": "io.TFRecordWriter", "method_name": "__init__"},
    }  # fmt: skip
    configs["a method of a class that writes"] = method
    return configs


def _op_layer(symbol: str, argument: str) -> dict[str, Any]:
    """A functional model of tf_keras with a layer that calls a symbol of TensorFlow while the model is made."""
    import tf_keras

    inputs = tf_keras.Input((3,), name="inputs")
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(2, name="op")(inputs), name="hostile")
    config = tf_keras.saving.serialize_keras_object(model)
    operation = {
        "module": "keras.src.layers.core.tf_op_layer", "class_name": "TFOpLambda", "registered_name": "TFOpLambda",
        "config": {"name": "op", "function": symbol}, "name": "op", "build_config": {"input_shape": None},
        "inbound_nodes": [["_CONSTANT_VALUE", -1, argument, {}], ["inputs", 0, 0, {}]],
    }  # fmt: skip
    config["config"]["layers"][1] = operation
    return dict(config)
