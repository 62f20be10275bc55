"""The check that no variable is lost without a word: what the frameworks list themselves, against what was found."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

from ckptflow.errors import UnsupportedStateError
from ckptflow.format.words import some_of
from ckptflow.state.kinds import Kind, kind_of, overrides

logger = logging.getLogger("ckptflow")

_SHOWN = 5
_LISTS = (
    *("variables", "trainable_variables", "non_trainable_variables"),
    *("weights", "trainable_weights", "non_trainable_weights"),
)


def family_of(obj: Any) -> Kind | None:
    """Of what kind an object is that lists all variables below it in `variables`, as far as they are of its kind."""
    kind = kind_of(obj)
    if kind in (Kind.KERAS3_LAYER, Kind.KERAS3_OPTIMIZER, Kind.TF_KERAS_LAYER, Kind.TF_KERAS_OPTIMIZER):
        return kind
    return Kind.TRACKABLE if isinstance(obj, tf.Module) else None


def check_listed(objects: Iterable[tuple[str, Any]], is_found: Callable[[Any], bool]) -> None:
    """Raises `UnsupportedStateError` for a variable that one of the objects, given with their paths, lists as its own
    and that was not found: behind a property, or in a container that is none of Python's."""
    for path, obj in objects:
        listed = _listed(path, obj)
        for each in listed:
            if kind_of(each) is not Kind.VARIABLE and not is_found(getattr(each, "__wrapped__", each)):
                proxy = f"{type(each).__module__}.{type(each).__qualname__}"
                raise UnsupportedStateError(
                    f"{path} holds the variable {each.name} as a {proxy}, which only passes for one: make the variable "
                    "itself an attribute as well"
                )
        lost = [each for each in listed if kind_of(each) is Kind.VARIABLE and not is_found(each)]
        if lost:
            shown = some_of([f"{variable.name} {tuple(variable.shape)}" for variable in lost], _SHOWN)
            raise UnsupportedStateError(
                f"{path}.variables lists what no attribute leads to, and what would be lost: {shown}. Make it an "
                f"attribute of {path}, or of an object below it, or put it into a list or a dict that is one"
            )


def has_own_list(obj: Any) -> bool:
    """Whether the user's own class says what the variables of an object are, which the list of none above it asks."""
    return any(overrides(obj, name) for name in _LISTS)


def _listed(path: str, obj: Any) -> list[Any]:
    found: list[Any] = []
    for name in (_LISTS[0], *(name for name in _LISTS[1:] if overrides(obj, name))):
        try:
            listed = getattr(obj, name)
            found += listed() if callable(listed) else listed
        except Exception as error:  # a model that is not built yet, or whatever a property of the user's own raises
            logger.debug("%s.%s lists nothing: %s: %s", path, name, type(error).__name__, str(error))
    return list({id(variable): variable for variable in found if _passes_for_variable(variable)}.values())


def _passes_for_variable(each: Any) -> bool:
    """As the frameworks see it, who ask for no more than `__class__`, which a proxy tells of what it holds."""
    return kind_of(each) is Kind.VARIABLE or isinstance(each, tf.Variable)
