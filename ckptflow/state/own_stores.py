"""What an object writes into Keras's files by code of the user's own: a checkpoint has its variables, and not that."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np

from ckptflow.format.words import some_of
from ckptflow.state.kinds import Kind, is_on_mesh, is_resource_variable, kind_of, overrides, raw_variable
from ckptflow.state.leaves import host_array

logger = logging.getLogger("ckptflow")

_STORE, _ASSETS = "save_own_variables", "save_assets"
_SHOWN = 5


def has_own_store(obj: Any) -> bool:
    """Whether a class of the user's own says what Keras writes of an object into a file."""
    return overrides(obj, _STORE) or overrides(obj, _ASSETS)


def what_is_lost(objects: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """By path, of objects with such a class: what it writes that is no variable, as far as it can be asked now."""
    found: dict[str, str] = {}
    for path, obj in objects:
        if overrides(obj, _ASSETS):
            found[path] = f"what its {_ASSETS}() writes"
        elif keys := _keys(path, obj):
            found[path] = f"what its {_STORE}() writes under {some_of(keys, _SHOWN)}, in no variable,"
    return found


def _keys(path: str, obj: Any) -> list[str]:
    """The keys under which its store gets what is neither a variable nor the value of one."""
    store: dict[str, Any] = {}
    try:
        obj.save_own_variables(store)
        values = {key: value for key, value in store.items() if kind_of(value) is not Kind.VARIABLE}
        if not values:
            return []
        stored = {id(raw_variable(value)) for key, value in store.items() if key not in values}
        listed = obj.variables() if callable(obj.variables) else obj.variables
        raw = [raw_variable(each) for each in listed if kind_of(each) is Kind.VARIABLE]
        # A variable's value serves once, and not where the variable is stored as well: zeros are equal to all zeros.
        # Only what is plain is read: elsewhere that may be a collective.
        plain = [each for each in raw if id(each) not in stored and is_resource_variable(each) and not is_on_mesh(each)]
        left = [host_array(each.read_value()) for each in plain]
        return [key for key, value in values.items() if not _take(left, np.asarray(value))]
    except Exception as error:  # a layer that is not built yet, or whatever the user's own code raises
        logger.debug("%s.%s() cannot be asked: %s: %s", path, _STORE, type(error).__name__, str(error))
        return []


def _take(values: list[Any], value: Any) -> bool:
    for number, each in enumerate(values):
        if each.shape == value.shape and each.dtype == value.dtype and each.tobytes() == value.tobytes():
            del values[number]
            return True
    return False
