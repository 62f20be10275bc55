"""The state of an optimizer in a file of Keras's: does it fit a live optimizer, and how it gets there.

Keras keeps slots by their order alone, so that they fit as a whole or not at all: of a model whose layers were frozen
after it was compiled, or of another optimizer, a part would go to the wrong variables. The weights come either way.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from ckptflow.errors import CorruptCheckpointError
from ckptflow.interop.keras import hdf5 as keras_hdf5
from ckptflow.interop.keras.described import (
    COMPILED,
    Described,
    described_at,
    difference,
    differing_class,
    is_name_of_optimizer,
)
from ckptflow.interop.keras.hdf5 import Stored, narrowing
from ckptflow.interop.keras.places import Places, dtype_name, plain, shapes_of
from ckptflow.interop.untrusted.keras_allowed import Framework
from ckptflow.state.kinds import is_tf_keras_model

logger = logging.getLogger("ckptflow")

Shapes = Mapping[str, tuple[int, ...]]

_NOT_COMPILED = "The model is not compiled; to have the optimizer's state, hand the model over, compiled (model=)"
_GROUP = "optimizer_weights"  # of whole models in HDF5
_CALLED_SO = re.compile(r"opt(s|im[a-z]*)?\d*(_|$)", re.IGNORECASE)  # d_opt, optimizer_2; not optical_flow


def optimizers_at(stored: Iterable[Stored], model: Any, places: Places, described: Described) -> dict[str, Any]:
    """Where a weights file or a model has optimizers, each with the live one or None: the one that the model is
    compiled with, and those that it or a layer of it holds. Where the model has nothing, `called_optimizers` tells.
    """
    found = {COMPILED: getattr(model, "optimizer", None), **places.optimizers}
    for place in called_optimizers(stored, described):
        if place not in places.layers:
            found.setdefault(place, None)
    return {place: live for place, live in found.items() if not is_at(place, found.keys() - {place})}


def called_optimizers(stored: Iterable[Stored], described: Described) -> list[str]:
    """Where a weights file has optimizers as far as it tells without a model: where the first variable is a whole
    number, as the count of steps is, and the attribute or the object is called as an optimizer. A layer may count too.
    """
    return [COMPILED, *(place for place in _counting(stored) if _is_called_so(place, described))]


def _is_called_so(place: str, described: Described) -> bool:
    attribute = place.rpartition("/")[2]  # or, in a list, the class
    names = (attribute, described.called.get(place, ""))
    return bool(_CALLED_SO.search(attribute)) or any(is_name_of_optimizer(name, "keras") for name in names)


def _counting(stored: Iterable[Stored]) -> list[str]:
    """The places whose first variable is a whole number, and that are not among the layers of a model."""
    found = []
    for each in stored:
        place, _, number = plain(each.path).rpartition("/vars/")
        is_count = number == "0" and not each.shape and each.dtype.startswith(("int", "uint"))
        if is_count and not (f"/{place}".rpartition("/")[0].endswith("/layers") or is_of_metrics(f"{place}/")):
            found.append(place)
    return found


def is_of_metrics(name: str) -> bool:
    """Whether a place in a weights file is a metric's, of the model or of one within."""
    return "/metrics/" in f"/{name}"


def is_at(name: str, places: Iterable[str]) -> bool:
    """Whether a place in a weights file is below one of these."""
    return name.startswith(tuple(f"{place}/" for place in places))


def not_taken(
    path: str,
    model: Any,
    optimizers: Mapping[str, Any],
    places: Places,
    described: Described,
    stored: Sequence[Stored],
    narrowed: Mapping[str, str],
    other: str | None = None,
) -> dict[str, Any]:
    """Those of `optimizers` that do not take the state that a weights file has for them; why not is logged.

    `optimizers` are as of `optimizers_at`, `described` is what the file says, `narrowed` what a variable could not hold
    as it is; `other` as for `takes_state`.
    """
    framework: Framework = "tf_keras" if is_tf_keras_model(model) else "keras"
    left = {}
    for place, live in optimizers.items():
        there, wanted = places_in(shapes_of(stored), place), places_in(places.shapes, place)
        why = None
        if live is not None and there:
            if place == COMPILED:
                why = difference(described, model, has_slots=has_slots(there))
            else:
                one = described_at(place, described)
                why = differing_class(one, live, framework, has_slots=has_slots(there))
            why = why or other or next((text for name, text in narrowed.items() if name in there), None)
        if not takes_state(path if place == COMPILED else f"{path}, {place}", live, there, wanted, why):
            left[place] = live
    return left


def places_in(shapes: Shapes, place: str = COMPILED) -> dict[str, tuple[int, ...]]:
    """Those of the places of a weights file that are an optimizer's, in the order of their numbers."""
    names = sorted((name for name in shapes if is_at(name, [place])), key=lambda name: (len(name), name))
    return {name: shapes[name] for name in names}


