"""Names from an object graph alone, by the walk's own rules as far as the graph tells; and names found again by it."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from ckptflow.format.object_graph import VARIABLE, GraphNode, ObjectGraph, edges, slots_of, tensor_of, values_of
from ckptflow.state.children import clean, singular, strip_underscores
from ckptflow.state.private.keras import ALL, COUNTERS, EDGES_OF_MODELS, RATES, TRAINED
from ckptflow.state.walker import MAX_NAME_BYTES, path_of_slot

MAX_CHARACTERS = 64 * 2**20  # of all names together: a small graph can spell out very long ones
_MAX_ALIASES = 4
_OBJECTS, _OPTIMIZERS, _OF_OPTIMIZERS = range(3)  # the order in which names are given

_LAYER = re.compile(r"layer(_with_weights)?-\d+")
# Their parts have the names that the walk gives them.
_PARTS = {("ITERATOR", "_STATE"): "position"}


def name_values(graph: ObjectGraph, prefix: str = "") -> dict[str, tuple[str, ...]]:
    """A name, and then aliases, for everything that the graph's values refer to.

    The same names as the walk gives where that follows TensorFlow's graph: breadth first, underscores stripped,
    optimizers last and their slots by their variables. The root's children are called as their edges, below `prefix` if
    there is one. Raises ValueError if the names would be too long.
    """
    return _Namer(graph, prefix).run()


def root_label(graph: ObjectGraph) -> str:
    """What the root is as an entry of a state: "model" or "optimizer"; "" where it only holds the entries."""
    labels = {label for label, _ in edges(graph.nodes[0])}
    is_object = any(number == 0 for label, number in edges(graph.nodes[0]) if label == "root")
    if _is_optimizer(graph.nodes[0]):
        return "optimizer"
    return "model" if is_object or labels & EDGES_OF_MODELS or any(map(_LAYER.fullmatch, labels)) else ""


def _is_optimizer(node: str | GraphNode) -> bool:
    labels = {label for label, _ in edges(node)}
    return not isinstance(node, str) and (bool(node.slots) or bool(labels & COUNTERS and labels & RATES))


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
        trained = lists.pop(TRAINED, {})
        lists.pop(ALL, None)
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
            is_fallback = label in (ALL, TRAINED)
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


def with_trained(graph: ObjectGraph, lists: Mapping[int, tuple[int, ...]]) -> ObjectGraph:
    """The graph with lists of the variables that optimizers train, by the node of each that has none."""
    nodes = list(graph.nodes)
    for number, variables in lists.items():
        node, children = nodes[number], dict(edges(nodes[number]))
        if isinstance(node, str) or TRAINED in children or not variables:
            continue
        nodes[number] = msgspec.structs.replace(node, children={**children, TRAINED: len(nodes)})
        nodes.append(GraphNode(children=variables))
    return msgspec.structs.replace(graph, nodes=tuple(nodes))


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
    found = _Binding(theirs, ours)
    found.follow(0, 0)
    if ours.model is not None and ours.model not in found.bound.values():
        starts = [0, *(number for _, number in edges(theirs.nodes[0]) if number not in found.bound)][:_MAX_STARTS]
        tries = [found.with_start(start, ours.model) for start in starts]
        found = max((found, *tries), key=lambda each: len(_names_of(theirs, ours, each.bound)))
    found.follow_optimizers()
    bound = found.bound
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


class _Binding:
    """Which of our nodes each of theirs is.

    The name of an attribute says what an object is. The place in a list of variables says less: the lists of an
    optimizer begin with another layer where the first was frozen before the model was compiled. So such places are
    looked at last, when the model was found, and what an optimizer keeps for a variable goes with that variable.
    """

    def __init__(self, theirs: ObjectGraph, ours: ObjectGraph) -> None:
        self._graphs = theirs, ours
        self._theirs, self._ours = theirs.nodes, ours.nodes
        self.bound: dict[int, int] = {}
        self._used: set[int] = set()
        self._waiting: deque[tuple[int, int]] = deque()
        self._in_lists: deque[tuple[int, int]] = deque()  # variables in the same place of a list
        self._optimizers: deque[tuple[int, int]] = deque()
        self._seen: list[tuple[int, int]] = []

    def with_start(self, their: int, our: int) -> _Binding:
        """A copy that has followed these two as well."""
        other = _Binding(*self._graphs)
        other.bound, other._used = dict(self.bound), set(self._used)
        other._optimizers, other._seen = deque(self._optimizers), list(self._seen)
        other.follow(their, our)
        return other

    def follow(self, their: int, our: int) -> None:
        """Finds all that can be reached from two nodes that are the same, but through optimizers."""
        self._add(their, our)
        self._follow()

    def follow_optimizers(self) -> None:
        """Finds the rest, once all else is found."""
        while self._optimizers:
            self._expand_optimizer(*self._optimizers.popleft())
            self._follow()
        _bind_slots(*self._graphs, self._seen, self.bound)

    def _follow(self) -> None:
        while self._waiting or self._in_lists:
            if self._waiting:
                self._expand(*self._waiting.popleft())
            else:
                self._add_new(*self._in_lists.popleft())

    def _add(self, their: int, our: int) -> None:
        self.bound[their] = our
        self._used.add(our)
        self._waiting.append((their, our))

    def _add_new(self, their: int, our: int) -> None:
        if their not in self.bound and our not in self._used:
            self._add(their, our)

    def _expand(self, their: int, our: int) -> None:
        self._seen.append((their, our))
        if _is_optimizer(self._theirs[their]) or _is_optimizer(self._ours[our]):
            self._optimizers.append((their, our))
            return
        children = dict(edges(self._ours[our]))
        for label, number in edges(self._theirs[their]):
            if label not in children:
                continue
            if label.isdecimal() and isinstance(self._theirs[number], str):
                self._in_lists.append((number, children[label]))
            elif number not in self.bound:
                self._add(number, children[label])

    def _expand_optimizer(self, their: int, our: int) -> None:
        children, others = dict(edges(self._theirs[their])), dict(edges(self._ours[our]))
        their_lists, our_lists = lists_below(self._theirs, children), lists_below(self._ours, others)
        trained, to_train = their_lists.pop(TRAINED, {}), our_lists.pop(TRAINED, {})
        lists = their_lists.keys() - {ALL}, our_lists.keys() - {ALL}
        places = self._places(trained, to_train)
        is_told = bool(trained and to_train)
        is_same_order = (
            trained.keys() == to_train.keys() == {place for place, our_place in places.items() if place == our_place}
        )
        for label, number in children.items():
            if label not in others or label == TRAINED or (label == ALL and _is_another(*lists)):
                continue
            slots, our_slots = their_lists.get(label), our_lists.get(label)
            if slots is None or our_slots is None or (is_same_order if is_told else len(slots) == len(our_slots)):
                if number not in self.bound:
                    self._add(number, others[label])
            elif label != ALL and slots.keys() == trained.keys() and our_slots.keys() == to_train.keys():
                for place, our_place in places.items():
                    self._add_new(slots[place], our_slots[our_place])

    def _places(self, trained: Mapping[str, int], to_train: Mapping[str, int]) -> dict[str, str]:
        """Where in our optimizer's list the variables in theirs are, by their places there.

        Variables that nothing else leads to, as where the model was not saved, are those in the same places, unless one
        that is known is elsewhere.
        """
        by_variable = {number: place for place, number in to_train.items()}
        there = {place: self.bound[number] for place, number in trained.items() if number in self.bound}
        known = {place: by_variable.get(number) for place, number in there.items()}
        if all(place == our_place for place, our_place in known.items()):
            for place in trained.keys() & to_train.keys() - known.keys():
                self._add_new(trained[place], to_train[place])
                if self.bound.get(trained[place]) == to_train[place]:
                    known[place] = place
        return {place: our_place for place, our_place in known.items() if our_place is not None}


def _bind_slots(
    theirs: ObjectGraph, ours: ObjectGraph, optimizers: Iterable[tuple[int, int]], bound: dict[int, int]
) -> None:
    """Gives slots that say which variable they are of to those of the same variable, and the same name."""
    for their, our in optimizers:
        slots = {(name, of): slot for name, of, slot in slots_of(ours.nodes[our])}
        for name, of, number in slots_of(theirs.nodes[their]):
            slot = slots.get((name, bound.get(of, -1)))
            if slot is not None:
                bound.setdefault(number, slot)


def _is_another(theirs: Collection[str], ours: Collection[str]) -> bool:
    """Whether two optimizers are of other classes, by what they call their lists of slots: each has one that the other
    has not. What one alone has is something that it was told to keep. In the list of all, the place says nothing then.
    """
    there, here = ({label.lstrip("_") for label in labels} for labels in (theirs, ours))
    return bool(there - here and here - there)


def lists_below(nodes: Sequence[str | GraphNode], children: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """The children of an optimizer that are lists of variables."""
    lists = {number: dict(edges(nodes[number])) for number in {*children.values()} if _is_list(nodes[number])}
    of_variables = {
        number: places
        for number, places in lists.items()
        if places and all(isinstance(nodes[each], str) for each in places.values())
    }
    return {label: of_variables[number] for label, number in children.items() if number in of_variables}


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
