"""The object graph of a manifest ↔ the proto in TensorFlow's own checkpoints, with TensorFlow's keys for tensors."""

from __future__ import annotations

import bisect
import itertools
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckptflow.errors import CorruptCheckpointError
from ckptflow.format.object_graph import (
    VARIABLE,
    GraphNode,
    ObjectGraph,
    Value,
    Zeros,
    check_graph,
    edges,
    slots_of,
    values_of,
)
from ckptflow.format.record import MAX_NAME_CHARACTERS
from ckptflow.state.graph import as_children
from ckptflow.state.graph_names import MAX_CHARACTERS, lists_below, with_trained
from ckptflow.state.private.keras import ALL, ITERATIONS, TRAINED
from ckptflow.state.private.tensorflow import (
    TrackableObjectGraph,
    checkpoint_key,
    escape_local_name,
    slot_variable_key,
)

SAVE_COUNTER = "save_counter"
# How TensorFlow calls what is behind an attribute that stands for several tensors.
_SUFFIXES = {"table": ("-keys", "-values"), "ITERATOR": ("_STATE",)}


def to_proto(graph: ObjectGraph) -> tuple[Any, dict[str, tuple[str, str, Value]]]:
    """The proto, and for each key of TensorFlow's: the attribute and suffix that it is for, and what belongs there.

    Keys are those that `tf.train.Checkpoint(**entries)` gives. The root gets a `save_counter`, without which its
    `restore` does not match, and the children of the one model, so that the model itself can be the root as well.
    Raises ValueError where the names would be too long.
    """
    paths = _paths(graph)
    proto = TrackableObjectGraph()
    keys: dict[str, tuple[str, str, Value]] = {}
    for number, node in enumerate(graph.nodes):
        entry = proto.nodes.add()
        entry.has_checkpoint_values.value = True
        for label, child in edges(node):
            entry.children.add(node_id=child, local_name=label)
        for name, of, slot in slots_of(node):
            entry.slot_variables.add(slot_name=name, original_variable_node_id=of, slot_variable_node_id=slot)
        if number in paths:
            for attribute, suffix, value in values_of(node):
                _add_attribute(entry, keys, paths[number], attribute, suffix, value)
    root = proto.nodes[0]
    taken = {child.local_name for child in root.children}
    if graph.model:
        for label, child in edges(graph.nodes[graph.model]):
            if label not in taken:
                root.children.add(node_id=child, local_name=label)
                taken.add(label)
    if SAVE_COUNTER not in taken:
        root.children.add(node_id=len(proto.nodes), local_name=SAVE_COUNTER)
        entry = proto.nodes.add()
        entry.has_checkpoint_values.value = True
        _add_attribute(entry, keys, SAVE_COUNTER, VARIABLE, "", Zeros(dtype="int64", shape=()))
    return proto, keys


def without_shortcuts(graph: ObjectGraph) -> ObjectGraph:
    """The graph of an export of ours without the edges that let the one model be the root as well."""
    entries = dict(edges(graph.nodes[0]))
    for label, child in entries.items():
        below = dict(edges(graph.nodes[child]))
        if below and below.keys() <= entries.keys() - {label}:
            kept = {other: number for other, number in entries.items() if below.get(other) != number}
            root = GraphNode(children=as_children(kept))
            return ObjectGraph(nodes=(root, *graph.nodes[1:]), model=child)
    return graph


def _add_attribute(
    entry: Any, keys: dict[str, tuple[str, str, Value]], path: str, attribute: str, suffix: str, value: Value
) -> None:
    key = checkpoint_key(path, attribute)
    if not any(known.name == attribute for known in entry.attributes):
        entry.attributes.add(name=attribute, checkpoint_key=key)
    keys[key + suffix] = attribute, suffix, value


def _paths(graph: ObjectGraph) -> dict[int, str]:
    """The path of each node that can be reached, as TensorFlow has it: the shortest, parts escaped."""
    paths, waiting, left = {0: ""}, deque([0]), MAX_CHARACTERS
    escape = escape_local_name

    def add(number: int, path: str) -> None:
        nonlocal left
        left -= len(path)
        if len(path) > MAX_NAME_CHARACTERS or left < 0:
            raise ValueError(f"its object graph spells out too long names, as {path[:80]!r}…")
        paths[number] = path

    while waiting:
        number = waiting.popleft()
        for label, child in edges(graph.nodes[number]):
            if child not in paths:
                add(child, f"{paths[number]}/{escape(label)}" if paths[number] else escape(label))
                waiting.append(child)
    for number in list(paths):
        for name, of, slot in slots_of(graph.nodes[number]):
            if slot not in paths and of in paths:
                add(slot, slot_variable_key(paths[of], paths[number], name))
    return paths


