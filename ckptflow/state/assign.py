"""Assign: from a source's tensors to the state's leaves. Here they are compared; `restore` takes the values over."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ckptflow.format import values
from ckptflow.format.layout import own_name
from ckptflow.format.manifest import TensorRecord
from ckptflow.format.offer import HINT, Offer, grouped, misfit_error
from ckptflow.format.spec import Rename
from ckptflow.format.words import some_of
from ckptflow.printable import lines as text_lines
from ckptflow.state.children import name_of
from ckptflow.state.graph import in_names_of
from ckptflow.state.leaves import Leaf, PartLeaf
from ckptflow.state.renaming import likely_renames, renamer
from ckptflow.state.restore import Pair, Restore, is_optional
from ckptflow.state.tf_keras import NadamCounter
from ckptflow.state.tree import RESERVED_PREFIX, Tree

logger = logging.getLogger("ckptflow")


class Comparison(NamedTuple):
    """How the names of a source and of a state go together: names of the state by the source's, and why a name of the
    state gets no value, and one of the source has no place. What differs in shape or dtype is in both of these, and
    `differing` has its names in the state."""

    matched: Mapping[str, str]
    missing: Mapping[str, str]
    unexpected: Mapping[str, str]
    differing: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from a comparison. Nothing is put anywhere if any name is `refused`; names, of either side, that are
    `passed_over` are left out as if they were not there; `said` is what to warn of, `hint` what to do about what is
    refused."""

    refused: frozenset[str] = frozenset()
    passed_over: frozenset[str] = frozenset()
    said: tuple[str, ...] = ()
    hint: str = HINT


Decide = Callable[[Tree, Offer, Comparison], Verdict]


def all_of_it(tree: Tree, offer: Offer, found: Comparison) -> Verdict:
    """Both sides have the same names."""
    return Verdict(refused=frozenset({*found.missing, *found.unexpected}))


def all_of_it_but(names: frozenset[str]) -> Decide:
    """The same, but that the source need not have these of the state's."""

    def decide(tree: Tree, offer: Offer, found: Comparison) -> Verdict:
        lacking = names & (found.missing.keys() - found.unexpected.keys())
        return Verdict(refused=frozenset({*found.missing, *found.unexpected}) - lacking, passed_over=lacking)

    return decide


def what_fits(tree: Tree, offer: Offer, found: Comparison) -> Verdict:
    """Either side may have more than the other."""
    return Verdict()


def match(
    tree: Tree,
    offer: Offer,
    *,
    partial: bool = False,
    rename: Rename | None = None,
    assigned: dict[str, str] | None = None,
    decide: Decide | None = None,
) -> Restore:
    """Compares a source with the state and changes nothing.

    Names match by themselves, or through an alias of either side; those that come from TensorFlow's object graph, as
    the graphs do. `rename` gives a source's name, or the beginning of one up to a slash, its name in the state, and
    takes a variable's optimizer slots along; or is called with each name. Variables of metrics, and the `save_counter`
    of a `tf.train.Checkpoint`, may differ and be missing. With `partial`, what matches is restored and the rest is
    reported; `decide`, if given, says instead what may be left. `assigned` are the values that a restore before this
    one has left in the state, as `Restore` has it, which adds its own.

    Raises:
      StateMismatchError: they differ in names, shapes or dtypes; one message tells of all, of many by their prefix.
      UsageError: `rename` names something that the source does not have, or makes two names one.
    """
    offer = in_names_of(tree, offer)
    matcher = _Matcher(tree, offer, renamer(rename, offer))
    decide = decide or (what_fits if partial else all_of_it)
    verdict = decide(tree, offer, matcher.comparison)
    if verdict.refused:
        is_plain = rename is None and verdict.hint == HINT
        hint = _rename_hint(tree, offer, decide, matcher.comparison) if is_plain else ""
        advice = [*(_unbuilt(tree) if matcher.unexpected else ()), hint or verdict.hint]
        lines = grouped(matcher.differences(verdict.refused))
        raise misfit_error(offer.origin, lines, is_changed=bool(assigned), hint=text_lines(*filter(None, advice)))
    for text in verdict.said:
        logger.warning("%s: %s", offer.origin, text)
    left = verdict.passed_over
    return Restore(
        tree,
        offer.origin,
        {i: pair for i, pair in matcher.pairs.items() if left.isdisjoint((pair.record.name, pair.leaf.name))},
        {name: state for name, state in matcher.python_state.items() if name not in left},
        set(matcher.missing) - left,
        set(matcher.unexpected) - left,
        partial=partial,
        assigned=assigned,
    )


