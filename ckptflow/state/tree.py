"""The tree of the state: what the user handed over, as leaves with names, and whether it has changed since."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from ckptflow.errors import UnsupportedStateError, UsageError
from ckptflow.format.layout import own_name
from ckptflow.format.manifest import MAX_MANIFEST_BYTES
from ckptflow.format.object_graph import ObjectGraph
from ckptflow.format.spec import TensorSpec
from ckptflow.state.children import checkpoint_children, clean, root_label
from ckptflow.state.collector import no_collection
from ckptflow.state.fingerprints import Fingerprint
from ckptflow.state.frozen import frozen_names
from ckptflow.state.kinds import Kind, is_checkpoint, kind_of
from ckptflow.state.leaves import Leaf
from ckptflow.state.per_worker import PerWorker
from ckptflow.state.private.keras import value_of
from ckptflow.state.read_plan import ReadPlan
from ckptflow.state.walker import OptimizerNode, Walker

MAX_ENTRY_NAME_BYTES = 1024
SAVE_COUNTER = "save_counter"  # of a tf.train.Checkpoint, which has one whether or not it is asked for
RESERVED_PREFIX = "ckptflow."  # of names that are ours: not the user's to give, and passed over by a restore


class NumberedGraph(NamedTuple):
    """An object graph, and the node of each object in it by its identity."""

    graph: ObjectGraph
    numbers: dict[int, int]


@dataclass
class Tree:
    """The state as leaves sorted by name, which is the same order on every worker and in every process.

    `state` are the objects that were walked. `specs` are the leaves', in order, and `holders` the leaf of each.
    `python` is what has plain Python state, by name, `per_worker` the entries that are this worker's own, `models` and
    `optimizers` those of either Keras by their path, `layers` all Keras layers that were met, `variables` all variables
    by name, `own_stores` what writes into Keras's files by code of the user's own, `unseen` what plain Python objects
    hide, by the path of the attribute. What is None at first, and the plans, are made once for each tree, when they are
    first asked for.
    """

    state: Mapping[str, Any]
    worker: int
    world_size: int
    leaves: tuple[Leaf, ...]
    specs: tuple[TensorSpec, ...]
    holders: tuple[Leaf, ...]
    python: dict[str, Any]
    per_worker: dict[str, PerWorker]
    models: dict[str, Any]
    optimizers: dict[str, OptimizerNode]
    layers: list[Any]
    variables: dict[str, Any]
    own_stores: list[tuple[str, Any]]
    unseen: dict[str, str]
    _watched: list[tuple[Any, Callable[[Any], Fingerprint], Fingerprint]]
    _values: list[tuple[Any, Any]]
    _kept_alive: list[Any]
    checksum: str | None = field(default=None, init=False)  # of what this worker holds
    object_graph: ObjectGraph | None = field(default=None, init=False)  # as a manifest has it
    numbered_graph: NumberedGraph | None = field(default=None, init=False)
    # Of models and optimizers, beside the settings that they were taken at.
    configs: tuple[tuple[Any, ...], dict[str, Any]] | None = field(default=None, init=False)
    # Where in these there are values of variables, by the keys that lead there: the indices of those in `specs`.
    numbers: dict[tuple[str, ...], int] = field(default_factory=dict, init=False)

    @cached_property
    def read_plan(self) -> ReadPlan:
        return ReadPlan(self.holders)

    @cached_property
    def metrics_plan(self) -> ReadPlan:
        """Of metrics' variables alone."""
        return ReadPlan(self.holders, only_metrics=True)

    @cached_property
    def frozen_names(self) -> frozenset[str]:
        """The variables that training leaves alone, by what the models say when it is first asked."""
        return frozen_names(self.variables, self.models.values())

    @property
    def own_names(self) -> frozenset[str]:
        """The names, in a checkpoint, of this worker's own entries, and of the Python state in them."""
        entries = [own_name(entry, self.worker) for entry in self.per_worker]
        return frozenset(entries).union(
            name for name in self.python if any(name.startswith(f"{entry}/") for entry in entries)
        )

    def is_stale(self) -> bool:
        """Whether any object has got, lost, replaced or renamed a child since the walk. If not, a new walk is the same.

        It compares labels and identities, and the tree keeps what it has seen alive, so that none is ever used again.
        """
        if any(value_of(variable) is not value for variable, value in self._values):
            return True
        return any(look(obj) != seen for obj, look, seen in self._watched)


