"""The state as TensorFlow's own checkpoints see it: which objects hang on which, and which of our tensors are theirs.

Only names and edges; no variable is read here, and no collective started.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
import tensorflow as tf

from ckptflow.format.object_graph import (
    VARIABLE,
    GraphNode,
    ObjectGraph,
    Value,
    Zeros,
    edges,
    slots_of,
    values_of,
)
from ckptflow.format.offer import Offer
from ckptflow.format.record import MAX_NAME_CHARACTERS
from ckptflow.format.values import is_unicode
from ckptflow.state import tf_keras
from ckptflow.state.blocks import MeshLeaf, PartsLeaf
from ckptflow.state.bundle import Bundle
from ckptflow.state.children import tracked
from ckptflow.state.graph_names import Pairs, pair, with_trained
from ckptflow.state.kinds import Kind, is_sharded, kind_of, raw_variable
from ckptflow.state.leaves import PartLeaf, VariableLeaf
from ckptflow.state.per_worker import PerWorker
from ckptflow.state.private.keras import TRAINED
from ckptflow.state.private.tensorflow import saveable_compat
from ckptflow.state.private.tf_keras import SLOTS, inner_optimizer
from ckptflow.state.tree import RESERVED_PREFIX, NumberedGraph, Tree

logger = logging.getLogger("ckptflow")

MAX_CHARACTERS = 32 * 2**20  # of names in a graph: a manifest must hold it beside everything else

Values = dict[str, dict[str, Value]]


def describe_graph(objects: Mapping[str, Any], tree: Tree) -> ObjectGraph | None:
    """The object graph of the state, as `tf.train.Checkpoint(**objects)` would have it, with the tree's names.

    Objects below which there is no tensor are not in it, nor tensors that TensorFlow cannot reach. Reads no variable
    and starts no collective. Never raises: None, and a line in the log, where the graph cannot be had.
    """
    try:
        graph = numbered(objects, tree).graph
    except Exception as error:  # whatever a user's object does when it is asked for its children
        logger.warning(
            "the state's object graph cannot be had (%s: %s); checkpoints are saved without, and an export as "
            "tf-checkpoint names objects by their tensors",
            type(error).__name__,
            str(error),
        )
        return None
    if sum(map(_characters, graph.nodes)) > MAX_CHARACTERS:
        logger.warning("the state's object graph is too large for a manifest; checkpoints are saved without")
        return None
    return graph


def numbered(objects: Mapping[str, Any], tree: Tree) -> NumberedGraph:
    """Like `describe_graph`, with the node of each object; raises whatever an object raises."""
    walk = _Walk(tree)
    entries = {}
    for name, obj in objects.items():
        if isinstance(obj, PerWorker):
            if tree.world_size > 1:
                continue  # each worker has one of its own
            obj = obj.obj
        if name.startswith(RESERVED_PREFIX):
            continue
        if isinstance(obj, (dict, list, tuple)):  # what TensorFlow makes of them when they become its attributes
            obj = getattr(tf.train.Checkpoint(entry=obj), "entry", None)
        if kind_of(obj) is not None:
            entries[name] = obj
    models = [obj for name, obj in entries.items() if name in tree.models]
    if not models:  # one that is no Keras model, if it is clear which
        models = [obj for obj in entries.values() if isinstance(obj, tf.Module) and kind_of(obj) is Kind.TRACKABLE]
    return walk.run(entries, models[0] if len(models) == 1 else None)


def numbered_graph(tree: Tree) -> NumberedGraph:
    """The tree's own state, described once for as long as it holds. Each optimizer has a list of what it trains."""
    if tree.numbered_graph is None:
        tree.numbered_graph = _with_trained(numbered(tree.state, tree), tree)
    return tree.numbered_graph


