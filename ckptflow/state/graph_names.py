"""Names from an object graph alone, by the walk's own rules as far as the graph tells; and names found again by it."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from ckptflow.format.object_graph import VARIABLE, GraphNode, ObjectGraph, edges, slots_of, tensor_of, values_of
from ckptflow.state.children import clean, singular, strip_underscores
from ckptflow.state.walker import MAX_NAME_BYTES, path_of_slot

MAX_CHARACTERS = 64 * 2**20  # of all names together: a small graph can spell out very long ones
_MAX_ALIASES = 4
_OBJECTS, _OPTIMIZERS, _OF_OPTIMIZERS = range(3)  # the order in which names are given

_COUNTERS = frozenset({"_iterations", "iterations", "iter"})
_RATES = frozenset({"_variables", "_learning_rate", "learning_rate", "decay"})
_LAYER = re.compile(r"layer(_with_weights)?-\d+")
_OF_MODELS = frozenset({"_functional", "_operations", "_layers", "_tracked", "keras_api"})
# Their parts have the names that the walk gives them.
_PARTS = {("ITERATOR", "_STATE"): "position"}


def name_values(graph: ObjectGraph, prefix: str = "") -> dict[str, tuple[str, ...]]:
    """A name, and then aliases, for everything that the graph's values refer to.

    The same names as the walk gives where that follows TensorFlow's graph: breadth first, underscores stripped,
    optimizers last and their slots by their variables. The root's children are called as their edges, below `prefix` if
    there is one. Raises ValueError where the names would be too long.
    """
    return _Namer(graph, prefix).run()


def root_label(graph: ObjectGraph) -> str:
    """What the root is as an entry of a state: "model" or "optimizer"; "" where it only holds the entries."""
    labels = {label for label, _ in edges(graph.nodes[0])}
    is_object = any(number == 0 for label, number in edges(graph.nodes[0]) if label == "root")
    if _is_optimizer(graph.nodes[0]):
        return "optimizer"
    return "model" if is_object or labels & _OF_MODELS or any(map(_LAYER.fullmatch, labels)) else ""


def _is_optimizer(node: str | GraphNode) -> bool:
    labels = {label for label, _ in edges(node)}
    return not isinstance(node, str) and (bool(node.slots) or bool(labels & _COUNTERS and labels & _RATES))


class _Waiting(NamedTuple):
    """A node to be named, by one of the edges that lead to it."""

    number: int
    above: str
    label: str
    owner: str  # the path of the model above


class _Namer:
    def __init__(self, graph: ObjectGraph, prefix: str) -> None:
        self._nodes = graph.nodes
        self._paths: dict[int, str] = {}
        self._taken: set[str] = set()
        self._left = MAX_CHARACTERS
        self._names: dict[str, list[str]] = {}
        self._queues: list[deque[_Waiting]] = [deque() for _ in range(3)]
        self._paths[0] = prefix
        self._give(0, prefix)
        self._expand(0, prefix, "", _OBJECTS)

    def run(self) -> dict[str, tuple[str, ...]]:
        for phase, queue in enumerate(self._queues):
            while queue:
                number, above, label, owner = queue.popleft()
                if number in self._paths:
                    self._alias(number, above, label)
                    continue
                self._paths[number] = path = self._unique(_join(above, label))
                self._give(number, path)
                self._expand(number, path, owner, phase)
        return {key: tuple(names) for key, names in self._names.items()}

    def _give(self, number: int, path: str) -> None:
        for attribute, suffix, value in values_of(self._nodes[number]):
            part = _PARTS.get((attribute, suffix)) or clean(suffix or attribute).strip("-_/") or "state"
            is_itself = (attribute, suffix) == (VARIABLE, "") and path
            key = tensor_of(value)
            if key is not None:
                self._names.setdefault(key, []).append(path if is_itself else self._unique(_join(path, part)))

    def _expand(self, number: int, path: str, owner: str, phase: int) -> None:
        children = list(edges(self._nodes[number]))
        if any(label == "optimizer" for label, _ in children):
            owner = path
        if _is_optimizer(self._nodes[number]):
            self._expand_optimizer(number, path, owner, children)
            return
        labels = _labels(children) if path else {label: clean(label) for label, _ in children}
        for label, child in children:
            below = _OPTIMIZERS if _is_optimizer(self._nodes[child]) else phase
            self._queues[max(below, phase)].append(_Waiting(child, path, labels[label], owner))

    def _expand_optimizer(self, number: int, path: str, owner: str, children: list[tuple[str, int]]) -> None:
        labels = _labels(children)
        if "iter" in labels and "iterations" not in labels.values():  # TensorFlow's name for it in a legacy optimizer
            labels["iter"] = "iterations"
        lists = {label: dict(edges(self._nodes[child])) for label, child in children if _is_list(self._nodes[child])}
        trained = lists.pop("_trainable_variables", {})
        lists.pop("_variables", None)
        found = list(slots_of(self._nodes[number]))
        for label, slots in lists.items():
            if trained and len(slots) == len(trained):
                children = [child for child in children if child[0] != label]
                found += [(singular(labels[label]), trained.get(place, -1), child) for place, child in slots.items()]
        for position, (slot, of, child) in enumerate(found):
            variable = self._paths.get(of, str(position))
            label = path_of_slot(clean(slot), variable, owner)
            self._queues[_OPTIMIZERS].append(_Waiting(child, path, label, owner))
        for label, child in children:
            is_fallback = label in ("_variables", "_trainable_variables")
            phase = _OF_OPTIMIZERS if is_fallback else _OPTIMIZERS
            self._queues[phase].append(_Waiting(child, path, labels[label], owner))

    def _alias(self, number: int, above: str, label: str) -> None:
        """Notes another path to a variable, but for those that are TensorFlow's own book-keeping."""
        node = self._nodes[number]
        if not isinstance(node, str) or len(self._names[node]) > _MAX_ALIASES:
            return
        path = _join(above, label)
        if path not in self._taken and len(path.encode()) <= MAX_NAME_BYTES and not _BOOK_KEEPING.search(path):
            self._names[node].append(self._unique(path))

    def _unique(self, path: str) -> str:
        candidate, count = path, 0
        while candidate in self._taken:
            count += 1
            candidate = f"{path}_{count}"
        self._left -= len(candidate)
        if len(candidate.encode()) > MAX_NAME_BYTES or self._left < 0:
            raise ValueError(f"its object graph spells out too long names, as {candidate[:80]!r}…")
        self._taken.add(candidate)
        return candidate


