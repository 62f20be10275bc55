"""The state of an optimizer in a file of Keras's: does it fit a live optimizer, and how it gets there.

Keras keeps slots by their order alone, so that they fit as a whole or not at all: of a model whose layers were frozen
after it was compiled, or of another optimizer, a part would go to the wrong variables. The weights come either way.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from ckptflow.errors import CorruptCheckpointError
from ckptflow.interop import keras_hdf5
from ckptflow.interop.keras_allowed import Framework, keras_module
from ckptflow.state.kinds import Kind, kind_of

logger = logging.getLogger("ckptflow")

Shapes = Mapping[str, tuple[int, ...]]

PLACE = "optimizer/"  # of its variables in a weights file
_NOT_COMPILED = "The model is not compiled; to have the optimizer's state, hand the model over, compiled (model=)"
_SCALING = "LossScaleOptimizer"
_OF_NEW = "Custom>"  # before the class in what tf_keras writes into HDF5, but for its optimizers of old
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


def class_in(described: Any) -> str:
    """The name of the class that a config has for an optimizer, of the inner one where that scales losses; or ""."""
    while isinstance(described, dict):
        name, config = described.get("class_name"), described.get("config")
        described = config.get("inner_optimizer") if isinstance(config, dict) and _SCALING in str(name) else name
    return described if isinstance(described, str) else ""


def class_in_weights(file: h5py.File) -> str:
    """The same for a weights file of Keras 3, which has the optimizer's name: its class's, if it was given no other."""
    place = PLACE
    while f"{place}inner_optimizer" in file:
        place += "inner_optimizer/"
    group = file.get(f"{place}vars")
    name = keras_hdf5.text_of(group, "name") if isinstance(group, h5py.Group) else None
    plain = re.sub(r"_\d+$", "", name or "").replace("_", "")
    found = _public_classes("keras").get(plain)
    return "" if found is None or _SCALING in found.__name__ else found.__name__


def _is_of_class(optimizer: Any, saved: str) -> bool:
    """Whether an optimizer keeps its slots as one of the class that a file names: it is that, or one above or below."""
    ours = type(_inner(optimizer))
    public, name = _public_classes(_framework_of(optimizer)), saved.rpartition(">")[2].casefold()
    return name in {each.__name__.casefold() for each in ours.__mro__} or issubclass(public.get(name, object), ours)


def _inner(optimizer: Any) -> Any:
    while _SCALING in type(optimizer).__name__:
        optimizer = optimizer.inner_optimizer
    return optimizer


def _framework_of(optimizer: Any) -> Framework:
    return "tf_keras" if kind_of(optimizer) is Kind.TF_KERAS_OPTIMIZER else "keras"


def _public_classes(framework: Framework) -> dict[str, type]:
    """A Keras's own optimizers by their names in small letters."""
    found = vars(keras_module(framework).optimizers)
    return {name.casefold(): each for name, each in found.items() if isinstance(each, type)}


def takes_state(path: str, optimizer: Any, there: Shapes, wanted: Shapes, saved: str = "") -> bool:
    """Whether a live optimizer takes the state that a file has, `there`, of the class `saved`, if it is known; why not
    is logged."""
    if optimizer is None:
        if there:
            logger.warning("%s holds an optimizer's state, and the model is not compiled: it is not taken", path)
        return False
    if there == wanted and saved and has_slots(there) and not _is_of_class(optimizer, saved):
        logger.warning(
            "%s: the state of its optimizer is of %s and is not taken. The model's %s is as it was made; "
            "optimizer=False (--no-optimizer) chooses that",
            path,
            saved.removeprefix(_OF_NEW),
            type(optimizer).__name__,
        )
        return False
    if there == wanted:
        return True
    if has_slots(there):
        logger.warning(
            "%s: the state of its optimizer does not fit that of the model and is not taken: %s. The model's %s is as "
            "it was made; optimizer=False (--no-optimizer) chooses that",
            path,
            _difference(there, wanted),
            type(optimizer).__name__,
        )
    else:
        logger.warning("%s holds no optimizer's state: the model's optimizer is as it was made", path)
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
        "its optimizer cannot be had from its config; where the class is yours, import the module that registers it "
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


def _class_in_legacy(file: h5py.File, path: str, optimizer: Any) -> str:
    """The class of the optimizer that the file holds; tf_keras's of old have the same names and another order."""
    training = keras_hdf5.json_of(keras_hdf5.text_of(file, "training_config") or "{}", "training_config", path)
    saved = class_in(training.get("optimizer_config"))
    inner, framework = _inner(optimizer), _framework_of(optimizer)
    is_public = saved.removeprefix(_OF_NEW).casefold() in _public_classes(framework)
    is_scaled = _SCALING in str(training.get("optimizer_config"))  # the inner one's class has no prefix then
    is_other = not is_scaled and saved.startswith(_OF_NEW) != hasattr(inner, "build")
    if framework == "tf_keras" and is_public and is_other:
        return f"{saved.removeprefix(_OF_NEW)} with its slots in another order"
    return saved


def set_legacy(path: str, optimizer: Any, file: h5py.File) -> bool:
    """Gives a built optimizer the state that an HDF5 file of a whole model holds, if it takes it; why not is logged.

    Raises `CorruptCheckpointError` where the file names a tensor that it has not.
    """
    stored = _stored_of(file, path)
    variables = variables_of(optimizer)
    if stored and not any(each.shape for each in stored.values()):  # counters alone: the slots are as they were, then
        variables = variables[: len(stored)]
    names = [*stored, *(f"number {number}" for number in range(len(stored), len(variables)))]
    wanted = {name: _shape_of(variable) for name, variable in zip(names, variables, strict=False)}
    there = {name: tuple(each.shape) for name, each in stored.items()}
    if not takes_state(path, optimizer, there, wanted, _class_in_legacy(file, path, optimizer)):
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
