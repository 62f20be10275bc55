"""The object graph in a manifest: the state as TensorFlow's own checkpoints see it, with our names for its tensors.

It is what a checkpoint of TensorFlow's is made of without the program that saved ours. A node is an object; edges have
the names of attributes, of keys, or of positions in a list.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator
from typing import TypeAlias

from msgspec import field

from ckptflow.format import dtypes
from ckptflow.format.record import MAX_NAME_CHARACTERS, MAX_RANK, Record, Shape, ShortText, Size, TensorName

MAX_ZEROS = 2**16  # elements of a tensor that is not stored


class Zeros(Record, frozen=True, kw_only=True, gc=False):
    """A tensor that is not stored: zeros, or empty strings, of this dtype and shape."""

    dtype: ShortText
    shape: Shape


Value: TypeAlias = TensorName | Zeros


class GraphNode(Record, frozen=True, kw_only=True, gc=False):
    """One object that is no plain variable.

    `children` are nodes by the name of the edge, a list where the names are 0, 1, 2, …. `values`: for each attribute
    that TensorFlow knows the object's tensors by, what is behind it: a tensor for each suffix ("" where the attribute
    is one tensor). `slots` of a legacy optimizer: slot's name, node of its variable, node of the slot.
    """

    children: dict[TensorName, Size] | tuple[Size, ...] = ()
    values: dict[ShortText, dict[ShortText, Value]] = field(default_factory=dict)
    slots: tuple[tuple[ShortText, Size, Size], ...] = ()


class ObjectGraph(Record, frozen=True, kw_only=True):
    """The whole graph. Node 0 is the root, whose children are the entries of the state.

    A node that is text is a variable: the name of its tensor. `model` is the node of the one model in the state.
    `gives_names`: the tensors have their names from this graph, because they were imported without the program; a
    restore finds their places in the state by the graph.
    """

    nodes: tuple[TensorName | GraphNode, ...]
    model: Size | None = None
    gives_names: bool = False


VARIABLE = "VARIABLE_VALUE"  # a variable's one attribute


def edges(node: str | GraphNode) -> Iterator[tuple[str, int]]:
    """A node's children: the name of the edge and the number of the child."""
    if isinstance(node, str):
        return iter(())
    if isinstance(node.children, dict):
        return iter(node.children.items())
    return ((str(position), number) for position, number in enumerate(node.children))


def slots_of(node: str | GraphNode) -> tuple[tuple[str, int, int], ...]:
    """A node's slots."""
    return () if isinstance(node, str) else node.slots


def tensor_of(value: Value) -> str | None:
    """The name of the tensor behind a value, None for one that is not stored."""
    return value if isinstance(value, str) else None


def values_of(node: str | GraphNode) -> Iterator[tuple[str, str, Value]]:
    """A node's values: attribute, suffix, what is behind it."""
    if isinstance(node, str):
        return iter(((VARIABLE, "", node),))
    return ((name, suffix, value) for name, parts in node.values.items() for suffix, value in parts.items())


def check_graph(graph: ObjectGraph, names: Collection[str]) -> None:
    """Raises ValueError unless the graph has a root, and refers to nothing but its own nodes and these tensors."""
    count = len(graph.nodes)
    if not count or isinstance(graph.nodes[0], str) or (graph.model or 0) >= count:
        raise ValueError("its object graph has no root, or a model that it does not have")
    for node in graph.nodes:
        if isinstance(node, str):
            if node not in names:
                raise ValueError(f"its object graph names {node!r}, which is not one of the tensors")
            continue
        if any(number >= count for _, number in edges(node)) or any(max(pair) >= count for _, *pair in node.slots):
            raise ValueError("its object graph refers to a node that it does not have")
        labels = node.children if isinstance(node.children, dict) else ()
        texts = (*labels, *(slot for slot, _, _ in node.slots), *node.values, *itertools.chain(*node.values.values()))
        if "" in labels or any(len(text) > MAX_NAME_CHARACTERS for text in texts):
            raise ValueError(f"a name in its object graph is empty, or longer than {MAX_NAME_CHARACTERS} characters")
        for _, _, value in values_of(node):
            if isinstance(value, Zeros):
                dtypes.item_size_bytes(value.dtype)
                if len(value.shape) > MAX_RANK or math.prod(value.shape) > MAX_ZEROS:
                    raise ValueError("its object graph has too many zeros")
            elif value not in names:
                raise ValueError(f"its object graph names {value!r}, which is not one of the tensors")
