"""How to read the state's values: worked out once, 4 µs for each variable, then one operation for many of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from ckptflow.errors import UsageError
from ckptflow.state.blocks import PartsLeaf
from ckptflow.state.collector import no_collection
from ckptflow.state.leaves import Leaf, PartLeaf, VariableLeaf, is_remote
from ckptflow.state.private.tensorflow import num_elements, read_variables

BATCH = 128  # variables read by one operation


class ReadPlan:
    """What is prepared once per tree, so that a save does one cheap operation for many variables."""

    def __init__(self, holders: Sequence[Leaf], *, only_metrics: bool = False) -> None:
        self._count = len(holders)
        self._others: list[tuple[int, Leaf]] = []  # those of several reads, by the place of their first spec
        self._bundles: dict[int, tuple[Any, list[tuple[int, str]]]] = {}
        self.remote: frozenset[int] = frozenset()  # known after the first read
        self._is_checked = False
        simple: dict[tuple[str, str], list[tuple[int, VariableLeaf]]] = {}
        previous: Leaf | None = None
        for index, leaf in enumerate(holders):
            if only_metrics and not leaf.metric:
                continue
            if isinstance(leaf, PartLeaf):
                self._bundles.setdefault(id(leaf.bundle), (leaf.bundle, []))[1].append((index, leaf.part))
            elif isinstance(leaf, VariableLeaf) and leaf.is_simple:
                simple.setdefault((leaf.handle.device, leaf.dtype), []).append((index, leaf))
            elif leaf is not previous:
                self._others.append((index, leaf))
            previous = leaf
        self._batches = [
            _Batch(leaves[begin : begin + BATCH])
            for leaves in simple.values()
            for begin in range(0, len(leaves), BATCH)
        ]

    def read(self) -> list[Any]:
        held: list[Any] = [None] * self._count
        with no_collection():
            for batch in self._batches:
                batch.read(held)
        for first, leaf in self._others:
            values_held = leaf.read()
            held[first : first + len(values_held)] = values_held
        for bundle, parts in self._bundles.values():
            values_of_parts = bundle.read()
            for index, part in parts:
                held[index] = values_of_parts[part]
        if not self._is_checked:
            self._check(held)
            self.remote = frozenset(index for index, value in enumerate(held) if value is not None and is_remote(value))
            self._is_checked = True  # a variable that has a value never loses it, and stays where it is
        return held

    def _check(self, held: list[Any]) -> None:
        """Raises `UsageError` for variables without a value: reading one raises nothing and gives an empty tensor."""
        suspects = [leaf for batch in self._batches for leaf in batch.empty(held)]
        suspects += [leaf for _, leaf in self._others]
        without = [
            leaf.name
            for leaf in suspects
            if isinstance(leaf, (VariableLeaf, PartsLeaf))
            and not all(tf.raw_ops.VarIsInitializedOp(resource=part.handle) for part in leaf.parts)
        ]
        if without:
            raise UsageError(
                f"these variables have no value yet, initialize them before saving: {', '.join(sorted(without))}"
            )


class _Batch:
    """Variables of one dtype on one device that are read by one operation.

    `ReadVariableOp` costs 9 µs each, most of it on the way to the kernel; `_ReadVariablesOp`, TensorFlow's own for
    several at once, 2.5 µs for each of 128, and as long as that at its first call, which takes longer the more there
    are. Both share a variable's buffer, and copy where the variable is copied on every read.
    """

    def __init__(self, leaves: list[tuple[int, VariableLeaf]]) -> None:
        self._leaves = leaves
        self._handles = [leaf.handle for _, leaf in leaves]
        dtypes = [leaf.tf_dtype.as_datatype_enum for _, leaf in leaves]
        self._attributes = ("N", len(leaves), "dtypes", dtypes)

    def read(self, held: list[Any]) -> None:
        found = read_variables(self._handles, self._attributes)
        for (index, _), value in zip(self._leaves, found, strict=True):
            held[index] = value

    def empty(self, held: list[Any]) -> list[Leaf]:
        """Those of which an empty tensor was read."""
        return [leaf for index, leaf in self._leaves if not num_elements(held[index])]