def _with_trained(found: NumberedGraph, tree: Tree) -> NumberedGraph:
    """Optimizers of tf_keras keep no list of the variables that their lists of slots are for."""
    by_name = {node: number for number, node in enumerate(found.graph.nodes) if isinstance(node, str)}
    lists = {}
    for optimizer in tree.optimizers.values():
        number = found.numbers.get(id(inner_optimizer(optimizer.optimizer)), 0)
        if number and all(name in by_name for name in optimizer.built_for):
            lists[number] = tuple(by_name[name] for name in optimizer.built_for)
    return NumberedGraph(with_trained(found.graph, lists), found.numbers)


class _Walk:
    """One walk through TensorFlow's graph, breadth first as TensorFlow does it."""

    def __init__(self, tree: Tree) -> None:
        self._names: dict[int, str] = {}  # of tensors, by the identity of a raw variable
        self._shards: dict[int, str] = {}  # by the identity of a sharded variable's first part
        self._bundles: dict[int, tuple[Bundle, dict[str, str]]] = {}  # by the identity of their object
        for leaf in tree.leaves:
            if leaf.own and tree.world_size > 1:
                continue
            if isinstance(leaf, (VariableLeaf, MeshLeaf)):
                self._names[id(leaf.variable)] = leaf.name
            elif isinstance(leaf, PartsLeaf):
                self._shards[id(leaf.parts[0])] = leaf.name
            elif isinstance(leaf, PartLeaf):
                self._bundles.setdefault(id(leaf.bundle.obj), (leaf.bundle, {}))[1][leaf.part] = leaf.name
        self._numbers: dict[int, int] = {}
        self._objects: list[Any] = [None]  # the root; kept alive, so that identities stay theirs
        self._children: list[dict[str, int]] = [{}]
        self._values: list[str | Values | None] = [None]
        self._slots: dict[int, list[tuple[str, int, int]]] = {}

    def run(self, entries: Mapping[str, Any], model: Any) -> NumberedGraph:
        """The graph of what hangs on the entries."""
        self._children[0] = {name: self._number(obj) for name, obj in entries.items()}
        number = 0
        while (number := number + 1) < len(self._objects):
            self._expand(number)
        self._add_slots()
        places = self._places()
        nodes = tuple(self._node(number, places) for number in places)
        graph = ObjectGraph(nodes=nodes, model=places.get(self._numbers.get(id(model), -1)))
        return NumberedGraph(graph, {key: places[number] for key, number in self._numbers.items() if number in places})

    def _number(self, obj: Any) -> int:
        number = self._numbers.get(id(obj))
        if number is None:
            number = self._numbers[id(obj)] = len(self._objects)
            self._objects.append(obj)
            self._children.append({})
            self._values.append(self._name(obj) if kind_of(obj) is Kind.VARIABLE else None)
        return number

    def _name(self, variable: Any) -> str | None:
        """The name of a variable's tensor."""
        names = self._shards if is_sharded(raw_variable(variable)) else self._names
        return names.get(id(_first_part(variable)))

    def _expand(self, number: int) -> None:
        obj = self._objects[number]
        kind = kind_of(obj)
        if kind is Kind.VARIABLE:
            return
        if id(obj) in self._bundles and kind not in (Kind.LOOKUP, Kind.DISCRETIZATION):
            self._values[number] = self._bundle_values(obj)
        if kind in (Kind.TABLE, Kind.ITERATOR):
            return
        children = self._children[number] = {}
        for name, child in _children_of(obj).items():
            child_kind = kind_of(child)
            is_name = 0 < len(name) <= MAX_NAME_CHARACTERS and is_unicode(name)
            if child_kind is None or child_kind is Kind.DATASET or not is_name:
                continue
            children[name] = self._number(child)
            if kind is Kind.LOOKUP and self._values[children[name]] is None:
                self._values[children[name]] = self._lookup_values(obj, child, child_kind)

    def _bundle_values(self, obj: Any) -> Values | None:
        """A table's, iterator's or other trackable's tensors as TensorFlow knows them."""
        bundle, names = self._bundles[id(obj)]
        values: Values = {}
        attribute = saveable_compat.get_saveable_name(obj)  # one name for all that it stores, or None
        for part, stock_name in bundle.stock_names.items():
            if attribute is None:
                values[stock_name] = {"": names[part]}
            else:
                values.setdefault(attribute, {})[stock_name] = names[part]
        return values or None

    def _lookup_values(self, layer: Any, child: Any, kind: Kind) -> str | Values | None:
        """What a layer with a vocabulary has beside it: what it counted while it adapted, and its weights."""
        if kind is Kind.TABLE:
            keys, values = child.key_dtype.name, child.value_dtype.name
            return {"table": {"-keys": Zeros(dtype=keys, shape=(0,)), "-values": Zeros(dtype=values, shape=(0,))}}
        if kind is not Kind.VARIABLE:
            return None
        weights = self._bundles[id(layer)][1].get("idf_weights") if id(layer) in self._bundles else None
        if weights is not None and child is vars(layer).get("idf_weights"):
            return weights
        return {VARIABLE: {"": Zeros(dtype=child.dtype.name, shape=tuple(child.shape.as_list()))}}

    def _add_slots(self) -> None:
        """The slots of optimizers that keep them beside their attributes."""
        variables: dict[int, int] = {}  # node by the identity of a raw variable, or of a sharded one's first part
        optimizers = []
        for number, obj in enumerate(self._objects):
            kind = kind_of(obj)
            if kind is Kind.VARIABLE:
                variables.setdefault(id(_first_part(obj)), number)
            elif kind in (Kind.TF_KERAS_OPTIMIZER, Kind.TF1_OPTIMIZER):
                optimizers.append(number)
        for number in optimizers:
            optimizer = inner_optimizer(self._objects[number])
            if SLOTS not in vars(optimizer):
                continue
            # Not by get_slot: it asks variables for attributes, which can start a collective.
            raw = [_first_part(self._objects[of]) for of in variables.values()]
            for name, variable, slot in tf_keras.optimizer_slots(optimizer, raw):
                value = self._names.get(id(raw_variable(slot)), self._shards.get(id(raw_variable(slot))))
                if variable is not None and value is not None:
                    self._values[slot_number := self._number(slot)] = value
                    self._slots.setdefault(number, []).append((name, variables[id(variable)], slot_number))

    def _places(self) -> dict[int, int]:
        """The final number of each node that has values, or leads to some; in order, the root first."""
        parents: dict[int, list[int]] = {}
        for number, children in enumerate(self._children):
            for child in children.values():
                parents.setdefault(child, []).append(number)
        kept = {0, *self._slots, *(number for number, value in enumerate(self._values) if value is not None)}
        # One that has no variables yet stands for those that another graph has of it.
        kept |= {number for number, obj in enumerate(self._objects) if kind_of(obj) is Kind.TF1_OPTIMIZER}
        waiting = list(kept)
        while waiting:
            for parent in parents.get(waiting.pop(), ()):
                if parent not in kept:
                    kept.add(parent)
                    waiting.append(parent)
        return {number: place for place, number in enumerate(sorted(kept))}

    def _node(self, number: int, places: Mapping[int, int]) -> str | GraphNode:
        value = self._values[number]
        if isinstance(value, str):
            return value
        children = {name: places[child] for name, child in self._children[number].items() if child in places}
        slots = self._slots.get(number, ())
        return GraphNode(
            children=as_children(children),
            values=value or {},
            slots=tuple((name, places[of], places[slot]) for name, of, slot in slots),
        )


