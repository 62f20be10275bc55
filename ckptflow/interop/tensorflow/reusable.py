"""Writing a SavedModel that is for serving and for reuse at once: signatures, and TensorFlow Hub's interface.

The object that it loads as answers `__call__(inputs, training=False)` and has `variables`, `trainable_variables` and
`regularization_losses`, so that `hub.KerasLayer(trainable=True)` can fine-tune it; `serve` and `serve_training` are
what Keras's `TFSMLayer` calls. A tf_keras model is saved in tf_keras's own way, which has all of that and gives the
model back, with its optimizer. Under `assets.extra/` lie what it was exported from and by which names its tensors go.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import tensorflow as tf
from msgspec import Meta

from ckptflow.errors import UnsupportedStateError, UsageError
from ckptflow.interop.provenance import EXTRA, FILE_NAME, Provenance, encode
from ckptflow.interop.tensorflow import signatures as sig
from ckptflow.interop.tensorflow.checkpoint_writer import storage_errors
from ckptflow.state.configs import describe
from ckptflow.state.kinds import LAYERS, Kind, is_tf_keras_model, kind_of, raw_variable
from ckptflow.state.leaves import PartLeaf, host_array
from ckptflow.state.private import tensorflow as private
from ckptflow.state.private.tf_keras import listing_only
from ckptflow.state.tree import Tree, walk

NAMES_FILE = "ckptflow-model.json"
STATE_PREFIX = "ckptflow-state"  # a TensorBundle of what the graph holds as constants: vocabularies, boundaries
MAX_NAMES_BYTES = 256 * 2**20
VALUE = "VARIABLE_VALUE"

_Name = Annotated[str, Meta(min_length=1, max_length=4096)]


class Names(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """By which names the tensors go in a run: `variables` from a name to its key in `variables/variables`, `state` to
    its key in the bundle beside this file. `models` is as in a manifest; `path` the model's own path there."""

    version: int = 1
    path: _Name
    variables: dict[_Name, _Name]
    state: dict[_Name, _Name] = {}
    aliases: dict[_Name, tuple[_Name, ...]] = {}
    metrics: tuple[_Name, ...] = ()
    models: dict[str, Any] = {}


def write_saved_model(
    folder: str,
    model: Any,
    provenance: Provenance | None,
    *,
    signatures: Any = None,
    input_signature: Any = None,
    described: Mapping[str, Any] | None = None,
    path: str = "model",
) -> None:
    """Writes `model` as a reusable SavedModel, tag `serve`, into `folder`.

    `signatures`: a mapping from name to `tf.function` or ConcreteFunction, or a callable that makes one of the model;
    "serving_default" is made of the model's inputs unless it is among them. `input_signature`: TensorSpecs, where the
    inputs are not the model's own. Tables and files that a function uses travel along. `described` is the manifest's
    entry of the model and `path` its path in the state.

    Raises:
      UsageError: the inputs are not known, a signature cannot be made, or uses variables that are not the model's.
      UnsupportedStateError: an object that TensorFlow cannot save.
    """
    own = _Exported(model, path, signatures, input_signature, described)
    if is_tf_keras_model(model):
        root = own.save_tf_keras(folder)
    elif own.is_keras:
        root = own.save_root(folder, own.keras3_root())
    elif isinstance(model, private.Trackable):
        root = own.save_root(folder, own.trackable_root())
    else:
        raise UnsupportedStateError(f"a {type(model).__name__} is not a model that a SavedModel can store")
    _write_extra(folder, own.tree, root, own, provenance)


@dataclass(frozen=True, slots=True)
class WrittenSignatures:
    """The names of the signatures in a SavedModel, and the bytes of the variables that they use."""

    names: tuple[str, ...]
    size_bytes: int


