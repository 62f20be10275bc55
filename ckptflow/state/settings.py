"""What tells that a model's description is no longer the one that was taken: the plain attributes behind its configs.

Making configs takes long (0.1 s for 200 layers); looking at attributes takes about as long as seeing whether any object
was replaced, so that each save can do it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection
from enum import Enum
from itertools import chain
from types import FunctionType
from typing import Any

import numpy as np

from ckptflow.state import keras3, tf_keras
from ckptflow.state.kinds import Kind, kind_of
from ckptflow.state.light import MAX_DATA_BYTES
from ckptflow.state.private.kerases import SETTINGS
from ckptflow.state.private.tensorflow import OWN
from ckptflow.state.private.tf_keras import OF_GRAPHS
from ckptflow.state.tree import Tree
from ckptflow.state.unseen import attributes_of

logger = logging.getLogger("ckptflow")

_PLAIN = frozenset({type(None), bool, int, float, str, bytes, FunctionType, type})
_LIKE_PLAIN = (int, float, str, bytes, Enum)  # subclasses of those
_MAX_ITEMS = 1000  # of a list, set or dict, with what is in those in it: longer ones are data
_MAX_DEPTH = 5


def settings_of(tree: Tree) -> tuple[Any, ...]:
    """Equal for as long as nothing that the descriptions of the tree's models and optimizers hold was changed."""
    found: list[Any] = []
    for layer in tree.layers:
        _add_all(layer, _ignored(kind_of(layer) is Kind.TF_KERAS_LAYER), found, 0)
    for node in tree.optimizers.values():
        _add_all(node.optimizer, (), found, 0)
    return tuple(found)


def _add_all(obj: Any, ignored: Collection[str], found: list[Any], depth: int) -> None:
    for name, value in attributes_of(obj):
        if name not in ignored and not name.startswith(OWN):
            if type(value) in _PLAIN:
                found.append(value)
            else:
                _add(value, found, depth)


def _add(value: Any, found: list[Any], depth: int) -> None:
    """Raises nothing: what cannot be looked at is no setting."""
    first = len(found)
    try:
        _add_what_it_holds(value, found, depth)
    except Exception as error:  # from code of the user's own
        logger.debug("a %s cannot be looked at: %s: %s", type(value).__qualname__, type(error).__name__, str(error))
        del found[first:]


def _add_what_it_holds(value: Any, found: list[Any], depth: int) -> None:
    if type(value) in _PLAIN:
        found.append(value)
    elif isinstance(value, np.generic):  # before float, which np.float64 is
        found.append((value.dtype.str, value.tobytes()))
    elif isinstance(value, _LIKE_PLAIN):
        found.append((type(value), value))
    elif isinstance(value, np.ndarray):
        if value.nbytes <= MAX_DATA_BYTES:  # a larger one is in no config
            found.append((value.dtype.str, value.shape, value.tobytes()))
    elif depth > _MAX_DEPTH:
        return
    elif isinstance(value, (list, tuple, dict, set, frozenset)):
        first = len(found)
        if len(value) <= _MAX_ITEMS:
            in_order = sorted(value, key=hash) if isinstance(value, (set, frozenset)) else value
            for item in chain(in_order, value.values() if isinstance(value, dict) else ()):
                _add(item, found, depth + 1)
                if len(found) - first > 2 * _MAX_ITEMS:
                    del found[first:]
                    break
    elif kind_of(value) is None and (hasattr(type(value), "get_config") or hasattr(type(value), "serialize")):
        # A regularizer, a schedule, a loss; or what Keras keeps the arguments of compile() in.
        found.append(type(value))
        _add_all(value, (), found, depth + 1)


@functools.cache
def _ignored(is_tf_keras: bool) -> frozenset[str]:
    own = tf_keras.own_attributes() if is_tf_keras else keras3.own_attributes()
    return (own | OF_GRAPHS) - SETTINGS