def from_proto(proto: Any, keys: Mapping[str, Any], where: str) -> ObjectGraph:
    """The graph in a proto, whose values are TensorFlow's keys. Raises `CorruptCheckpointError`, naming `where`.

    `keys` are those of the tensors that there are; without any, those that tables and iterators are known to have are
    taken for granted.
    """
    nodes: list[str | GraphNode] = []
    sorted_keys = sorted(keys)
    try:
        for entry in proto.nodes:
            children = {child.local_name: child.node_id for child in entry.children if child.local_name}
            slots = tuple(
                (slot.slot_name, slot.original_variable_node_id, slot.slot_variable_node_id)
                for slot in entry.slot_variables
            )
            if min((*children.values(), *(number for _, *pair in slots for number in pair)), default=0) < 0:
                raise ValueError("its object graph refers to a node that it does not have")
            values: dict[str, dict[str, Value]] = {}
            for attribute in entry.attributes:
                found = _keys_of(attribute.name, attribute.checkpoint_key, keys, sorted_keys)
                if found:
                    values[attribute.name] = {key[len(attribute.checkpoint_key) :]: key for key in found}
            if nodes and values.keys() == {VARIABLE} and values[VARIABLE].keys() == {""} and not (children or slots):
                nodes.append(str(values[VARIABLE][""]))
            else:
                nodes.append(GraphNode(children=as_children(children), values=values, slots=slots))
        graph = ObjectGraph(nodes=tuple(nodes))
        check_graph(graph, keys or {key for node in nodes for _, _, key in values_of(node) if isinstance(key, str)})
    except ValueError as error:
        raise CorruptCheckpointError(f"{where}: {error}") from error
    return with_trained(graph, _trained_by_names(nodes, proto))


def _trained_by_names(nodes: Sequence[str | GraphNode], proto: Any) -> dict[int, tuple[int, ...]]:
    """For optimizers with slots in lists, what each slot is for: tf_keras keeps no list of that, but names them so.

    A slot is called like its variable, behind the optimizer's name and its own: `Adam/m/dense/kernel`.
    """
    names = {
        number: entry.attributes[0].full_name
        for number, entry in enumerate(proto.nodes)
        if isinstance(nodes[number], str)
    }
    counts = Counter(names.values())
    by_name = {name: number for number, name in names.items() if name and counts[name] == 1}
    found: dict[int, tuple[int, ...]] = {}
    left = _MAX_SLOTS + _MAX_SLOT_LISTS * len(nodes)  # a graph can be made in which many optimizers share long lists
    for number, node in enumerate(nodes):
        children = dict(edges(node))
        if ITERATIONS not in children or TRAINED in children:
            continue
        lists = [list(places.values()) for label, places in lists_below(nodes, children).items() if label != ALL]
        left -= sum(map(len, lists))
        if left < 0:
            return {}
        ways = {way for slots in lists for way in _variables_of([names[slot] for slot in slots], by_name)}
        if len(ways) == 1:
            found[number] = ways.pop()
    return found


def _variables_of(slots: Sequence[str], by_name: Mapping[str, int]) -> Iterator[tuple[int, ...]]:
    """The variables whose names are the slots' without their first parts, for each number of parts that does it."""
    for dropped in range(1, min(_MAX_FIRST_PARTS, *(slot.count("/") for slot in slots)) + 1):
        names = [slot.split("/", dropped)[-1] for slot in slots]
        if all(name in by_name for name in names) and len(set(names)) == len(names):
            yield tuple(by_name[name] for name in names)


def _keys_of(attribute: str, key: str, keys: Mapping[str, Any], sorted_keys: list[str]) -> list[str]:
    """The tensors behind an attribute: the one of its key, or those whose keys go on from it."""
    if not keys:
        return [key + suffix for suffix in _SUFFIXES.get(attribute, ("",))]
    if key in keys:
        return [key]
    suffixes = _SUFFIXES.get(attribute)
    if suffixes is not None:
        return [key + suffix for suffix in suffixes if key + suffix in keys]
    first = bisect.bisect_left(sorted_keys, key)
    found = itertools.takewhile(lambda other: other.startswith(key), sorted_keys[first : first + _MAX_SUFFIXES])
    return list(found) if key else []


_MAX_SUFFIXES = 64
_MAX_FIRST_PARTS = 8
_MAX_SLOTS, _MAX_SLOT_LISTS = 2**10, 16
