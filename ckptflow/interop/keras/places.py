"""Where Keras puts each variable of a model in a weights file: its place, as shape and as the variable itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from ckptflow.interop.keras import hdf5 as keras_hdf5
from ckptflow.interop.keras.called import warn_of_names
from ckptflow.interop.untrusted.keras_trust import Framework
from ckptflow.state.kinds import raw_variable
from ckptflow.state.private.kerases import INNER_OPTIMIZERS, OWN_VARIABLES, layers_in, of, own_variables
from ckptflow.state.tree import walk


def places_of(model: Any, framework: Framework) -> dict[str, tuple[int, ...]]:
    """Where Keras would put each variable of a model in a `.weights.h5`, and its shape. Copies no more than one."""
    return {place: shape for place, (shape, _) in _record(model, framework).items()}


def called_by_place(model: Any, framework: Framework) -> dict[str, str]:
    """What each layer with variables is called, by their place; tf_keras does not tell."""
    recorder = _recorder(of(framework).store_class())
    of(framework).save_state(model, recorder, set())
    return dict(recorder.called)


def names_by_place(model: Any, framework: Framework, state: Mapping[str, Any]) -> dict[str, str]:
    """The name in a checkpoint of `state` of each variable of a model in it, by its place in a `.weights.h5`."""
    names = _names(state)
    places = {place: variable for place, (_, variable) in _record(model, framework).items() if variable is not None}
    found = {place: names.get(id(raw_variable(variable))) for place, variable in places.items()}
    return {place: name for place, name in found.items() if name is not None}


def names_by_order(file: h5py.File, model: Any, state: Mapping[str, Any], where: str) -> dict[str, str]:
    """The same for a file of the legacy format: by the order of the layers where there are as many of them, as Keras
    takes them, else by the layers' names."""
    names = _names(state)
    root = file["model_weights"] if "model_weights" in file and "layer_names" not in file.attrs else file
    stored = [
        name for name in keras_hdf5.texts_of(root, "layer_names") if keras_hdf5.texts_of(root[name], "weight_names")
    ]
    layers = [layer for layer in model.layers if layer.trainable_weights or layer.non_trainable_weights]
    if len(stored) == len(layers):
        pairs = list(zip(stored, layers, strict=True))
    else:
        pairs = [(layer.name, layer) for layer in layers if layer.name in stored]
    shapes = [tuple(map(_shape_of, (*layer.trainable_weights, *layer.non_trainable_weights))) for _, layer in pairs]
    called = zip(pairs, shapes, strict=True)
    warn_of_names(where, [(name, layer.name, own) for (name, layer), own in called])
    found: dict[str, str] = {}
    for stored_name, layer in pairs:
        variables = [*layer.trainable_weights, *layer.non_trainable_weights]
        weights = weights_for(root[stored_name], layer)
        if weights and _is_converted(root[stored_name], weights, layer):
            continue
        for weight, variable in zip(weights or (), variables, strict=False):
            name = names.get(id(raw_variable(variable)))
            if name is not None:
                found[root[stored_name][weight].name.strip("/")] = name
    return found


def weights_for(group: h5py.Group, layer: Any) -> list[str] | None:
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
    for shorten in (_plain, _last_two):
        theirs, wanted = [shorten(name) for name in stored], [shorten(name) for name in ours]
        if len(set(theirs)) == len(theirs) and set(theirs) == set(wanted):
            return [stored[theirs.index(name)] for name in wanted]
    trained = [variable for each in inside for variable in own_variables(each, "trainable")]
    unfrozen = [*trained, *(variable for each in inside for variable in own_variables(each, "non_trainable"))]
    is_one_order = [*map(id, unfrozen)] == [*map(id, variables)]
    shapes = [[_shape_of(variable) for variable in each] for each in (unfrozen, variables)]
    return stored if is_one_order or shapes[0] != shapes[1] else None


def _is_converted(group: h5py.Group, weights: list[str], layer: Any) -> bool:
    """Whether these are of another implementation of a recurrent layer (cuDNN's), which orders values of one shape
    otherwise."""
    if not any(kind in type(each).__name__ for each in layers_in(layer) for kind in ("LSTM", "GRU")):
        return False
    wanted = [_shape_of(variable) for variable in (*layer.trainable_weights, *layer.non_trainable_weights)]
    return [tuple(group[weight].shape) for weight in weights] != wanted


def _plain(name: str) -> str:
    return name.partition(":")[0]


def _last_two(name: str) -> str:
    return "/".join(_plain(name).split("/")[-2:])


def _names(state: Mapping[str, Any]) -> dict[int, str]:
    return {id(raw_variable(variable)): name for name, variable in walk(state).variables.items()}


def _record(model: Any, framework: Framework) -> dict[str, tuple[tuple[int, ...], Any]]:
    """(shape, variable or None) of each place: what is written where the file would be."""
    optimizer = getattr(model, "optimizer", None)
    inner = [vars(optimizer).get(name) for name in INNER_OPTIMIZERS] if optimizer is not None else []
    known = {id(each): each for each in (*layers_in(model), optimizer, *inner)}
    recorder = _recorder(of(framework).store_class())
    visited = _Visited(recorder, known)
    of(framework).save_state(model, recorder, visited)
    found = {}
    for place, shape in recorder.found.items():
        variable = visited.variables.get(place)
        found[place] = (shape, variable if variable is not None and _shape_of(variable) == shape else None)
    return found


def _shape_of(value: Any) -> tuple[int, ...]:
    shape = getattr(value, "shape", None)
    return tuple(np.shape(value) if shape is None else map(int, shape))


class _Visited(set[int]):
    """What Keras notes of the objects that it has saved. It hands over values alone; this tells whose they are."""

    def __init__(self, recorder: Any, known: Mapping[int, Any]) -> None:
        super().__init__()
        self._recorder, self._known = recorder, known
        self.variables: dict[str, Any] = {}

    def add(self, key: int) -> None:
        super().add(key)
        obj = self._known.get(key)
        if obj is None:
            return
        if hasattr(obj, "apply_gradients"):
            variables = list(obj.variables)
        else:  # as a layer writes its own
            variables = [each for name in OWN_VARIABLES for each in vars(obj).get(name, ())]
        for number, variable in enumerate(variables):
            self.variables[f"{self._recorder.at}/{number}"] = variable


def _recorder(base: type) -> Any:
    """What takes the place of the file when a model is saved."""

    class Recorder(base):  # type: ignore[misc]
        def __init__(self) -> None:
            self.found: dict[str, tuple[int, ...]] = {}
            self.called: dict[str, str] = {}
            self.at = ""

        def __bool__(self) -> bool:
            return True

        def make(self, path: str, metadata: Any = None) -> Any:
            self.at = f"{path}/vars" if path else "vars"
            if metadata:
                self.called[self.at] = str(metadata["name"])
            return self

        def __setitem__(self, key: str, value: Any) -> None:
            self.found[f"{self.at}/{key}"] = _shape_of(value)  # values are not kept

    return Recorder()
