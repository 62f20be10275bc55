"""What a checkpoint says about models and optimizers in addition to their tensors, to build them again without code."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from ckptflow.errors import CorruptCheckpointError
from ckptflow.format.record import MAX_NAME_CHARACTERS
from ckptflow.format.values import from_json, to_json
from ckptflow.format.words import some_of
from ckptflow.state.kinds import Kind, is_built, is_keras3_model, keras3, kind_of, tf_keras
from ckptflow.state.light import has_large_constants, mark, marks_in, serialize_light
from ckptflow.state.numbers import places_of_numbers
from ckptflow.state.private import tf_keras as tf_keras_private
from ckptflow.state.settings import settings_of
from ckptflow.state.tree import Tree
from ckptflow.state.walker import OptimizerNode
from ckptflow.state.weights import optimizer_of, trainable_of, weights_of

logger = logging.getLogger("ckptflow")


NO_KERAS = "tensorflow"  # the framework of an optimizer of TensorFlow 1, which has no config
_FRAMEWORKS: dict[Kind | None, str] = {  # of optimizers
    Kind.KERAS3_OPTIMIZER: "keras",
    Kind.TF_KERAS_OPTIMIZER: "tf_keras",
    Kind.TF1_OPTIMIZER: NO_KERAS,
}
MAX_CONFIG_BYTES = 4 << 20  # the largest known of a model without data has 1 MB, for a thousand layers
MAX_CONFIGS_BYTES = 16 << 20  # of all together


def described(tree: Tree) -> dict[str, Any]:
    """What `describe` says, of now: described again only where something in it was changed."""
    settings = settings_of(tree)
    if tree.configs is None or tree.configs[0] != settings:
        tree.configs = settings, describe(tree)
        tree.numbers = places_of_numbers(tree, tree.configs[1])
    return tree.configs[1]


def describe(tree: Tree) -> dict[str, Any]:
    """JSON by path. Models: `framework`, `class`, `variables` (how many), and, as far as they can be had, `config`,
    `build_config`, `compile_config`, `inputs` (what a subclassed model of tf_keras was called with). Optimizers:
    `framework`, `class`, `built`; where they are not just their model's, the names of the `variables` they are built
    for; where no model's compile config has them, their `config`. Where a part of it is too large, `left_out` says by
    its name why it is not there. Never fails a save."""
    room = _Room()
    found: dict[str, Any] = {}
    for path, model in tree.models.items():
        # A model inside of one that has a config is a part of that one.
        inside = any(path.startswith(f"{above}/") and "config" in entry_above for above, entry_above in found.items())
        found[path] = _describe_model(path, model, room, with_config=not inside)
    for path, node in tree.optimizers.items():
        framework = _FRAMEWORKS[kind_of(node.optimizer)]
        entry = found[path] = {
            "kind": "optimizer",
            "framework": framework,
            "class": _class_name(node.optimizer),
            "built": is_built(node.optimizer),
        }
        if node.built_for and set(node.built_for) != _default_variables(node, tree):
            entry["variables"] = list(node.built_for)
        is_inside = any(path.startswith(f"{above}/") for above in tree.optimizers)
        if framework != NO_KERAS and not is_inside and not _is_compiled_with(node, tree, found):
            entry |= room.take(path, {"config": _config(node.optimizer, framework, path)})
    return {
        path: entry for path, entry in found.items() if len(path) <= MAX_NAME_CHARACTERS
    }  # of longer ones none is read


def _describe_model(path: str, model: Any, room: _Room, *, with_config: bool) -> dict[str, Any]:
    keras, framework = (keras3(), "keras") if is_keras3_model(model) else (tf_keras(), "tf_keras")
    entry: dict[str, Any] = {
        "kind": "model",
        "framework": framework,
        "framework_version": str(keras.__version__),
        "class": _class_name(model),
        "variables": count_variables(model),
    }
    config = _config(model, framework, path) if with_config else None
    if isinstance(config, dict):
        parts = {"build_config": config.pop("build_config", None), "compile_config": config.pop("compile_config", None)}
        parts["config"] = config
    else:
        parts = {
            "build_config": _try(lambda: serialize_light(model.get_build_config(), framework), path, "build config")
        }
    if framework == "tf_keras" and not getattr(model, "inputs", None):
        parts["inputs"] = _try(lambda: _describe_inputs(model), path, "inputs")
    return entry | room.take(path, parts)


class _Room:
    """What all descriptions together may take of a manifest."""

    def __init__(self) -> None:
        self._bytes = 0

    def take(self, path: str, parts: dict[str, Any]) -> dict[str, Any]:
        """Those of the parts that are whole and not too large; `left_out`, which is logged, names the others."""
        compiled = parts.get("compile_config") or {}
        left_out = {f"compile_config/{key}": _reason(value) for key, value in compiled.items() if _reason(value)}
        parts = {**parts, "compile_config": {key: value for key, value in compiled.items() if not _reason(value)}}
        taken: dict[str, Any] = {}
        for name, part in parts.items():
            reason, size_bytes = _reason(part), len(json.dumps(part))
            if not reason and size_bytes > min(MAX_CONFIG_BYTES, MAX_CONFIGS_BYTES - self._bytes):
                reason = f"{size_bytes:,} bytes of text"
            if reason:
                left_out[name] = reason
            elif part:
                self._bytes += size_bytes
                taken[name] = part
        if left_out:
            logger.warning(
                "%s: its description in the checkpoint is incomplete, since it has too much data: %s. Its "
                "values are saved; to export it, pass the model (model=)",
                path,
                "; ".join(f"{name}: {reason}" for name, reason in left_out.items()),
            )
            taken["left_out"] = left_out
        return taken


def _reason(part: Any) -> str:
    """Why a part cannot be taken: the data that is not in it; "" where it is whole."""
    return some_of(list(dict.fromkeys(marks_in(part))), 3)


def _describe_inputs(model: Any) -> Any:
    """What the model was called with, for `inputs_of`; None if it was not."""
    spec = model.save_spec()
    return [_describe_spec(argument) for argument in spec[0]] if spec is not None else None


def _describe_spec(value: Any) -> Any:
    if isinstance(value, dict):
        return {"dict": {key: _describe_spec(inner) for key, inner in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_describe_spec(inner) for inner in value]
    return {"tensor": [value.shape.as_list(), value.dtype.name]}


def part_of(described: Mapping[str, Any], name: str) -> Any:
    """A part of a description, as `config`, as Keras gave it: JSON, and floats that it lacks. None if it is not there.

    Raises `CorruptCheckpointError` for what `describe` did not write.
    """
    try:  # no tuples, and no keys but text: what looks configs over knows JSON alone
        return json.loads(json.dumps(from_json(described.get(name), name)))
    except (TypeError, ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{name} is not as it is written: {error}") from error


def inputs_of(described: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """The arguments that a described model was called with, structures of TensorSpecs; None if it is not said.

    Raises ValueError for what `describe` did not write.
    """
    try:
        inputs = part_of(described, "inputs")
        return None if inputs is None else tuple(_spec_of(argument) for argument in inputs)
    except (TypeError, KeyError, AttributeError, RecursionError, CorruptCheckpointError) as error:
        raise ValueError(f"its inputs are not as they are written: {error}") from error


def _spec_of(value: Any) -> Any:
    if isinstance(value, list):
        return [_spec_of(inner) for inner in value]
    if "dict" in value:
        return {str(key): _spec_of(inner) for key, inner in value["dict"].items()}
    shape, dtype = value["tensor"]
    return tf.TensorSpec(shape, dtype)


def _is_compiled_with(node: OptimizerNode, tree: Tree, described: dict[str, Any]) -> bool:
    """Whether the compile config of a model in the state says how to make the optimizer."""
    return any(
        optimizer_of(model) is node.optimizer and described[path].get("compile_config", {}).get("optimizer")
        for path, model in tree.models.items()
    )


def _config(obj: Any, framework: str, path: str) -> Any:
    """The config of a model or an optimizer of either Keras."""
    if framework == "tf_keras" and tf_keras_private.is_functional(obj) and has_large_constants(obj):
        return mark("a constant that a layer is called with", "the model")
    return _try(lambda: serialize_light(obj, framework), path, "config")


def _default_variables(node: OptimizerNode, tree: Tree) -> set[str] | None:
    """The names of the variables that the optimizer is built for if nothing else is said: its model's trainable."""
    model = owner_of(node, tree)
    if model is None:
        return None
    names = {id(variable): name for name, variable in tree.variables.items()}
    return {names.get(id(variable), "") for variable in trainable_of(model)}


def owner_of(node: OptimizerNode, tree: Tree) -> Any:
    """The model that holds an optimizer as its own, also where the optimizer is an entry by itself, or None."""
    for model in tree.models.values():
        if optimizer_of(model) is node.optimizer:
            return model
    return tree.models.get(node.owner)


def count_variables(model: Any) -> int:
    """How many weights a model has now."""
    return len(weights_of(model))


def _class_name(obj: Any) -> str:
    return f"{type(obj).__module__}.{type(obj).__qualname__}"


def _try(make: Callable[[], Any], path: str, what: str) -> Any:
    """The JSON form of what `make` returns, or None: user classes may have no get_config, or one that raises."""
    try:
        with warnings.catch_warnings():  # Keras warns of lambdas, whose code nothing here runs
            warnings.simplefilter("ignore")
            return to_json(json.loads(json.dumps(make())), what)
    except Exception as error:
        logger.info(
            "%s has no %s that can be stored (%s: %s); it is saved without",
            path,
            what,
            type(error).__name__,
            str(error),
        )
        return None