def has_slots(shapes: Shapes) -> bool:
    """Whether an optimizer was built when it was saved. Before that it has counters alone."""
    return any(shapes.values())


def variables_of(optimizer: Any) -> list[Any]:
    """An optimizer's variables in the order in which Keras writes them; none where there is no optimizer."""
    variables = getattr(optimizer, "variables", ())
    return list(variables() if callable(variables) and not isinstance(variables, list) else variables)


def takes_state(path: str, optimizer: Any, there: Shapes, wanted: Shapes, other: str | None = None) -> bool:
    """Whether a live optimizer takes the state that a file has, `there`: all of it, counters too, or none; why not is
    logged.

    `other`: how it is known to be another's, whatever its shapes are.
    """
    if optimizer is None:
        if there:
            logger.warning("%s has an optimizer's state, but the model is not compiled: it is not restored", path)
        return False
    if there == wanted and not other:
        return True
    if there:
        logger.warning(
            "%s: the state of its optimizer does not fit that of the model and is not taken: %s. The model's %s is as "
            "it was made; optimizer=False (--no-optimizer) chooses that",
            path,
            _difference(there, wanted) if there != wanted else other,
            type(optimizer).__name__,
        )
    else:
        logger.warning("%s has no optimizer state: the model's optimizer keeps its initial state", path)
    return False


def drop_if_several(path: str, model: Any) -> None:
    """Takes away a `MultiOptimizer` whose state does not fit: it would train variables by other optimizers than before.

    Which one is for which variable goes by the paths of variables, and in a model that was loaded they can be others.
    """
    if "MultiOptimizer" in type(model.optimizer).__name__:
        model.optimizer = None
        logger.warning("%s: which of its optimizers is for which variable is not known. %s", path, _NOT_COMPILED)


def warn_of_none(path: str, *, is_named: bool) -> None:
    """Says why a model has no optimizer though its file holds the state of one. An optimizer is never made up."""
    why = (
        "its optimizer cannot be created from its config; if the class is yours, import the module that registers it "
        "(--import)"
        if is_named
        else "its config names no optimizer (Keras 3 takes it out of a model that is saved as .h5)"
    )
    logger.warning("%s: %s. %s", path, why, _NOT_COMPILED)


def _difference(there: Shapes, wanted: Shapes) -> str:
    """The first of what differs, in the model's order."""
    name = next(name for name in (*wanted, *there) if there.get(name) != wanted.get(name))
    sides = [f"{list(shapes[name])}" if name in shapes else "not there" for shapes in (there, wanted)]
    return (
        f"{len(there)} tensors in the file, {len(wanted)} in the model, of which the first that differs is {name}: "
        f"{sides[0]} in the file, {sides[1]} in the model"
    )


# In HDF5 files of whole models


def set_legacy(
    path: str, model: Any, file: h5py.File, described: Described, *, other: str | None = None, is_own: bool = False
) -> bool:
    """Gives a model's built optimizer the state that an HDF5 file of a whole model holds, if it takes it; why not is
    logged.

    `described` is what the file says of it; `other` is as for `takes_state`. `is_own`: the optimizer was made by the
    file's own config, so that counters alone are its own, whatever slots it has today.
    Raises `CorruptCheckpointError` where the file names a tensor that it has not.
    """
    stored = _stored_of(file, path)
    there = {name: tuple(each.shape) for name, each in stored.items()}
    variables = variables_of(model.optimizer)
    are_counters = bool(stored) and not has_slots(there)
    if is_own and are_counters:
        variables = variables[: len(stored)]
    names = [*stored, *(f"number {number}" for number in range(len(stored), len(variables)))]
    wanted = {name: _shape_of(variable) for name, variable in zip(names, variables, strict=False)}
    narrowed = (
        narrowing(name, keras_hdf5.dtype_of(each, name, path), dtype_name(variable))
        for (name, each), variable in zip(stored.items(), variables, strict=False)
    )
    if not (is_own and are_counters):  # which were numbers of other types once
        other = difference(described, model, has_slots=not are_counters) or other
        other = other or next((text for text in narrowed if text is not None), None)
    if not takes_state(path, model.optimizer, there, wanted, other):
        return False
    for variable, dataset in zip(variables, stored.values(), strict=True):
        variable.assign(np.asarray(dataset[()]))
    return True


def _stored_of(file: h5py.File, path: str) -> dict[str, h5py.Dataset]:
    """An optimizer's datasets in their order, by their names."""
    if _GROUP not in file:
        return {}
    group = file[_GROUP]
    names = keras_hdf5.texts_of(group, "weight_names")
    missing = [name for name in names if not isinstance(group.get(name), h5py.Dataset)]
    if missing:
        raise CorruptCheckpointError(f"{path}: its optimizer's {missing[0]} is named and not there")
    return {name: group[name] for name in names}


def _shape_of(variable: Any) -> tuple[int, ...]:
    return tuple(map(int, variable.shape))