def walk(state: Mapping[str, Any], *, worker: int = 0, world_size: int = 1) -> Tree:
    """The tree of named objects, as `as_mapping` gives them, on worker `worker` of `world_size`.

    Raises `UnsupportedStateError`, by name and with a way out, for what cannot be saved.
    """
    walker = Walker(worker, world_size)
    with no_collection():
        walker.walk(state)
        _check_names(walker.leaves)
        leaves = tuple(sorted(walker.leaves, key=lambda leaf: leaf.name))
        held = [(spec, leaf) for leaf in leaves for spec in leaf.specs()]
    return Tree(
        state,
        worker,
        world_size,
        leaves,
        tuple(spec for spec, _ in held),
        tuple(leaf for _, leaf in held),
        walker.python,
        walker.per_worker,
        walker.models,
        walker.optimizers,
        walker.layers,
        walker.variables,
        walker.own_stores,
        {path: names for path, names in walker.unseen.items() if not path.startswith(RESERVED_PREFIX)},
        walker.watched,
        walker.values,
        walker.kept_alive,
    )


def _check_names(leaves: list[Leaf]) -> None:
    """Raises `UnsupportedStateError` if a manifest cannot even hold the names: every save would fail by it."""
    size_bytes = sum(len(name.encode()) + _RECORD_BYTES for leaf in leaves for name in (leaf.name, *leaf.aliases))
    if size_bytes > MAX_MANIFEST_BYTES:
        longest = max(leaves, key=lambda leaf: len(leaf.name)).name
        raise UnsupportedStateError(
            f"the names of {len(leaves)} tensors take {size_bytes:,} bytes, and a manifest holds at most "
            f"{MAX_MANIFEST_BYTES:,}: give dicts shorter keys, or use fewer variables. The longest begins with "
            f"{longest[:80]!r}"
        )


_RECORD_BYTES = 32  # what each takes at the very least beside its name


def as_mapping(state: Any) -> dict[str, Any]:
    """The named entries of a `state` argument.

    A dict gives its entries; a `tf.train.Checkpoint` its attributes as they are now and its `save_counter`; any other
    object is the one entry: "model" for a Keras model, "optimizer" for an optimizer, else "state". Raises `UsageError`
    for names that are no strings, empty, too long, or the same once cleaned, for an empty dict, and for a string.
    """
    if isinstance(state, (str, os.PathLike)):
        raise UsageError("the state is a string or a path: CheckpointManager takes the URL first and then the state")
    if is_checkpoint(state):
        return {**dict(checkpoint_children(state)), SAVE_COUNTER: state.save_counter}
    if kind_of(state) is not Kind.DICT:
        return {root_label(state): state}
    entries: dict[str, Any] = {}
    for name, obj in dict(state).items():
        if not isinstance(name, str):
            raise UsageError(f"the names in state must be strings, not {name!r}")
        cleaned = clean(name.strip())
        if not name.strip(" /") or cleaned == "__metadata__" or len(cleaned.encode()) > MAX_ENTRY_NAME_BYTES:
            raise UsageError(f"{name[:80]!r} cannot be a name in state: give the object a short name of its own")
        if cleaned.startswith(RESERVED_PREFIX):
            raise UsageError(f"{name[:80]!r} cannot be a name in state: what begins with {RESERVED_PREFIX!r} is ours")
        if cleaned in entries:
            raise UsageError(
                f"two entries of state are called {cleaned!r} (spaces and slashes at the ends are ignored)"
            )
        entries[cleaned] = obj
    if not entries:
        raise UsageError("state is empty: name at least one object to save")
    return entries


def entries_now(state: Any, known: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The entries of a `state` argument that was `known` before, as they are now, and what became of others, by name.

    A `tf.train.Checkpoint` has the attributes that it has. Of a dict the names stay: each has the object that is there
    now, or the last that was.
    """
    if is_checkpoint(state) or kind_of(state) is not Kind.DICT:
        return as_mapping(state), {}
    now: dict[str, Any] = {}
    for name, obj in dict(state).items():
        now.setdefault(clean(name.strip()) if isinstance(name, str) else str(name), obj)
    changed = {name: "added, and is not saved," for name in now if name not in known}
    changed |= {name: "removed, and is saved all the same," for name in known if name not in now}
    return {name: now.get(name, obj) for name, obj in known.items()}, changed


def count_save(state: Any) -> None:
    """Counts one more save in the `save_counter` of a `tf.train.Checkpoint`, as its own `save` does."""
    if is_checkpoint(state):
        state.save_counter.assign_add(1)