def in_names_of(tree: Tree, offer: Offer) -> Offer:
    """An offer whose names come from its object graph, with the names that the tree has for the same objects.

    As it is, for any other offer. Tensors stay in their order, and keep their own names as aliases. What the tree
    does without, of an object that is there (what a vocabulary was counted from), may be missing as a metric may.
    `models` then says which of the tree's optimizers the source has slots for.
    """
    theirs = offer.object_graph
    if theirs is None or not theirs.gives_names:
        return offer
    pairs = pair(theirs, numbered_graph(tree).graph)
    names = pairs.names
    taken = set(names.values())
    tensors = []
    for tensor in offer.tensors:
        name = names.get(tensor.name, tensor.name)
        while tensor.name not in names and name in taken:  # another's name now
            name += "_"
        aliases = tuple(dict.fromkeys(other for other in (tensor.name, *tensor.aliases) if other not in taken))
        taken |= {name, *aliases}
        aliases = tuple(other for other in aliases if other != name)
        is_metric = tensor.metric or tensor.name in pairs.passed_over
        tensors.append(msgspec.structs.replace(tensor, name=name, aliases=aliases, metric=is_metric))
    models = _models(tree, theirs, pairs)
    return replace(offer, tensors=tuple(tensors), models={**models, **offer.models})


