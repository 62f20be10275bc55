"""Assign: from a manifest's tensors to the state's leaves. First everything is compared, then values are taken over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from ckptflow.errors import StateMismatchError, UsageError
from ckptflow.format import values
from ckptflow.format.manifest import Manifest, TensorRecord
from ckptflow.format.spec import Bytes1D
from ckptflow.state.kinds import is_normalization
from ckptflow.state.leaves import Array, Landing, Leaf, PartLeaf, VariableLeaf, aggregate, from_bytes
from ckptflow.state.tree import Tree

Rename = Mapping[str, str] | Callable[[str], str]


@dataclass(frozen=True)
class _Pair:
    record: TensorRecord
    leaf: Leaf

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value, of one component where there are several."""
        return self.record.shape[1:] if self.record.components else self.record.shape


class Restore:
    """A checkpoint's way into a tree; implements `format.spec.Target`. Nothing is assigned before `finish`.

    `wanted` are the manifest's tensors to read, largest first. After `partial`, `missing` names what the state has and
    the checkpoint has not, `unexpected` the opposite; what has another shape or dtype is in both.
    """

    def __init__(
        self,
        tree: Tree,
        pairs: dict[int, _Pair],
        python_state: dict[str, Any],
        missing: tuple[str, ...],
        unexpected: tuple[str, ...],
    ) -> None:
        self._tree = tree
        self._pairs = pairs
        self._python_state = python_state
        self._landings: dict[int, Landing | Bytes1D] = {}
        self._parts: dict[int, tuple[Any, dict[str, Array]]] = {}
        # The largest first: the memory that their old values free serves the smaller ones.
        self.wanted = tuple(sorted(pairs, key=lambda index: (-pairs[index].record.size_bytes, index)))
        self.missing = missing
        self.unexpected = unexpected

    def open(self, index: int) -> Bytes1D:
        """Memory for the tensor as it is in storage, to be filled; once per tensor. Drop it before `finish`."""
        pair = self._pairs[index]
        record = pair.record
        if isinstance(pair.leaf, VariableLeaf) and record.encoded_bytes is None and record.components is None:
            landing = self._landings[index] = Landing(record.dtype, record.shape, record.size_bytes)
            return landing.bytes
        memory = self._landings[index] = np.empty(record.size_bytes, np.uint8)
        return memory

    def finish(self, index: int) -> None:
        """Takes the tensor over: a variable has its value afterwards, a table or an iterator after `complete`."""
        pair, landing = self._pairs[index], self._landings.pop(index)
        if isinstance(landing, Landing):
            _variable(pair.leaf).assign(landing.take())
            return
        record = pair.record
        array = from_bytes(landing, record.dtype, record.shape)
        if record.components:
            array = aggregate(list(array), record.components)
        if isinstance(pair.leaf, PartLeaf):
            self._parts.setdefault(id(pair.leaf.bundle), (pair.leaf.bundle, {}))[1][pair.leaf.part] = array
        else:
            with tf.device("CPU:0"):
                pair.leaf.assign(tf.convert_to_tensor(array))  # always a copy

    def complete(self) -> None:
        """Call once after the last `finish`: sets tables, iterators, vocabularies and Python state, and lets layers
        that keep something computed from their variables compute it again."""
        for bundle, parts in self._parts.values():
            if len(parts) == len(bundle.dtypes):
                bundle.write(parts)
        self._parts.clear()
        for layer in self._tree.layers:
            if is_normalization(layer):
                layer.finalize_state()
        for name, state in self._python_state.items():
            self._tree.python[name].set_state(values.from_json(state))


def match(tree: Tree, manifest: Manifest, *, partial: bool = False, rename: Rename | None = None) -> Restore:
    """Compares a checkpoint with the state and changes nothing.

    Names match by themselves, or through an alias of either side. `rename` gives a checkpoint's name, or the beginning
    of one up to a slash, its name in the state; or is called with each name. Variables of metrics may differ and be
    missing. With `partial`, what matches is restored and the rest is reported.

    Raises:
      StateMismatchError: they differ in names, shapes or dtypes; all differences are in the one message.
      UsageError: `rename` names something that the checkpoint does not have, or makes two names one.
    """
    matcher = _Matcher(tree, manifest, _renamer(rename, manifest))
    if matcher.differences and not partial:
        raise StateMismatchError(
            f"{manifest.folder} does not fit the state; no value was changed.\n"
            + "\n".join(f"  {line}" for line in matcher.differences)
            + "\nFor a warm start, pass partial=True, or rename={checkpoint name: state name}."
        )
    return Restore(
        tree, matcher.pairs, matcher.python_state, tuple(sorted(matcher.missing)), tuple(sorted(matcher.unexpected))
    )