def _rename_hint(tree: Tree, offer: Offer, decide: Decide, found: Comparison) -> str:
    """What to do where other names of one prefix are all that differs, which is tried here; empty if they are not."""
    for rename in likely_renames(found.missing.keys(), found.unexpected.keys()):
        try:
            again = _Matcher(tree, offer, renamer(rename, offer)).comparison
        except Exception:  # two names would be one, or an entry's own code cannot take another's state
            continue
        if not decide(tree, offer, again).refused:
            return f"One prefix explains all of it: pass rename={json.dumps(rename, ensure_ascii=False)}."
    return ""


def _unbuilt(tree: Tree) -> list[str]:
    """What to do about layers that lack their variables: unlike a model's, nothing says how they are built."""
    unbuilt = [layer for layer in tree.layers if not getattr(layer, "built", True)]
    entries = {id(obj): name for name, obj in tree.state.items()}
    names = [f"{entries.get(id(layer)) or name_of(layer)} ({type(layer).__name__})" for layer in unbuilt]
    if not names:
        return []
    return [f"not built yet, so they have no values yet: {some_of(names, 5)}; call each once on a batch first"]


class _Matcher:
    """Pairs each tensor of a source with a leaf and notes every difference."""

    def __init__(self, tree: Tree, offer: Offer, renamed: Callable[[str], str]) -> None:
        self.pairs: dict[int, Pair] = {}
        self.python_state: dict[str, Any] = {}
        self.missing: list[str] = []
        self.unexpected: list[str] = []
        self._wrong: dict[str, str] = {}  # what differs, by the name in the state
        self._kind = offer.kind
        self._renamed = renamed
        self._own = _OwnEntries(tree, offer, renamed)
        records = {
            i: record
            for i, record in enumerate(offer.tensors)
            if not self._own.is_anothers(record.name) and not record.name.startswith(RESERVED_PREFIX)
        }
        of_record = self._find_leaves(tree, records)
        used = set(of_record.values())
        for index, record in records.items():
            leaf = tree.leaves[of_record[index]] if index in of_record else None
            if leaf is not None:
                self._compare(index, record, leaf)
            elif not (record.metric or is_optional(record.name)):
                self.unexpected.append(record.name)
        self.missing += [
            leaf.name
            for position, leaf in enumerate(tree.leaves)
            if not (position in used or leaf.metric or is_optional(leaf.name))
        ]
        self._match_python(tree, offer)

    @property
    def comparison(self) -> Comparison:
        """Names alone."""
        matched = {pair.record.name: pair.leaf.name for pair in self.pairs.values()}
        matched |= {name: name for name in self.python_state}
        missing, unexpected = f"in the state, not in the {self._kind}", f"in the {self._kind}, not in the state"
        return Comparison(
            matched,
            {name: self._wrong.get(name, missing) for name in self.missing} | self._own.refusals,
            {name: self._wrong.get(name, unexpected) for name in self.unexpected},
            frozenset(self._wrong),
        )

    def differences(self, refused: frozenset[str]) -> list[tuple[str, str]]:
        """These names, each with what is wrong with it: those that one side lacks last, as they may be many."""
        found = self.comparison
        apart = self._wrong | self._own.refusals
        names = sorted(name for name in refused - apart.keys() if not self._own.is_refused(name))
        return [
            *sorted((name, text) for name, text in apart.items() if name in refused),
            *((name, found.missing[name]) for name in names if name in found.missing),
            *((name, found.unexpected[name]) for name in names if name in found.unexpected),
        ]

    def _find_leaves(self, tree: Tree, records: Mapping[int, TensorRecord]) -> dict[int, int]:
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
            for index, record in records.items():
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
        pair = Pair(record, leaf)
        problems = []
        if record.dtype != leaf.dtype:
            problems.append(f"dtype {record.dtype} in the {self._kind}, {leaf.dtype} in the state")
        if not _fits(pair.shape, leaf.shape, isinstance(leaf, PartLeaf)):
            problems.append(f"shape {_text(pair.shape)} in the {self._kind}, {_text(leaf.shape)} in the state")
        if not problems:
            self.pairs[index] = pair
        elif not (record.metric and leaf.metric):
            self._wrong[leaf.name] = "; ".join(problems)
            self.missing.append(leaf.name)
            self.unexpected.append(record.name)

    def _match_python(self, tree: Tree, offer: Offer) -> None:
        found = {
            self._renamed(name): (name, state)
            for name, state in offer.python_state.items()
            if not name.startswith(RESERVED_PREFIX)
        }
        for name in tree.python:
            if name.startswith(RESERVED_PREFIX):
                continue
            if name in self._own.resized:
                self.python_state[name] = self._own.resized[name]
            elif name in found and not self._own.is_refused(name):
                self.python_state[name] = values.from_json(found[name][1])
            elif not isinstance(tree.python[name], NadamCounter):  # which is not in what other tools write
                self.missing.append(name)
        self.unexpected += [
            original
            for name, (original, _) in found.items()
            if name not in tree.python and not self._own.is_anothers(original)
        ]