_BOOK_KEEPING = re.compile(r"/(trainable_)?variables/\d+$|/layer-\d+/|/(regularization_)?losses/")


def _labels(children: list[tuple[str, int]]) -> dict[str, str]:
    stripped = strip_underscores({clean(label) for label, _ in children})
    return {label: stripped[clean(label)] for label, _ in children}


def _is_list(node: str | GraphNode) -> bool:
    return not isinstance(node, str) and all(label.isdecimal() for label, _ in edges(node))


def _join(path: str, label: str) -> str:
    return f"{path}/{label}" if path else label


class Pairs(NamedTuple):
    """What is in two graphs: our node for each of theirs, and our name for each tensor of theirs. `passed_over`: their
    names for what ours has, too, and does not save."""

    nodes: dict[int, int]
    names: dict[str, str]
    passed_over: frozenset[str]

    def theirs(self) -> dict[int, int]:
        """Their node for each of ours."""
        return {our: their for their, our in reversed(self.nodes.items())}


def pair(theirs: ObjectGraph, ours: ObjectGraph) -> Pairs:
    """Walks two graphs side by side from their roots: as TensorFlow does it, the same edges lead to the same object.

    Where the one model is called otherwise, or is the root itself, it is found by which of the root's children fits
    best.
    """
    found = _bind(theirs, ours, 0, 0, _Bound({}, []))
    if ours.model is not None and ours.model not in found.nodes.values():
        starts = [0, *(number for _, number in edges(theirs.nodes[0]) if number not in found.nodes)][:_MAX_STARTS]
        tries = [_bind(theirs, ours, start, ours.model, found) for start in starts]
        found = max((found, *tries), key=lambda each: len(_names_of(theirs, ours, each.nodes)))
    bound = found.nodes
    for their, our in found.optimizers:
        _bind_slots(theirs, ours, their, our, bound)
    names = _names_of(theirs, ours, bound)
    passed_over = {
        name
        for their, our in bound.items()
        if None in _tensors(ours.nodes[our])
        for name in _tensors(theirs.nodes[their])
        if name is not None and name not in names
    }
    return Pairs(bound, names, frozenset(passed_over))


def _tensors(node: str | GraphNode) -> set[str | None]:
    return {tensor_of(value) for _, _, value in values_of(node)}


_MAX_STARTS = 32


