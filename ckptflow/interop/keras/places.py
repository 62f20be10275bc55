"""Where Keras puts each variable of a model in a weights file: its place, as shape and as the variable itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckptflow.interop.keras.hdf5 import Stored
from ckptflow.interop.untrusted.keras_trust import Framework
from ckptflow.state.kinds import raw_variable
from ckptflow.state.private.kerases import INNER_OPTIMIZERS, OWN_VARIABLES, layers_in, of
from ckptflow.state.private.tf_keras import LAYERS_OF_2_13
from ckptflow.state.tree import walk


@dataclass(frozen=True, slots=True)
class Places:
    """Where Keras would put a model's variables in a `.weights.h5`, each with its shape, dtype and, where it is one,
    itself; and the layers and optimizers, by the places that they begin with."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    variables: dict[str, Any]
    layers: dict[str, Any]
    optimizers: dict[str, Any]


def shapes_of(stored: Iterable[Stored]) -> dict[str, tuple[int, ...]]:
    """The shape of each place of a weights file, by today's names."""
    return {plain(each.path): each.shape for each in stored}


def plain(path: str) -> str:
    """A place in a weights file by today's name."""
    return path.replace(LAYERS_OF_2_13, "layers") if path.startswith(LAYERS_OF_2_13) else path


def places_of(model: Any, framework: Framework) -> Places:
    """The places of a model. Copies no more than one variable."""
    optimizers = [node.optimizer for node in walk({"model": model}).optimizers.values()]
    inner = [vars(optimizer).get(name) for optimizer in optimizers for name in INNER_OPTIMIZERS]
    known = {id(each): each for each in (*layers_in(model), *optimizers, *inner)}
    recorder = _recorder(of(framework).store_class())
    visited = _Visited(recorder, known)
    of(framework).save_state(model, recorder, visited)
    variables = {
        place: variable
        for place, shape in recorder.found.items()
        if (variable := visited.variables.get(place)) is not None and shape_of(variable) == shape
    }
    return Places(recorder.found, recorder.dtypes, variables, visited.layers, visited.optimizers)


def names_by_place(places: Places, state: Mapping[str, Any], there: Mapping[str, str | None]) -> dict[str, str]:
    """The name in a checkpoint of `state` of each variable of a model in it, by its place in a file, where its layers
    are `there`."""
    names = state_names(state)
    found = {}
    for place, variable in places.variables.items():
        name = names.get(id(raw_variable(variable)))
        layer, _, number = place.rpartition("/vars/")
        other = there.get(layer, layer)
        if name is not None and other is not None:
            found[f"{other}/vars/{number}".strip("/")] = name
    return found


def state_names(state: Mapping[str, Any]) -> dict[int, str]:
    return {id(raw_variable(variable)): name for name, variable in walk(state).variables.items()}


def shape_of(value: Any) -> tuple[int, ...]:
    shape = getattr(value, "shape", None)
    return tuple(np.shape(value) if shape is None else map(int, shape))


def dtype_name(value: Any) -> str:
    """The dtype of a variable of either Keras, or of an array, by TensorFlow's name."""
    dtype = value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype
    name = str(getattr(dtype, "name", dtype))
    return "string" if name in ("object", "str") else name


class _Visited(set[int]):
    """What Keras notes of the objects that it has saved. It hands over values alone; this tells whose they are."""

    def __init__(self, recorder: Any, known: Mapping[int, Any]) -> None:
        super().__init__()
        self._recorder, self._known = recorder, known
        self.variables: dict[str, Any] = {}
        self.layers: dict[str, Any] = {}
        self.optimizers: dict[str, Any] = {}

    def add(self, key: int) -> None:
        super().add(key)
        obj = self._known.get(key)
        if obj is None:
            return
        place = self._recorder.at.removesuffix("vars").rstrip("/")
        if hasattr(obj, "apply_gradients"):
            self.optimizers[place] = obj
            variables = list(obj.variables)
        else:  # as a layer writes its own
            self.layers[place] = obj
            variables = [each for name in OWN_VARIABLES for each in vars(obj).get(name, ())]
        for number, variable in enumerate(variables):
            self.variables[f"{self._recorder.at}/{number}"] = variable


def _recorder(base: type) -> Any:
    """What takes the place of the file when a model is saved."""

    class Recorder(base):  # type: ignore[misc]
        def __init__(self) -> None:
            self.found: dict[str, tuple[int, ...]] = {}
            self.dtypes: dict[str, str] = {}
            self.at = ""

        def __bool__(self) -> bool:
            return True

        def make(self, path: str, metadata: Any = None) -> Any:
            self.at = f"{path}/vars" if path else "vars"
            return self

        def __setitem__(self, key: str, value: Any) -> None:
            self.found[f"{self.at}/{key}"] = shape_of(value)  # values are not kept
            self.dtypes[f"{self.at}/{key}"] = dtype_name(value)

    return Recorder()
