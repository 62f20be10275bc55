"""Signatures: what a SavedModel answers to, by name, and what must travel with it.

A signature takes and gives tensors by name. The default one is made of the model's inputs, with an open batch size;
the user's own are functions of TensorFlow. Whatever a function uses of a model must be the exported model's own: one
that was made for another model in memory would be exported with that one's values.
"""

from __future__ import annotations

import gc
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from ckptflow.errors import UnsupportedStateError, UsageError
from ckptflow.format.words import some_of
from ckptflow.printable import lines
from ckptflow.state.children import automatic_base
from ckptflow.state.configs import part_of
from ckptflow.state.kinds import Kind, is_keras3_model, is_tf_keras_model, kind_of, local_copies, raw_variable
from ckptflow.state.private.keras import INPUTS, SHAPES, layer_of
from ckptflow.state.private.tensorflow import owner_of, traced

DEFAULT = "serving_default"
_RESERVED = frozenset({"__saved_model_init_op", "__saved_model_train_op"})  # SavedModel's own
Function = tf.types.experimental.PolymorphicFunction
ConcreteFunction = tf.types.experimental.ConcreteFunction


@dataclass(frozen=True)
class Resources:
    """What functions use beside variables, and a SavedModel holds only if it is tracked: tables, and files."""

    tables: list[Any]
    assets: list[Any]

    @property
    def all(self) -> list[Any]:
        return [*self.tables, *self.assets]


# The inputs of a model


def arguments_of(
    model: Any, input_signature: Any, described: Mapping[str, Any] | None = None
) -> tuple[Any, ...] | None:
    """What the model is called with: one structure of TensorSpecs for each argument, each spec with a name of its own.

    From `input_signature` where that is given, else from the model's own inputs, else from the shapes that a Keras
    model was built for. None where none of these tells. Raises `UsageError` for an `input_signature` that is none,
    `UnsupportedStateError` for inputs that no signature can take.
    """
    if input_signature is not None:
        given = _as_arguments(model, input_signature)
        return _named(model, given)
    if is_keras3_model(model):
        if getattr(model, "inputs", None):  # a functional or sequential model
            structure = getattr(model, INPUTS, None)
            return _named(model, (model.inputs[0] if structure is None else structure,))
        shapes = getattr(model, SHAPES, None) or _shapes_of(described)
        if shapes:
            dtype = str(model.dtype_policy.variable_dtype or "float32")
            return _named(model, tuple(_specs_of_shape(shape, dtype) for shape in shapes.values()))
    elif is_tf_keras_model(model):
        spec = model.save_spec()
        if spec is not None:
            return _named(model, tuple(spec[0]))
    return None


def _as_arguments(model: Any, given: Any) -> tuple[Any, ...]:
    if isinstance(given, Mapping) or _is_spec(given):
        given = [given]
    if not isinstance(given, (list, tuple)) or not given or not all(map(_is_spec, tf.nest.flatten(given))):
        raise UsageError(
            "input_signature is a tf.TensorSpec, or a list with one for each argument of the model, or a dict or list "
            f"of them for an argument that is one, each with a shape and a dtype; not {given!r:.200}"
        )
    inputs = getattr(model, "inputs", None)
    if inputs and len(given) == len(inputs) > 1:  # one argument, which is a list
        return (list(given),)
    return tuple(given)


def _is_spec(value: Any) -> bool:
    return getattr(value, "shape", None) is not None and getattr(value, "dtype", None) is not None


def _shapes_of(described: Mapping[str, Any] | None) -> dict[str, Any]:
    build_config = part_of(described or {}, "build_config")
    if not isinstance(build_config, dict):
        return {}
    shapes = build_config.get("shapes_dict")
    if isinstance(shapes, dict):
        return shapes
    shape = build_config.get("input_shape")
    return {"input_shape": shape} if shape is not None else {}


def _specs_of_shape(shape: Any, dtype: str) -> Any:
    if isinstance(shape, Mapping):
        return {key: _specs_of_shape(inner, dtype) for key, inner in shape.items()}
    if all(size is None or isinstance(size, int) for size in shape):
        return tf.TensorSpec([None, *shape[1:]], dtype)
    return [_specs_of_shape(inner, dtype) for inner in shape]


