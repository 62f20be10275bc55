"""Models that were never built: the weights that their first call will make are not there, and cannot be saved."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from types import FunctionType
from typing import Any, NamedTuple

import tensorflow as tf

from ckptflow.format.words import some_of
from ckptflow.state.children import name_of
from ckptflow.state.private.kerases import layers_in
from ckptflow.state.tree import Tree
from ckptflow.state.weights import weights_of

_SHOWN = 5


class Unbuilt(NamedTuple):
    """A model that is not built, and what of it waits, in words. `has_values`: it holds variables of another kind, or
    some layers have theirs, so that it may be used in a way of its own."""

    model: str
    layers: str
    has_values: bool


def find_unbuilt(tree: Tree) -> list[Unbuilt]:
    """The outermost models that are not built and in which a layer will make weights: its `build` calls `add_weight`.

    Not those that have none to make, nor what has no `build` that tells: a model may hold its state in variables of
    TensorFlow, in tables or in metrics alone, and never be built.
    """
    found = []
    for path, model in tree.models.items():
        if any(path.startswith(f"{above}/") for above in tree.models):
            continue
        with contextlib.suppress(Exception):  # whatever a property of the user's own raises: then nothing tells
            waiting = [] if model.built else [layer for layer in layers_in(model) if _waits(layer)]
            if waiting:
                names = [f"{name_of(layer)} ({type(layer).__name__})" for layer in waiting]
                has_values = bool(weights_of(model)) or _has_variables(tree, path)
                found.append(Unbuilt(f"{path} ({type(model).__name__})", some_of(names, _SHOWN), has_values))
    return found


def _waits(layer: Any) -> bool:
    """Not a layer with `adapt`: what it holds, it may have been given."""
    if layer.built or hasattr(layer, "adapt") or weights_of(layer):
        return False
    kind: Any = type(layer)
    return bool(_adds_weights(kind))


@functools.cache
def _adds_weights(cls: type) -> bool:
    """Whether the code of `build` names `add_weight`, or what it calls by `super` does."""
    for base in cls.__mro__:
        names = set(_names_in(vars(base).get("build")))
        if "add_weight" in names:
            return True
        if names and "super" not in names:
            return False
    return False


def _names_in(function: Any, depth: int = 4) -> Iterator[str]:
    """The names that a function uses, or one that it wraps: decorators of tf_keras do not tell which."""
    if isinstance(function, FunctionType) and depth:
        yield from function.__code__.co_names
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):  # nothing is in it yet
                yield from _names_in(cell.cell_contents, depth - 1)


def _has_variables(tree: Tree, path: str) -> bool:
    """Whether there are variables of TensorFlow below a model, besides those of its optimizer and its metrics."""
    apart = [f"{optimizer}/" for optimizer in tree.optimizers]
    metrics = {leaf.name for leaf in tree.leaves if leaf.metric}
    return any(
        isinstance(variable, tf.Variable)
        and name.startswith(f"{path}/")
        and name not in metrics
        and not any(name.startswith(above) for above in apart)
        for name, variable in tree.variables.items()
    )
