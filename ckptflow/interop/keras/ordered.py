"""Weights in legacy HDF5 files, which lie there by an order, for a model that may have another one today."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import h5py

from ckptflow.format.offer import HINT, misfit_error
from ckptflow.format.words import some_of
from ckptflow.interop.keras import hdf5 as keras_hdf5
from ckptflow.interop.keras.called import NamedNow, warn_of_names
from ckptflow.interop.keras.hdf5 import dtype_of, narrowing, opened
from ckptflow.interop.keras.named import pairs_for_a_warm_start, pairs_of
from ckptflow.interop.keras.places import dtype_name, shape_of, state_names
from ckptflow.places.room import ensure_room
from ckptflow.places.shown_as import private_file
from ckptflow.state.kinds import is_tf_keras_model, raw_variable
from ckptflow.state.private.kerases import layers_in, of, own_variables
from ckptflow.state.private.tf_keras import weights_as_loaded

_OF_THE_MODEL = "top_level_model_weights"  # in a legacy file, those that are in no layer
_SHOWN = 20


def load_in_order(path: str, where: str, model: Any, *, hint: str = HINT) -> None:
    """Gives a built model all weights of a legacy file that was looked over, each to the variable whose it is.

    Raises `StateMismatchError` with all differences before a value is changed, also where the file does not tell whose
    a weight is.
    """
    with opened(path, where) as found:
        problems = _problems(found, where, model)
    if problems:
        raise misfit_error(where, problems, hint=hint)
    framework = "tf_keras" if is_tf_keras_model(model) else "keras"
    with _in_order_of(path, model) as ordered, opened(ordered, where) as found:
        try:
            of(framework).load_old_weights(_root_of(found), model)
        except ValueError as error:
            said = " ".join(str(error).split())[:1000]
            raise misfit_error(where, [said], is_changed=True, hint="") from error


def _problems(file: h5py.File, where: str, model: Any) -> list[str]:
    """What differs, weight by weight in the order of the layers, as Keras takes them from such a file."""
    root = _root_of(file)
    theirs, layers = _layers_with_weights(root), _with_weights(model)
    if len(theirs) != len(layers):
        shown = [some_of(names, _SHOWN) for names in (theirs, [layer.name for layer in layers])]
        return [f"it has {len(theirs)} layers with weights ({shown[0]}), and the model {len(layers)} ({shown[1]})"]
    found = pairs_of(theirs, layers)
    if found is None:
        pairs = zip(layers, theirs, strict=True)
        moved = [layer.name for layer, name in pairs if layer.name in theirs and layer.name != name]
        return [
            f"{name}: in another place among the layers of the file, not all of which the model has" for name in moved
        ]
    is_old = is_tf_keras_model(model)
    problems = []
    for name, layer in found:
        weights = _weights_for(root[name], layer)
        if weights is None:
            problems.append(
                f"{layer.name} is frozen in part, and the names in the file ({name}) do not tell whether it was when "
                "it was saved, by which Keras orders them: name its layers as they were named then"
            )
            continue
        try:
            there = _shapes_as_loaded(root, [root[name][weight] for weight in weights], layer, is_old)
        except ValueError as error:  # of another implementation, which Keras cannot turn into this one
            problems.append(f"{name}: {' '.join(str(error).split())[:300]}")
            continue
        wanted = [tuple(map(int, each.shape)) for each in (*layer.trainable_weights, *layer.non_trainable_weights)]
        if len(there) != len(wanted):
            problems.append(f"{name} has {len(there)} weights and has to have {len(wanted)}")
            continue
        problems += [
            f"{weight} is {list(shape)} and has to be {list(size)}"
            for weight, shape, size in zip(weights, there, wanted, strict=True)
            if shape != size
        ]
        variables = (*layer.trainable_weights, *layer.non_trainable_weights)
        dtypes = [dtype_of(root[name][weight], weight, where) for weight in weights]
        narrowed = map(narrowing, weights, dtypes, map(dtype_name, variables))
        problems += [text for text in narrowed if text is not None]
    if not problems:
        warn_of_names(where, map(_called, found))
    return problems


def _called(pair: tuple[str, Any]) -> NamedNow:
    name, layer = pair
    return name, layer.name, tuple(map(shape_of, (*layer.trainable_weights, *layer.non_trainable_weights)))


def _root_of(file: h5py.File) -> h5py.Group:
    return file["model_weights"] if "model_weights" in file and "layer_names" not in file.attrs else file


def _with_weights(model: Any) -> list[Any]:
    return [layer for layer in model.layers if layer.trainable_weights or layer.non_trainable_weights]


def _layers_with_weights(root: h5py.Group) -> list[str]:
    return [
        name for name in keras_hdf5.texts_of(root, "layer_names") if keras_hdf5.texts_of(root[name], "weight_names")
    ]


@contextlib.contextmanager
def _in_order_of(path: str, model: Any) -> Iterator[str]:
    """A legacy file of weights that fit a model, with each layer's in the order in which the model has them today: the
    file given, or a copy for as long as the block lasts. Keras reads no file that links to another."""
    with private_file("ckptflow-keras-", "ordered.h5", path) as ordered:
        yield ordered if _copy_in_order(path, model, ordered) else path


def _copy_in_order(path: str, model: Any, target: str) -> bool:
    """Writes that copy, and says whether the order is another one at all."""
    with opened(path, path) as source:
        root = _root_of(source)
        pairs = pairs_of(_layers_with_weights(root), _with_weights(model)) or []
        orders = {name: _weights_for(root[name], layer) or [] for name, layer in pairs}
        if [*orders] == _layers_with_weights(root) and all(
            weights == keras_hdf5.texts_of(root[name], "weight_names") for name, weights in orders.items()
        ):
            return False
        ensure_room(os.path.dirname(target), os.path.getsize(path))
        with h5py.File(target, "w", libver="latest") as out:  # takes lists of names of any length
            out.attrs.update({name: root.attrs[name] for name in ("backend", "keras_version") if name in root.attrs})
            out.attrs["layer_names"] = [name.encode() for name in orders]
            for name, weights in orders.items():
                group = out.create_group(name)
                group.attrs["weight_names"] = [weight.encode() for weight in weights]
                for weight in weights:
                    root.copy(root[name][weight], group, name=weight)
            if _OF_THE_MODEL in root:
                root.copy(root[_OF_THE_MODEL], out, name=_OF_THE_MODEL)
    return True


def _shapes_as_loaded(
    root: h5py.Group, datasets: list[h5py.Dataset], layer: Any, is_old: bool
) -> list[tuple[int, ...]]:
    """The shapes of a layer's weights once tf_keras has turned those of one implementation into those of another."""
    if not (is_old and any(kind in type(layer).__name__ for kind in ("LSTM", "GRU"))):
        return [tuple(each.shape) for each in datasets]
    version, backend = (keras_hdf5.text_of(root, name) for name in ("keras_version", "backend"))
    values = [each[()] for each in datasets]
    return [tuple(each.shape) for each in weights_as_loaded(layer, values, version or "1", backend)]