def write_signatures(
    folder: str, model: Any, *, signatures: Any = None, input_signature: Any = None
) -> WrittenSignatures:
    """Writes a SavedModel that has the signatures and nothing else: what converters take. Raises as
    `write_saved_model` does."""
    own = _Exported(model, "model", signatures, input_signature, None)
    own.add_default()
    root = private.AutoTrackable()
    root.variables = list(own.variables.values())
    own.save_root(folder, root)
    used = {id(variable): variable for function in own.signatures.values() for variable in function.variables}
    size_bytes = sum(variable.shape.num_elements() * variable.dtype.size for variable in used.values())
    return WrittenSignatures(tuple(own.signatures), size_bytes)


class _Exported:
    """One model on its way: its variables, and the functions that a SavedModel will have."""

    def __init__(
        self,
        model: Any,
        path: str,
        signatures: Any,
        input_signature: Any,
        described: Mapping[str, Any] | None,
    ) -> None:
        self.model, self.path, self.described = model, path, described
        self.is_keras = kind_of(model) in LAYERS
        self.given = sig.given_signatures(signatures, model)  # this may give the model what its signatures need
        self.tree = tree = walk({path: model})
        optimizers = tuple(f"{name}/" for name in tree.optimizers)
        metrics = {leaf.name for leaf in tree.leaves if leaf.metric}
        self.names = [name for name in tree.variables if not name.startswith(optimizers) and name not in metrics]
        self.variables = {name: raw_variable(tree.variables[name]) for name in self.names}
        self.arguments = sig.arguments_of(model, input_signature, described)
        self.is_default_asked_for = input_signature is not None
        self.signatures = {name: sig.concrete(name, function) for name, function in self.given.items()}

    # The three sorts of models

    def keras3_root(self) -> Any:
        root = private.AutoTrackable()
        root.named_variables = dict(self.variables)
        root.variables = list(self.variables.values())
        root.trainable_variables = [raw_variable(variable) for variable in self.model.trainable_variables]
        root.regularization_losses = _keras_losses(self.model)
        self._add_call(root)
        return root

    def trackable_root(self) -> Any:
        """An object with the model's own attributes and functions, and Hub's lists beside them."""
        root = private.AutoTrackable()
        for name, child in tf.train.TrackableView.children(self.model, save_type="savedmodel", cache={}).items():
            if isinstance(child, (sig.Function, sig.ConcreteFunction)):
                setattr(root, name, child)
            else:
                private.track(root, child, name)
        self._add_call(root)
        children = tf.train.TrackableView.children(root)
        trainable = [variable for variable in self.variables.values() if variable.trainable]
        for name, variables in (("variables", list(self.variables.values())), ("trainable_variables", trainable)):
            if name not in children:
                setattr(root, name, variables)
        return root

    def save_tf_keras(self, folder: str) -> Any:
        """Its own format; what the signatures use is hung on the model for as long as that takes."""
        model = self.model
        if self.signatures or self.is_default_asked_for:
            self.add_default()
        extra = private.AutoTrackable()
        extra.resources = sig.resources_of(self.signatures.items(), self.variables.values()).all
        with _hung_on(model, extra if extra.resources else None), _without_handlers(), _mapped_errors(folder):
            model.save(folder, save_format="tf", signatures=self.signatures or None)
        return model

    def save_root(self, folder: str, root: Any) -> Any:
        if not self.signatures:
            raise UsageError(
                f"the inputs of {self.path} ({type(self.model).__name__}) are not known: hand over "
                "input_signature=[tf.TensorSpec(shape, dtype)], or signatures={name: tf.function}"
            )
        functions = [*self.signatures.items(), *_functions_of(root)]
        root.resources = sig.resources_of(functions, self.variables.values()).all
        with _mapped_errors(folder):
            tf.saved_model.save(root, folder, signatures=self.signatures)
        return root

    # Functions

    def add_default(self, call: Callable[..., Any] | None = None) -> None:
        """Adds "serving_default", unless it is the user's own or the inputs are not known. `call`: what it calls."""
        if sig.DEFAULT in self.signatures or not callable(self.model):
            return
        function = self.model.__call__
        if self.arguments is not None:
            call = call or _with_mode(function, self._modes(function)[0])
            self.signatures[sig.DEFAULT] = sig.flat_function(call, self.model, self.arguments)
        elif isinstance(function, sig.Function) and function.input_signature is not None:
            self.signatures[sig.DEFAULT] = sig.trace(function, sig.DEFAULT)

    def _add_call(self, root: Any) -> None:
        """`__call__`, for inference and, where the model tells them apart, for training; and what Keras looks for."""
        if not callable(self.model) or self.arguments is None:
            self.add_default()
            return
        function, modes = self.model.__call__, self._modes(self.model.__call__)
        if self.is_keras:
            function = _keras_call(self.model, len(self.arguments))
        elif not isinstance(function, sig.Function):
            function = tf.function(function, autograph=False)
        for mode in modes:
            sig.trace(function, "__call__", *self.arguments, **mode)
        root.__call__ = function
        self.add_default(_with_mode(function, modes[0]))
        if self.is_keras:
            for name, mode in zip(("serve", "serve_training"), modes, strict=True):
                setattr(root, name, _bound(_with_mode(function, mode), self.arguments))

    def _modes(self, function: Any) -> list[dict[str, bool]]:
        code = function.python_function if isinstance(function, sig.Function) else function
        if self.is_keras or "training" in inspect.signature(code).parameters:
            return [{"training": False}, {"training": True}]
        return [{}]