class _OwnEntries:
    """The entries of a source that were each worker's own: which of that is this worker's now.

    `resized` are the states that another number of workers was dealt, by name; `refusals` say of each entry that cannot
    be, why.
    """

    def __init__(self, tree: Tree, offer: Offer, renamed: Callable[[str], str]) -> None:
        self._tree = tree
        self._offer = offer
        self.resized: dict[str, Any] = {}
        self.refusals: dict[str, str] = {}
        self._kept = {entry: renamed(entry) in tree.per_worker for entry in offer.per_worker}
        if offer.world_size == tree.world_size:
            return
        for entry, is_kept in self._kept.items():
            if is_kept:
                self._resize(entry, renamed(entry))

    def is_anothers(self, name: str) -> bool:
        """Whether a name in the checkpoint is of the part of such an entry that is not for this worker."""
        for entry, is_kept in self._kept.items():
            if name.startswith(own_name(entry, 0)[:-1]):
                # Of an entry that the state has not, the first worker's part stands for all in what is reported.
                mine = own_name(entry, self._tree.worker if is_kept else 0)
                is_mine = name == mine or name.startswith(mine + "/")
                return not is_mine or (is_kept and self._offer.world_size != self._tree.world_size)
        return False

    def is_refused(self, name: str) -> bool:
        """Whether a name in the state is of an entry that was refused."""
        return any(name.startswith(entry + "/") for entry in self.refusals)

    def _resize(self, entry: str, now: str) -> None:
        tree, offer = self._tree, self._offer
        names = [own_name(entry, worker) for worker in range(offer.world_size)]
        has_tensors = any(record.name.startswith(own_name(entry, 0)[:-1]) for record in offer.tensors)
        mark = tree.per_worker[now]
        if mark.can_resize and not has_tensors and all(name in offer.python_state for name in names):
            states = [values.from_json(offer.python_state[name]) for name in names]
            self.resized[own_name(now, tree.worker)] = mark.obj.resize(states, tree.world_size, tree.worker)
            return
        self.refusals[now] = (
            f"it was kept by each of {offer.world_size} workers for itself, and there are {tree.world_size} "
            "now. Start as many, or keep the position in a Python object with get_state, set_state and "
            "resize(states, world_size, index), or leave it out of state (or partial=True) and start the input from "
            "the beginning"
        )


def _fits(shape: tuple[int, ...], static: tuple[int | None, ...] | None, is_part: bool) -> bool:
    if is_part or static is None:
        return True
    return len(shape) == len(static) and all(want in (None, size) for size, want in zip(shape, static, strict=True))


def _text(shape: tuple[int | None, ...] | None) -> str:
    if shape is None:
        return "of any rank"
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
