"""Whole models in HDF5, Keras's format before `.keras`, as its readers of today can and cannot have them.

Keras 3.15 writes what its own `load_model` cannot read. It raises for losses that were given by a short name ("mse");
it builds the optimizer for no variables, so that of its state the step and the rate alone come back and the next `fit`
raises; it takes the optimizer out of the live model's compile config while saving; and adapted vocabularies are not in
the file. tf_keras has none of these faults, but refuses vocabularies. Neither can hold a subclassed model, and both
lose a loss that is a lambda. What can be mended in the file is mended; the optimizer's state is where Keras puts it.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import h5py

from ckptflow.errors import UnsupportedStateError, UsageError
from ckptflow.format.words import some_of
from ckptflow.interop.keras.config import (
    build_optimizer_of,
    check_is_model,
    compile_with,
    raise_unbuildable,
    safe_mode,
)
from ckptflow.interop.keras.described import described_in
from ckptflow.interop.keras.hdf5 import json_of, opened, text_of
from ckptflow.interop.keras.named import LOOKUPS
from ckptflow.interop.keras.optimizer import drop_if_several, set_legacy, variables_of
from ckptflow.interop.keras.ordered import load_in_order
from ckptflow.interop.keras.weights import (
    datasets_of,
    framework_of_model,
    total_bytes,
)
from ckptflow.interop.untrusted.budget import limited_variables
from ckptflow.interop.untrusted.keras_trust import (
    Framework,
    check_config,
    check_model_config,
    decoded,
    keras_module,
    operations,
    registered,
)
from ckptflow.state.keras3 import is_graph_model
from ckptflow.state.private.kerases import COMPILE_CONFIG, LOOKUP, layers_in, of
from ckptflow.state.tree import walk

logger = logging.getLogger("ckptflow")

_COMPILED = {"loss": "losses", "metrics": "metrics", "weighted_metrics": "metrics"}
_AS_THEY_ARE = frozenset({"accuracy", "acc", "crossentropy", "ce"})  # Keras takes these by the shape of the output
_NOT_IN_HDF5 = frozenset({"bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4"})
_PLAIN = ("loss_weights", "run_eagerly", "steps_per_execution", "jit_compile")


def save_h5(path: str, model: Any) -> None:
    """Has a model's Keras write it, and mends what stock readers would stumble over. The live model stays as it is.

    Raises `UnsupportedStateError` for a model that no stock reader could make again from the file.
    """
    framework = framework_of_model(model)
    if framework == "keras" and not is_graph_model(model):
        raise UnsupportedStateError(
            f"a .h5 file holds functional and sequential models, and a {type(model).__name__} is neither: Keras could "
            "not read it back. Use a .keras file"
        )
    check_dtypes(model, ".h5")
    with _compile_config_kept(model):
        model.save(path)
    with h5py.File(path, "r+") as file:
        config = json_of(text_of(file, "model_config"), "model_config", path)
        if framework == "keras":
            _mend_layers(config, model)
        else:
            config = _with_plain_functions(config)
        file.attrs["model_config"] = json.dumps(config)
        if "training_config" in file.attrs:
            training = json_of(text_of(file, "training_config"), "training_config", path)
            _mend_training(training, framework, type(model).__name__)
            file.attrs["training_config"] = json.dumps(training)


def check_dtypes(model: Any, suffix: str) -> None:
    """Raises `UnsupportedStateError` for dtypes that HDF5 does not know: Keras writes them, and cannot read them."""
    variables = [*model.weights, *variables_of(getattr(model, "optimizer", None))]
    held = [each.dtype for each in variables if hasattr(each, "shape")]  # a vocabulary of tf_keras has neither
    unknown = {str(getattr(dtype, "name", dtype)) for dtype in held} & _NOT_IN_HDF5
    if unknown:
        raise UnsupportedStateError(
            f"this model has variables of {some_of(sorted(unknown), 5)}, which its Keras writes into a {suffix} file "
            "and cannot read back. Use a tf-checkpoint, safetensors, or a .keras file of Keras 3"
        )


@contextlib.contextmanager
def _compile_config_kept(model: Any) -> Iterator[None]:
    held = getattr(getattr(model, COMPILE_CONFIG, None), "config", None)
    kept = dict(held) if isinstance(held, dict) else None
    try:
        yield
    finally:
        if kept is not None and isinstance(held, dict):
            held.clear()
            held.update(kept)


def _mend_layers(config: dict[str, Any], model: Any) -> None:
    """Vocabularies go into the configs of their layers. Raises for operations, which stock Keras does not find."""
    keras = keras_module("keras")
    graphs = [model, *layers_in(model)]
    every = {type(each).__name__: each for graph in graphs for each in getattr(graph, "operations", ())}
    lost = sorted(name for name, each in every.items() if not isinstance(each, keras.layers.Layer))
    if lost:
        raise UnsupportedStateError(
            f"a .h5 file cannot hold this model: stock Keras 3 does not find the operations {some_of(lost, 5)} again "
            "when it reads one. Use a .keras file"
        )
    found = {layer.name: layer for layer in layers_in(model) if type(layer).__name__ in LOOKUPS}
    waiting = [config]
    while waiting:
        inner = waiting.pop().get("config")
        if isinstance(inner, dict):
            layer = found.get(inner.get("name", ""))
            if layer is not None and inner.get("vocabulary") is None:
                _put_vocabulary(inner, layer)
            waiting += [each for each in inner.get("layers", ()) if isinstance(each, dict)]


def _with_plain_functions(config: Any) -> Any:
    """Functions by their names, as tf_keras reads them from HDF5, not as it writes them there."""
    if isinstance(config, dict):
        if config.get("class_name") == "function" and isinstance(config.get("config"), str):
            return config["config"]
        return {key: _with_plain_functions(value) for key, value in config.items()}
    return [_with_plain_functions(value) for value in config] if isinstance(config, list) else config


def _put_vocabulary(inner: dict[str, Any], layer: Any) -> None:
    lookup = getattr(layer, LOOKUP, layer)
    words = [word.item() if hasattr(word, "item") else word for word in lookup.get_vocabulary(False)]
    if words:
        inner["vocabulary"] = words
        if lookup.output_mode == "tf_idf":
            inner["idf_weights"] = lookup.idf_weights.numpy()[-len(words) :].tolist()


def _mend_training(training: dict[str, Any], framework: Framework, what: str) -> None:
    """Names that stock readers find; what they would not find is left out and logged."""
    keras = keras_module(framework)
    for key, place in _COMPILED.items():
        try:
            training[key] = _each(training.get(key), partial(_findable, place=getattr(keras, place)))
        except Exception as error:  # a lambda, a class that is not registered
            logger.warning("the .h5 file of the %s is without its %s: %s", what, key, str(error)[:200])
            training[key] = None


def _findable(value: Any, place: Any) -> Any:
    """A loss or metric as stock readers find it. Raises where they do not."""
    if isinstance(value, str):
        if value in _AS_THEY_ARE:
            return value
        made = place.get(value)
        value = getattr(made, "__name__", value)
    place.deserialize(copy.deepcopy(value))
    return value


def _each(value: Any, use: Callable[[Any], Any]) -> Any:
    """Applies a function to every object in a nest of dicts and lists of them."""
    if value is None:
        return None
    if isinstance(value, str) or (isinstance(value, dict) and "class_name" in value):
        return use(value)
    if isinstance(value, dict):
        return {key: _each(inner, use) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_each(inner, use) for inner in value]
    return value


# Reading


def read_h5(
    path: str,
    where: str,
    config: dict[str, Any],
    framework: Framework,
    *,
    unsafe: bool = False,
    imports: tuple[str, ...] = (),
    optimizer: bool = True,
) -> tuple[Any, bool]:
    """The model in a file that was looked over, and whether its optimizer has the state that the file holds.

    `config` is its `model_config`. Keras gets it as it was checked, never the file's text of it. Raises as
    `files.read_model`.
    """
    stored = datasets_of(path, "whole")
    with limited_variables(total_bytes(stored), where), warnings.catch_warnings(), opened(path, path) as file:
        warnings.simplefilter("ignore")
        model = model_of(config, framework, where, imports=imports, unsafe=unsafe)
        load_in_order(path, where, model, hint="If you have the model's code, pass the model (model=).")
        text = text_of(file, "training_config")
        if text is None:
            return model, False
        training = json_of(text, "training_config", path)
        compile_by(training, model, framework, where, imports=imports, unsafe=unsafe)
        if getattr(model, "optimizer", None) is None or not optimizer:
            return model, False
        has_state = set_legacy(where, model, file, described_in(path, "whole"), is_own=True)
        if not has_state:
            drop_if_several(where, model)
        return model, has_state


def check_implementations(path: str, model: Any, state: Mapping[str, Any]) -> None:
    """Raises `UsageError` where a recurrent layer of a file's model is cuDNN's and that of the same name in the state
    is not, or the reverse: kernels of one shape have another order then."""
    live = {layer.name: layer for layer in walk(state).layers if hasattr(layer, "name")}
    for layer in layers_in(model):
        other = live.get(layer.name, layer)
        if _is_of_cudnn(layer) != _is_of_cudnn(other):
            theirs, ours = type(layer).__name__, type(other).__name__
            raise UsageError(
                f"{path}: its layer {layer.name!r} is a {theirs}, that of model= a {ours}, "
                "which orders its values otherwise: tf_keras turns one into the other where all of the file is taken, "
                "without partial= and rename="
            )


def _is_of_cudnn(layer: Any) -> bool:
    return type(layer).__name__.startswith("CuDNN")


def model_of(
    config: dict[str, Any],
    framework: Framework,
    where: str,
    *,
    imports: tuple[str, ...] = (),
    unsafe: bool = False,
    of_saved_model: bool = False,
) -> Any:
    """The model, not compiled, that a config in Keras's old way of writing describes, as HDF5 and SavedModels hold it.

    Raises `UsageError` for what may not be made of it, `CorruptCheckpointError` for what is not a model.
    """
    plain = decoded(config, framework, where, unsafe=unsafe, of_saved_model=of_saved_model)
    own = check_model_config(plain, framework, where, imports=imports, unsafe=unsafe)
    own |= operations(plain, framework)
    with keras_module(framework).saving.custom_object_scope(own), safe_mode(framework, unsafe=unsafe):
        try:
            model = of(framework).model_of_old_config(plain, {**own, **registered(framework)})
        except Exception as error:  # whatever the classes raise, the user's among them
            raise_unbuildable(error, where)
    check_is_model(model, framework, where)
    return model


def compile_by(
    training: dict[str, Any],
    model: Any,
    framework: Framework,
    where: str,
    *,
    imports: tuple[str, ...] = (),
    unsafe: bool = False,
    of_saved_model: bool = False,
) -> None:
    """Compiles a model as an old training config says and builds its optimizer; what cannot be had is logged."""
    keras = keras_module(framework)
    arguments: dict[str, Any] = {key: training[key] for key in _PLAIN if training.get(key) is not None}
    dropped = []
    parts = {"optimizer": (training.get("optimizer_config"), "optimizers")}
    parts |= {key: (training.get(key), place) for key, place in _COMPILED.items()}
    for key, (value, place) in parts.items():
        try:
            what = f"{where}: {key}"
            plain = decoded({key: value}, framework, what, unsafe=unsafe, of_saved_model=of_saved_model)[key]
            own = check_config(plain, framework, what, imports=imports, unsafe=unsafe)
            with keras.saving.custom_object_scope(own), safe_mode(framework, unsafe=unsafe):
                arguments[key] = _each(plain, partial(_made, place=getattr(keras, place)))
        except Exception as error:  # a lambda, a class that is not registered; or ours, that says so
            logger.info("%s: %s: %s", where, type(error).__name__, str(error))
            dropped.append(key)
    if arguments.get("optimizer") is None:
        logger.warning("%s: its optimizer cannot be had, so the model is not compiled", where)
        return
    dropped += compile_with(model, arguments)
    build_optimizer_of(model)
    if dropped:
        logger.warning("%s is compiled without its %s; compile it again to train it", where, some_of(dropped, 9))


def _made(value: Any, place: Any) -> Any:
    if isinstance(value, dict):
        return place.deserialize(copy.deepcopy(value))
    if value not in _AS_THEY_ARE:
        place.get(value)  # Keras finds names itself; this raises where it would not
    return value