def _keras_call(model: Any, count: int) -> Any:
    """The model as a function of TensorFlow. One argument goes by the name that Hub gives it."""

    def of_one(inputs: Any, training: bool = False) -> Any:
        return model(inputs, training=training)

    def of_several(*inputs: Any, training: bool = False) -> Any:
        return model(*inputs, training=training)

    return tf.function(of_one if count == 1 else of_several, autograph=False)


def _with_mode(function: Callable[..., Any], mode: Mapping[str, bool]) -> Callable[..., Any]:
    return lambda *inputs: function(*inputs, **mode)


def _bound(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return tf.function(function, input_signature=arguments, autograph=False)


def _keras_losses(model: Any) -> list[Any]:
    """The losses of regularized weights, as functions without arguments."""

    def loss_of(variable: Any) -> Callable[[], Any]:
        return lambda: variable.regularizer(raw_variable(variable))

    regularized = [variable for variable in model.trainable_variables if getattr(variable, "regularizer", None)]
    return [_bound(loss_of(variable), ()) for variable in regularized]


def _functions_of(root: Any) -> Iterator[tuple[str, Any]]:
    """Every traced function that will be saved with the root, by its attribute's name."""
    for name, child in tf.train.TrackableView.children(root, save_type="savedmodel", cache={}).items():
        if isinstance(child, sig.ConcreteFunction):
            yield name, child
        elif isinstance(child, sig.Function):
            for concrete in private.traced(child):
                yield name, concrete


@contextlib.contextmanager
def _hung_on(model: Any, extra: Any) -> Iterator[None]:
    name = "_ckptflow_resources"
    if extra is None:
        yield
        return
    private.track(model, extra, name)
    try:
        yield
    finally:
        private.untrack(model, name)


def _without_handlers() -> AbstractContextManager[None]:
    """tf_keras counts a vocabulary among a layer's variables, by an object that loads as None in the lists of them: Hub
    cannot read those. The vocabulary itself is in the layer's table. So the lists, and only they, are kept clean."""
    return listing_only(lambda each: kind_of(each) is Kind.VARIABLE)


@contextlib.contextmanager
def _mapped_errors(folder: str) -> Iterator[None]:
    """TensorFlow's ways to say that something cannot be saved, as ours."""
    try:
        with storage_errors(folder):
            yield
    except (AssertionError, NotImplementedError) as error:
        raise UnsupportedStateError(f"TensorFlow cannot save the model: {error}") from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"TensorFlow cannot save the model as it is: {error}") from error