def _models(tree: Tree, theirs: ObjectGraph, pairs: Pairs) -> dict[str, Any]:
    ours, bound = numbered_graph(tree), pairs.theirs()
    models: dict[str, Any] = {path: {"kind": "model"} for path in tree.models}
    for path, node in tree.optimizers.items():
        our = ours.numbers.get(id(node.optimizer), -1)
        is_built = our in bound and _count_values(theirs, bound[our]) > _count_values(ours.graph, our)
        models[path] = {"kind": "optimizer", "built": is_built}
    return models


def _count_values(graph: ObjectGraph, start: int) -> int:
    """How many objects with values there are below an optimizer, but for the variables that it trains."""
    seen, waiting = {start}, [start]
    count = 0
    while waiting:
        node = graph.nodes[waiting.pop()]
        count += sum(1 for _ in values_of(node)) + len(slots_of(node))
        below = {number for label, number in edges(node) if label != TRAINED} - seen
        seen |= below
        waiting += below
    return count


def as_children(children: dict[str, int]) -> dict[str, int] | tuple[int, ...]:
    """The shorter form of a node's children: a list where they are called 0, 1, 2, …."""
    is_list = all(name == str(position) for position, name in enumerate(children))
    return tuple(children.values()) if is_list else children


def _first_part(variable: Any) -> Any:
    """A raw variable, or the first of those that make up a sharded one."""
    raw = raw_variable(variable)
    return raw_variable(raw.variables[0]) if is_sharded(raw) else raw


def _children_of(obj: Any) -> Mapping[str, Any]:
    """An object's children as TensorFlow sees them; {} where it refuses (a dict that was changed behind its back)."""
    try:
        return tracked(obj)
    except Exception as error:  # whatever user code raises
        logger.info("TensorFlow cannot tell what a %s holds: %s", type(obj).__name__, str(error))
        return {}


def _characters(node: str | GraphNode) -> int:
    if isinstance(node, str):
        return len(node)
    return sum(len(name) + 8 for name, _ in edges(node)) + sum(
        len(attribute) + len(suffix) + MAX_NAME_CHARACTERS // 64
        for attribute, parts in node.values.items()
        for suffix in parts
    )


def graph_of_names(names: Any) -> ObjectGraph:
    """A graph made up from the tensors' names alone: one object for each part of a path."""
    children: list[dict[str, int]] = [{}]
    values: dict[int, str] = {}
    for name in names:
        at = 0
        for part in filter(None, name.split("/")):
            if part not in children[at]:
                children[at][part] = len(children)
                children.append({})
            at = children[at][part]
        if at and at not in values:
            values[at] = name
    nodes: list[str | GraphNode] = []
    for number, below in enumerate(children):
        if number in values and not below:
            nodes.append(values[number])
        else:
            value: Values = {VARIABLE: {"": values[number]}} if number in values else {}
            nodes.append(GraphNode(children=as_children(below), values=value))
    return ObjectGraph(nodes=tuple(nodes))