class _Bound(NamedTuple):
    """Our node for each of theirs, and the pairs whose slots are bound once all else is."""

    nodes: dict[int, int]
    optimizers: list[tuple[int, int]]


def _bind(theirs: ObjectGraph, ours: ObjectGraph, their: int, our: int, known: _Bound) -> _Bound:
    bound, optimizers = {**known.nodes, their: our}, list(known.optimizers)
    waiting = deque([(their, our)])
    while waiting:
        their, our = waiting.popleft()
        optimizers.append((their, our))
        children = dict(edges(ours.nodes[our]))
        by_variable = _lists_by_variable(theirs, their, ours, our)
        for label, number in edges(theirs.nodes[their]):
            if label in children and number not in bound and label not in by_variable:
                bound[number] = children[label]
                waiting.append((number, children[label]))
    return _Bound(bound, optimizers)


def _lists_by_variable(theirs: ObjectGraph, their: int, ours: ObjectGraph, our: int) -> set[str]:
    """What two optimizers list by the position of the variable that each trains, which is another variable's position
    where other layers are frozen. An optimizer of tf_keras does not list these: lists of one length may be the same."""
    there, here = _lists_of(theirs, their), _lists_of(ours, our)
    if _is_listing(there) and _is_listing(here):
        return _of_variables(there) & _of_variables(here)
    return {label for label in there.keys() & here.keys() if len(there[label]) != len(here[label])}


def _lists_of(graph: ObjectGraph, number: int) -> dict[str, dict[str, int]]:
    """The lists that an optimizer has; none for anything else."""
    node = graph.nodes[number]
    if isinstance(node, str) or not _is_optimizer(node):
        return {}
    return {label: dict(edges(graph.nodes[child])) for label, child in edges(node) if _is_list(graph.nodes[child])}


def _is_listing(lists: Mapping[str, Mapping[str, int]]) -> bool:
    return bool(lists.get(_TRAINED))


def _of_variables(lists: Mapping[str, Mapping[str, int]]) -> set[str]:
    """Which lists of an optimizer of Keras 3 go by its variables; and that of all, of which it has some by name."""
    return {label for label, each in lists.items() if len(each) == len(lists[_TRAINED]) or label == _ALL}


_TRAINED, _ALL = "_trainable_variables", "_variables"


def _bind_slots(theirs: ObjectGraph, ours: ObjectGraph, their: int, our: int, bound: dict[int, int]) -> None:
    """Gives an optimizer's slots to those of the same variables."""
    slots = {(name, of): slot for name, of, slot in slots_of(ours.nodes[our])}
    for name, of, number in slots_of(theirs.nodes[their]):
        slot = slots.get((name, bound.get(of, -1)))
        if slot is not None:
            bound.setdefault(number, slot)
    there, here = _lists_of(theirs, their), _lists_of(ours, our)
    if not (_is_listing(there) and _is_listing(here)):
        return
    taken = set(bound.values())
    for place, number in there[_TRAINED].items():  # those of no model that is known: by their position
        if number not in bound and here[_TRAINED].get(place, -1) not in {-1, *taken}:
            bound[number] = here[_TRAINED][place]
    places = {number: place for place, number in here[_TRAINED].items()}
    same = {place: places.get(bound.get(number, -1)) for place, number in there[_TRAINED].items()}
    is_in_order = len(same) == len(places) and all(place == other for place, other in same.items())
    for label in _of_variables(there) & _of_variables(here) - {_TRAINED, _ALL}:
        for place, number in there[label].items():
            slot = here[label].get(same.get(place) or "")
            if slot is not None:
                bound.setdefault(number, slot)
    if is_in_order:
        for place, number in there.get(_ALL, {}).items():
            if here.get(_ALL, {}).get(place, -1) not in {-1, *bound.values()}:
                bound.setdefault(number, here[_ALL][place])


def _names_of(theirs: ObjectGraph, ours: ObjectGraph, bound: dict[int, int]) -> dict[str, str]:
    names: dict[str, str] = {}
    used: set[str] = set()
    for their, our in bound.items():
        values = {(attribute, suffix): tensor_of(value) for attribute, suffix, value in values_of(ours.nodes[our])}
        for attribute, suffix, value in values_of(theirs.nodes[their]):
            name, other = tensor_of(value), values.get((attribute, suffix))
            if name is not None and other is not None and name not in names and other not in used:
                names[name] = other
                used.add(other)
    return names
