"""The state of an optimizer in a file of Keras's: does it fit a live optimizer, and how it gets there.

Keras keeps slots by their order alone, so that they fit as a whole or not at all: of a model whose layers were frozen
after it was compiled, or of another optimizer, a part would go to the wrong variables. The weights come either way.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from ckptflow.errors import CorruptCheckpointError
from ckptflow.interop.keras import hdf5 as keras_hdf5
from ckptflow.interop.keras.described import PLACE
from ckptflow.interop.keras.hdf5 import narrowing
from ckptflow.interop.keras.places import dtype_name

logger = logging.getLogger("ckptflow")

Shapes = Mapping[str, tuple[int, ...]]

_NOT_COMPILED = "The model is not compiled; to have the optimizer's state, hand the model over, compiled (model=)"
_GROUP = "optimizer_weights"  # of whole models in HDF5


def places_in(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Those of the places of a weights file that are an optimizer's, in the order of their numbers."""
    names = sorted((name for name in shapes if name.startswith(PLACE)), key=lambda name: (len(name), name))
    return {name: shapes[name] for name in names}


def has_slots(shapes: Shapes) -> bool:
    """Whether an optimizer was built when it was saved. Before that it has counters alone."""
    return any(shapes.values())


def variables_of(optimizer: Any) -> list[Any]:
    """An optimizer's variables in the order in which Keras writes them; none where there is no optimizer."""
    variables = getattr(optimizer, "variables", ())
    return list(variables() if callable(variables) and not isinstance(variables, list) else variables)


def takes_state(path: str, optimizer: Any, there: Shapes, wanted: Shapes, other: str | None = None) -> bool:
    """Whether a live optimizer takes the state that a file has, `there`; why not is logged.

    `other`: how it is known to be another's, whatever its shapes are.
    """
    if optimizer is None:
        if there:
            logger.warning("%s has an optimizer's state, but the model is not compiled: it is not restored", path)
        return False
    if there == wanted and not (other and has_slots(there)):
        return True
    if has_slots(there):
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


def set_legacy(path: str, optimizer: Any, file: h5py.File, other: str | None = None) -> bool:
    """Gives a built optimizer the state that an HDF5 file of a whole model holds, if it takes it; why not is logged.

    `other` is as for `takes_state`.
    Raises `CorruptCheckpointError` where the file names a tensor that it has not.
    """
    stored = _stored_of(file, path)
    variables = variables_of(optimizer)
    if stored and not any(each.shape for each in stored.values()):  # counters alone: the slots are as they were, then
        variables = variables[: len(stored)]
    names = [*stored, *(f"number {number}" for number in range(len(stored), len(variables)))]
    wanted = {name: _shape_of(variable) for name, variable in zip(names, variables, strict=False)}
    there = {name: tuple(each.shape) for name, each in stored.items()}
    narrowed = (
        narrowing(name, keras_hdf5.dtype_of(each, name, path), dtype_name(variable))
        for (name, each), variable in zip(stored.items(), variables, strict=False)
    )
    other = other or next((text for text in narrowed if text is not None), None)
    if not takes_state(path, optimizer, there, wanted, other):
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
