"""Models that were never built: the weights that their first call will make are not there, and cannot be saved."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from types import FunctionType
from typing import Any, NamedTuple

from ckptflow.format.words import some_of
from ckptflow.state.children import name_of
from ckptflow.state.configs import owner_of
from ckptflow.state.leaves import Leaf
from ckptflow.state.private.kerases import layers_in
from ckptflow.state.tree import RESERVED_PREFIX, Tree
from ckptflow.state.weights import weights_of

_SHOWN = 5
_COMPILES = ("loss_tracker", "compile_metrics", "metrics")  # the metrics that `compile` makes; the last of tf_keras
_SEED = "seed_generator_state"  # what Keras 3 calls the variable of a SeedGenerator


class Unbuilt(NamedTuple):
    """A model that is not built, and what of it waits, in words."""

    model: str
    layers: str


def find_unbuilt(tree: Tree) -> list[Unbuilt]:
    """The outermost models that are not built and in which a layer will make weights: its `build` calls `add_weight`.

    Not those that have none to make, nor what has no `build` that tells: a model may hold its state in variables of
    TensorFlow, in tables or in metrics alone, and never be built.
    """
    found = []
    for path, model in _outermost(tree):
        with contextlib.suppress(Exception):  # whatever a property of the user's own raises: then nothing tells
            waiting = [] if model.built else [layer for layer in layers_in(model) if _waits(layer)]
            if waiting:
                names = [f"{name_of(layer)} ({type(layer).__name__})" for layer in waiting]
                found.append(Unbuilt(f"{path} ({type(model).__name__})", some_of(names, _SHOWN)))
    return found


def find_empty(tree: Tree) -> list[str]:
    """The outermost models with an optimizer that have no weight and nothing else of value, built or not.

    They may have none to make, or make some in a way that no code tells before it runs. An optimizer beside them may be
    theirs if the state has nothing else.
    """
    owners = {id(owner_of(node, tree)) for node in tree.optimizers.values()}
    owning = [f"{path}/" for path, model in tree.models.items() if id(model) in owners]
    is_all_empty = bool(owners) and not has_values(tree)
    return [
        f"{path} ({type(model).__name__})"
        for path, model in _outermost(tree)
        if (is_all_empty or any(each.startswith(f"{path}/") for each in owning))
        and not weights_of(model)
        and not has_values(tree, path)
    ]


def has_values(tree: Tree, path: str = "") -> bool:
    """Whether the state, or what it has at `path`, holds anything that a job may have been run for, so that what waits
    may be what it does not use. Not what is there before the first batch: optimizers, `compile`'s metrics, seeds,
    counters."""
    optimizers = tuple(f"{path}/" for path in tree.optimizers)
    metrics = tuple(f"{path}/{name}/" for path in tree.models for name in _COMPILES)
    apart = (RESERVED_PREFIX, *optimizers, *metrics)

    def is_there(*names: str) -> bool:
        return not path or any(f"{name}/".startswith(f"{path}/") for name in names)

    def is_value(leaf: Leaf) -> bool:
        is_counter = leaf.shape == () and leaf.tf_dtype.is_integer
        is_seed = getattr(tree.variables.get(leaf.name), "name", "") == _SEED
        return not (is_counter or is_seed or leaf.name.startswith(apart)) and is_there(leaf.name, *leaf.aliases)

    return any(is_there(name) and not name.startswith(RESERVED_PREFIX) for name in tree.python) or any(
        map(is_value, tree.leaves)
    )


def _outermost(tree: Tree) -> Iterator[tuple[str, Any]]:
    for path, model in tree.models.items():
        if not any(path.startswith(f"{above}/") for above in tree.models):
            yield path, model


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
