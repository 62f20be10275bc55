"""The numbers in optimizers' configs that are values of variables, as learning rates are.

Such a value changes without any attribute being another, and to read it the program would wait for the accelerator. So
a save puts in what it has captured, later, where it writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptflow.format.values import to_json
from ckptflow.state.leaves import VariableLeaf
from ckptflow.state.private.kerases import INNER_OPTIMIZERS
from ckptflow.state.tree import Tree
from ckptflow.state.weights import optimizer_of

Place = tuple[str, ...]  # the keys that lead to it in a description


def places_of_numbers(tree: Tree, described: Mapping[str, Any]) -> dict[Place, int]:
    """Where in a description of the tree such numbers are, each with the index of what is captured of it."""
    indices = {
        spec.name: index
        for index, (spec, leaf) in enumerate(zip(tree.specs, tree.holders, strict=True))
        if isinstance(leaf, VariableLeaf) and not (spec.shape or spec.components)
    }
    paths = {id(node.optimizer): path for path, node in tree.optimizers.items()}
    tops: list[tuple[Any, Place]] = [(node.optimizer, (path, "config")) for path, node in tree.optimizers.items()]
    for path, model in tree.models.items() if paths else ():
        tops.append((optimizer_of(model), (path, "compile_config", "optimizer")))
    found: dict[Place, int] = {}
    for top, place in tops:
        optimizer = top
        while id(optimizer) in paths:
            config = _at(described, (*place, "config"))
            for key, value in config.items() if isinstance(config, dict) else ():
                index = indices.get(f"{paths[id(optimizer)]}/{key}")
                if index is not None and _is_number(value):
                    found[(*place, "config", key)] = index
            optimizer = next((vars(optimizer)[name] for name in INNER_OPTIMIZERS if name in vars(optimizer)), None)
            place = (*place, "config", "inner_optimizer")
    return found


def _is_number(told: Any) -> bool:
    return type(told) in (int, float) or (isinstance(told, dict) and told.keys() == {"$float"})


def with_numbers(described: dict[str, Any], numbers: Mapping[Place, Any]) -> dict[str, Any]:
    """A description with other numbers in these places. Shares the rest with the one given, which stays as it is."""
    for place, number in numbers.items():
        told = to_json(number, "/".join(place))
        if _at(described, place) != told:
            described = _with(described, place, told)
    return described


def _at(found: Any, place: Place) -> Any:
    for key in place:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _with(found: dict[str, Any], place: Place, value: Any) -> dict[str, Any]:
    first, *others = place
    return {**found, first: _with(found[first], tuple(others), value) if others else value}