def _named(model: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same structures, of TensorSpecs, each under its own name: the user's where there is one, else "inputs"."""
    taken: set[str] = set()
    parameters = _parameter_names(model)
    is_stateful = any(getattr(layer, "stateful", False) for layer in getattr(model, "layers", ()))

    def convert(value: Any, path: tuple[str, ...], fallback: str) -> Any:
        if isinstance(value, Mapping):
            return {key: convert(inner, (*path, str(key)), fallback) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [convert(inner, path, fallback) for inner in value]
        if getattr(value, "sparse", False) or getattr(value, "ragged", False) or isinstance(value, _COMPOSITE):
            raise UnsupportedStateError(
                "the model takes a sparse or ragged tensor, which no signature can; write a signature that makes one "
                "of dense tensors, and hand it over as signatures={name: tf.function}"
            )
        name = _identifier("_".join(path) or _name_of(value) or fallback)
        label, count = name, 0
        while label in taken:
            count += 1
            label = f"{name}_{count}"
        taken.add(label)
        shape = tf.TensorShape(value.shape)
        if shape.rank and not isinstance(value, tf.TensorSpec) and not is_stateful:
            shape = tf.TensorShape([None, *shape[1:]])
        return tf.TensorSpec(shape, tf.as_dtype(value.dtype), name=label)

    several = len(arguments) > 1
    return tuple(
        convert(argument, (), parameters[i] if several and i < len(parameters) else "inputs")
        for i, argument in enumerate(arguments)
    )


def _identifier(name: str) -> str:
    """A name that a function's argument can have, as TensorFlow makes it: "my-feature" is my_feature, "1st" arg_1st."""
    cleaned = re.sub(r"[^0-9A-Za-z_]", "_", name)
    return cleaned if cleaned[:1].isalpha() else f"arg_{cleaned}"


_COMPOSITE = (tf.SparseTensorSpec, tf.RaggedTensorSpec)


def _name_of(value: Any) -> str | None:
    """The name that a user gave a spec or an input layer, or None."""
    layer = layer_of(value)
    if layer is not None:
        return _layer_name(layer)
    return None if value.name is None else str(value.name).split(":")[0]


def _layer_name(layer: Any) -> str | None:
    return None if automatic_base(layer.name, type(layer).__name__) else str(layer.name)


def _parameter_names(model: Any) -> list[str]:
    call = getattr(model, "call", None) or (model.__call__ if callable(model) else None)
    try:
        parameters = inspect.signature(call).parameters if call is not None else {}
    except (TypeError, ValueError):
        return []
    return [name for name in parameters if name not in ("self", "training", "mask", "args", "kwargs")]


# Functions


def flat_function(call: Callable[..., Any], model: Any, arguments: tuple[Any, ...]) -> Any:
    """A ConcreteFunction that takes the inputs by name and gives the outputs by name."""
    specs = {spec.name: spec for spec in tf.nest.flatten(arguments)}
    names = _output_names(model)

    def serve(**inputs: Any) -> dict[str, Any]:
        values = tf.nest.map_structure(lambda spec: inputs[spec.name], arguments)
        return named_outputs(call(*values), names)

    return trace(tf.function(serve, autograph=False), DEFAULT, **specs)


def _output_names(model: Any) -> list[str | None]:
    if is_tf_keras_model(model):
        return list(getattr(model, "output_names", None) or [])
    if not is_keras3_model(model) or not getattr(model, "outputs", None):
        return []
    names = [_layer_name(layer_of(output)) for output in model.outputs]
    return [name if names.count(name) == 1 else None for name in names]


def named_outputs(outputs: Any, names: Iterable[str | None] = ()) -> dict[str, Any]:
    """The tensors of a model's answer by name: by key of its dicts, else as `names` says, else output_0, output_1."""
    if isinstance(outputs, Mapping):
        found: dict[str, Any] = {}
        for key, inner in outputs.items():
            if isinstance(inner, (Mapping, list, tuple)):
                found.update({f"{key}_{name}": value for name, value in named_outputs(inner).items()})
            else:
                found[str(key)] = inner
        return found
    known = list(names)
    flat = [value for value in tf.nest.flatten(outputs) if value is not None]
    if len(known) != len(flat):
        known = [None] * len(flat)
    return {name or f"output_{i}": value for i, (name, value) in enumerate(zip(known, flat, strict=True))}


def trace(function: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    """The ConcreteFunction for these specs. Raises `UsageError`, naming the signature, where the code fails."""
    try:
        return function.get_concrete_function(*args, **kwargs)
    except Exception as error:  # whatever a user's code raises
        raise UsageError(
            f"signature {name!r} cannot be made, its code raised {type(error).__name__}: {_shorten(error)}. Where the "
            "inputs are other than the model says (integers, strings), hand over input_signature=[tf.TensorSpec(...)]"
        ) from error


def _shorten(error: Exception) -> str:
    text = str(error).strip()
    return text if len(text) <= 600 else f"{text[:300]} ... {text[-300:]}"


def given_signatures(signatures: Any, model: Any) -> dict[str, Any]:
    """The user's functions by name: `signatures` is a mapping of them, or is called with the model to give one.

    Keep them until the SavedModel is written: a table or file may have no other holder than its function. Raises
    `UsageError` for what is no such thing.
    """
    if callable(signatures) and not isinstance(signatures, (Mapping, Function, ConcreteFunction)):
        try:
            signatures = signatures(model)
        except Exception as error:  # whatever a user's code raises
            raise UsageError(f"signatures= raised {type(error).__name__}: {_shorten(error)}") from error
    if signatures is None:
        return {}
    if isinstance(signatures, (Function, ConcreteFunction)):
        signatures = {DEFAULT: signatures}
    if not isinstance(signatures, Mapping):
        raise UsageError(
            "signatures is a dict from name to tf.function, or a callable that makes one of the model; not a "
            f"{type(signatures).__name__}"
        )
    for name in signatures:
        if not isinstance(name, str) or not name or name in _RESERVED:
            raise UsageError(f"{name!r} cannot be the name of a signature")
    return dict(signatures)


def concrete(name: str, function: Any) -> Any:
    """A function as a ConcreteFunction. Raises `UsageError` where it is none, or its inputs are not known."""
    if isinstance(function, ConcreteFunction):
        return function
    if not isinstance(function, Function):
        raise UsageError(
            f"signature {name!r} is a {type(function).__name__}, not a tf.function: decorate it with "
            "@tf.function(input_signature=[tf.TensorSpec(...)])"
        )
    if function.input_signature is not None:
        return trace(function, name)
    found = traced(function)
    if len(found) == 1:
        return found[0]
    raise UsageError(
        f"signature {name!r} has been traced for {len(found)} sorts of inputs and says none: give it an "
        "input_signature, or hand over its get_concrete_function(...)"
    )


# What functions use


def resources_of(functions: Iterable[tuple[str, Any]], variables: Iterable[Any]) -> Resources:
    """The tables and files that the functions use.

    `variables` are the exported model's. Raises `UsageError`, naming signature and variable, for any other that a
    function uses, and for a resource that nobody holds any more.
    """
    own = {id(copy.handle) for variable in variables for copy in _copies(variable)}
    foreign: dict[str, set[str]] = {}
    gone: set[str] = set()
    tables: dict[int, Any] = {}
    texts: dict[int, Any] = {}
    for name, function in functions:
        for captured in _captures(function):
            if captured.dtype == tf.string and captured.shape.rank == 0:
                texts[id(captured)] = captured
            if captured.dtype != tf.resource or id(captured) in own:
                continue
            owner = owner_of(captured)
            if owner is None:
                gone.add(name)
            elif kind_of(owner) is Kind.VARIABLE:
                foreign.setdefault(name, set()).add(f"{owner.name} {owner.dtype.name}{list(owner.shape)}")
            else:
                tables[id(owner)] = owner
    if foreign:
        raise UsageError(
            lines(
                "signatures use variables that are not the exported model's, so that they would answer with other "
                "values than the checkpoint's:",
                *(f"  {name}: {some_of(sorted(found), 5)}" for name, found in foreign.items()),
                "Make them of the model that is exported: pass signatures=lambda model: {name: tf.function}; other "
                "variables that they need must be the model's own (an attribute of it)",
            )
        )
    if gone:
        raise UsageError(
            f"{', '.join(sorted(gone))}: uses a table or another resource that no object holds any more; keep it, or "
            "hand over the tf.function in place of a concrete function"
        )
    # An asset does not mark its path as its own. Few functions use a text, so that this look is rare.
    live = [obj for obj in gc.get_objects() if type(obj) is tf.saved_model.Asset] if texts else []
    return Resources(list(tables.values()), [asset for asset in live if id(asset.asset_path) in texts])


def _copies(variable: Any) -> list[Any]:
    raw = raw_variable(variable)
    return [copy for copies in local_copies(raw) for copy in copies]


def _captures(function: Any) -> list[Any]:
    return [captured for captured, _ in function.graph.captures if hasattr(captured, "dtype")]