class _Matcher:
    """Pairs each tensor of a manifest with a leaf and notes every difference."""

    def __init__(self, tree: Tree, manifest: Manifest, renamed: Callable[[str], str]) -> None:
        self.pairs: dict[int, _Pair] = {}
        self.python_state: dict[str, Any] = {}
        self.missing: list[str] = []
        self.unexpected: list[str] = []
        self._wrong: list[str] = []
        self._renamed = renamed
        records = manifest.tensors
        of_record = self._find_leaves(tree, records)
        used = set(of_record.values())
        for index, record in enumerate(records):
            leaf = tree.leaves[of_record[index]] if index in of_record else None
            if leaf is not None:
                self._compare(index, record, leaf)
            elif not record.metric:
                self.unexpected.append(record.name)
        self.missing += [
            leaf.name for position, leaf in enumerate(tree.leaves) if position not in used and not leaf.metric
        ]
        self._match_python(tree, manifest)

    @property
    def differences(self) -> list[str]:
        """One line for each difference."""
        wrong = {line.split(": ", 1)[0] for line in self._wrong}
        return [
            *(f"{name}: in the state, not in the checkpoint" for name in sorted(self.missing) if name not in wrong),
            *(f"{name}: in the checkpoint, not in the state" for name in sorted(self.unexpected) if name not in wrong),
            *sorted(self._wrong),
        ]

    def _find_leaves(self, tree: Tree, records: tuple[TensorRecord, ...]) -> dict[int, int]:
        """Leaf by record, both by position: names first, then aliases, so that no alias takes another's name."""
        by_name = {leaf.name: position for position, leaf in enumerate(tree.leaves)}
        by_alias = {alias: position for position, leaf in enumerate(tree.leaves) for alias in leaf.aliases}
        found: dict[int, int] = {}
        used: set[int] = set()
        for lookup, of_record in (
            (by_name, lambda record: (record.name,)),
            (by_alias, lambda record: (record.name,)),
            (by_name, lambda record: record.aliases),
            (by_alias, lambda record: record.aliases),
        ):
            for index, record in enumerate(records):
                if index in found:
                    continue
                for name in of_record(record):
                    position = lookup.get(self._renamed(name))
                    if position is not None and position not in used:
                        found[index] = position
                        used.add(position)
                        break
        return found

    def _compare(self, index: int, record: TensorRecord, leaf: Leaf) -> None:
        pair = _Pair(record, leaf)
        problems = []
        if record.dtype != leaf.dtype:
            problems.append(f"dtype {record.dtype} in the checkpoint, {leaf.dtype} in the state")
        if not _fits(pair.shape, leaf.shape, isinstance(leaf, PartLeaf)):
            problems.append(f"shape {_text(pair.shape)} in the checkpoint, {_text(leaf.shape)} in the state")
        if not problems:
            self.pairs[index] = pair
        elif not (record.metric or leaf.metric):
            self._wrong.append(f"{leaf.name}: {'; '.join(problems)}")
            self.missing.append(leaf.name)
            self.unexpected.append(record.name)

    def _match_python(self, tree: Tree, manifest: Manifest) -> None:
        found = {self._renamed(name): (name, state) for name, state in manifest.python_state.items()}
        for name in tree.python:
            if name in found:
                self.python_state[name] = found[name][1]
            else:
                self.missing.append(name)
        self.unexpected += [original for name, (original, _) in found.items() if name not in tree.python]


def _fits(shape: tuple[int, ...], static: tuple[int | None, ...] | None, is_part: bool) -> bool:
    if is_part or static is None:
        return True
    return len(shape) == len(static) and all(want in (None, size) for size, want in zip(shape, static, strict=True))


def _text(shape: tuple[int | None, ...] | None) -> str:
    if shape is None:
        return "of any rank"
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"


def _renamer(rename: Rename | None, manifest: Manifest) -> Callable[[str], str]:
    if rename is None:
        return lambda name: name
    names = [name for record in manifest.tensors for name in (record.name, *record.aliases)]
    names += manifest.python_state
    renamed = rename if callable(rename) else _by_prefix(rename, names)
    targets: dict[str, str] = {}
    for name in (record.name for record in manifest.tensors):
        other = targets.setdefault(renamed(name), name)
        if other != name:
            raise UsageError(f"rename makes both {other!r} and {name!r} into {renamed(name)!r}")
    return renamed


def _by_prefix(rename: Mapping[str, str], names: list[str]) -> Callable[[str], str]:
    for old in rename:
        if not any(name == old or name.startswith(old.rstrip("/") + "/") for name in names):
            raise UsageError(f"rename: the checkpoint has nothing that is called, or begins with, {old!r}")
    longest_first = sorted(rename, key=len, reverse=True)

    def renamed(name: str) -> str:
        for old in longest_first:
            if name == old:
                return rename[old]
            prefix = old.rstrip("/") + "/"
            if name.startswith(prefix):
                return f"{rename[old].rstrip('/')}/{name[len(prefix) :]}"
        return name

    return renamed


def _variable(leaf: Leaf) -> VariableLeaf:
    if not isinstance(leaf, VariableLeaf):
        raise TypeError(f"{leaf.name} is no variable")
    return leaf