# What lies beside it


def _write_extra(folder: str, tree: Tree, root: Any, own: _Exported, provenance: Provenance | None) -> None:
    extra = os.path.join(folder, EXTRA)
    os.makedirs(extra, exist_ok=True)
    keys = keys_of(graph_of(tf.train.load_checkpoint(os.path.join(folder, "variables", "variables"))), root)
    held = {
        name: keys[id(variable)]
        for name, variable in ((name, raw_variable(variable)) for name, variable in tree.variables.items())
        if id(variable) in keys
    }
    parts = {leaf.name: leaf for leaf in tree.leaves if isinstance(leaf, PartLeaf) and leaf.name not in held}
    state = {name: str(number) for number, name in enumerate(parts)}
    names = Names(
        path=own.path,
        variables=held,
        state=state,
        aliases={leaf.name: leaf.aliases for leaf in tree.leaves if leaf.aliases and leaf.name in {**held, **state}},
        metrics=tuple(leaf.name for leaf in tree.leaves if leaf.metric and leaf.name in held),
        models=_models(tree, own, held),
    )
    with open(os.path.join(extra, NAMES_FILE), "wb") as file:
        file.write(msgspec.json.encode(names))
    if parts:
        bundles = {id(leaf.bundle): leaf.bundle.read() for leaf in parts.values()}
        values = [
            tf.constant(host_array(bundles[id(leaf.bundle)][leaf.part]), leaf.tf_dtype) for leaf in parts.values()
        ]
        prefix = os.path.join(extra, STATE_PREFIX)
        numbers, slices = list(state.values()), [""] * len(values)
        with storage_errors(prefix), tf.device("CPU:0"):
            tf.raw_ops.SaveV2(prefix=prefix, tensor_names=numbers, shape_and_slices=slices, tensors=values)
    if provenance is not None:
        with open(os.path.join(extra, FILE_NAME), "w", encoding="utf-8") as file:
            file.write(encode(provenance))


def _models(tree: Tree, own: _Exported, held: Mapping[str, str]) -> dict[str, Any]:
    """What a manifest says of models, but of optimizers only where their variables are here: others would be missing
    in every restore."""
    found = describe(tree)
    if own.described is not None:
        found[own.path] = dict(own.described)
    kept = {path for path in tree.optimizers if any(name.startswith(f"{path}/") for name in held)}
    for path in [path for path, entry in found.items() if entry["kind"] == "optimizer" and path not in kept]:
        del found[path]
    for path, entry in found.items():
        if not any(optimizer.startswith(f"{path}/") for optimizer in kept):
            entry.pop("compile_config", None)
    return found


def graph_of(reader: Any) -> Any:
    """The object graph that a TensorBundle of TensorFlow's holds."""
    graph = private.TrackableObjectGraph()
    graph.ParseFromString(reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH"))
    return graph


def keys_of(graph: Any, root: Any) -> dict[int, str]:
    """The key of each variable that can be reached from `root`, by its identity, where the graph has it under the same
    path: the graph names children as the objects do."""
    objects: dict[int, Any] = {0: root}
    queue = deque([0])
    while queue:
        number = queue.popleft()
        children = tf.train.TrackableView.children(objects[number])
        for child in graph.nodes[number].children:
            if child.node_id not in objects and child.local_name in children:
                objects[child.node_id] = children[child.local_name]
                queue.append(child.node_id)
    for number in list(objects):  # a legacy optimizer's slots hang on no path
        for slot in graph.nodes[number].slot_variables:
            if slot.original_variable_node_id in objects and hasattr(objects[number], "get_slot"):
                variable = objects[slot.original_variable_node_id]
                objects[slot.slot_variable_node_id] = objects[number].get_slot(variable, slot.slot_name)
    return {
        id(raw_variable(obj)): attribute.checkpoint_key
        for number, obj in objects.items()
        for attribute in graph.nodes[number].attributes
        if attribute.name == VALUE
    }