# For a warm start


def names_by_order(file: h5py.File, where: str, model: Any, state: Mapping[str, Any]) -> dict[str, str]:
    """The name in a checkpoint of `state` of each weight in a legacy file that has a counterpart in it, by its path."""
    names = state_names(state)
    root = _root_of(file)
    pairs = pairs_for_a_warm_start(_layers_with_weights(root), _with_weights(model))
    warn_of_names(where, map(_called, pairs))
    found: dict[str, str] = {}
    for stored_name, layer in pairs:
        variables = [*layer.trainable_weights, *layer.non_trainable_weights]
        weights = _weights_for(root[stored_name], layer)
        if weights and _is_converted(root[stored_name], weights, layer):
            continue
        for weight, variable in zip(weights or (), variables, strict=False):
            name = names.get(id(raw_variable(variable)))
            if name is not None:
                found[root[stored_name][weight].name.strip("/")] = name
    return found


def _weights_for(group: h5py.Group, layer: Any) -> list[str] | None:
    """The names of a layer's weights in a file of the legacy format, in the order of the layer's variables today; None
    where the file does not tell the order.

    Keras writes and reads what is trained first, so that in a model inside of another the order is another one when a
    part of it is frozen or no longer frozen, and Keras itself gives values of one shape to the wrong variables.
    """
    stored = keras_hdf5.texts_of(group, "weight_names")
    variables = [*layer.trainable_weights, *layer.non_trainable_weights]
    inside = layers_in(layer)
    if len(inside) < 2 or len(stored) != len(variables):
        return stored
    ours = [str(getattr(variable, "path", variable.name)) for variable in variables]
    for length in range(
        max(2, *(name.count("/") + 1 for name in ours)), 1, -1
    ):  # a model above is in one and not the other
        theirs, wanted = [_last(name, length) for name in stored], [_last(name, length) for name in ours]
        if len(set(theirs)) == len(theirs) and set(theirs) == set(wanted):
            return [stored[theirs.index(name)] for name in wanted]
    trained = [variable for each in inside for variable in own_variables(each, "trainable")]
    unfrozen = [*trained, *(variable for each in inside for variable in own_variables(each, "non_trainable"))]
    is_one_order = [*map(id, unfrozen)] == [*map(id, variables)]
    shapes = [[shape_of(variable) for variable in each] for each in (unfrozen, variables)]
    return stored if is_one_order or shapes[0] != shapes[1] else None


def _is_converted(group: h5py.Group, weights: list[str], layer: Any) -> bool:
    """Whether these are of another implementation of a recurrent layer (cuDNN's), which orders values of one shape
    otherwise."""
    if not any(kind in type(each).__name__ for each in layers_in(layer) for kind in ("LSTM", "GRU")):
        return False
    wanted = [shape_of(variable) for variable in (*layer.trainable_weights, *layer.non_trainable_weights)]
    return [tuple(group[weight].shape) for weight in weights] != wanted


def _last(name: str, length: int) -> str:
    return "/".join(name.partition(":")[0].split("/")[-length:])
