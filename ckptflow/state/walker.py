"""The walk: which objects there are, and their names.

Names must be the same after a rebuild, in this process or another, whether or not a model is compiled and an optimizer
built; neither Keras's names (numbered as they come) nor the paths of TensorFlow's object graph are. So: breadth first
from the names that the user gave, by our own rules for children. What the frameworks merely track comes after whatever
has an attribute, then metrics, and optimizers last, so that none of these ever names a model's variable. The first path
to an object is its name, other paths are aliases.
"""

from __future__ import annotations

import bisect
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ckptflow.errors import UnsupportedStateError, UsageError
from ckptflow.format.layout import own_name
from ckptflow.state import keras3, tf_keras
from ckptflow.state.blocks import MeshLeaf, PartsLeaf
from ckptflow.state.bundles import bundle_of
from ckptflow.state.children import clean, holds_state, pairs_of
from ckptflow.state.entries import check_entry, replica_iterators
from ckptflow.state.fingerprints import Fingerprint
from ckptflow.state.kinds import (
    CONTAINERS,
    LAYERS,
    METRICS,
    OF_PREPROCESSING,
    OPTIMIZERS,
    Kind,
    carries_python_state,
    is_keras3_model,
    is_on_mesh,
    is_python_state,
    is_sharded,
    is_tf_keras_model,
    kind_of,
    raw_variable,
)
from ckptflow.state.leaves import Leaf, PartLeaf, VariableLeaf
from ckptflow.state.listed import check_listed, family_of, has_own_list
from ckptflow.state.own_stores import has_own_store
from ckptflow.state.per_worker import PerWorker
from ckptflow.state.private.keras import VALUE, trained_by
from ckptflow.state.private.tensorflow import starts_of_parts
from ckptflow.state.rules import children_of, fingerprint_of, of_its_bundle
from ckptflow.state.unseen import unseen

MAX_NAME_BYTES = 4096
_MAX_ALIASES = 4  # per tensor: enough for code that is reordered, and a bound where objects refer to one another
# The order in which the walk gives names; what has none must have been named before its turn comes.
_OBJECTS, _NAMELESS, _TRACKED, _METRICS, _OPTIMIZERS, _OF_OPTIMIZERS, _NAMELESS_LAST = range(7)
# Large enough for an address, whatever it is joined to: of f"v{id(v)}_m" as well.
_NUMBER = re.compile(r"0x[0-9a-fA-F]{6,}|(?<![0-9])[1-9][0-9]{6,}(?![0-9])")
_COUNTED = re.compile(r"_[0-9]+$")
_BY_NO_NODE = (-1, False)


@dataclass(frozen=True)
class OptimizerNode:
    """An optimizer in the state, the path of the model that holds it ("" if it is an entry of its own), and the names
    of the variables that it was built for."""

    optimizer: Any
    owner: str
    built_for: tuple[str, ...]


@dataclass(slots=True)
class _Node:
    obj: Any
    label: str
    parent: str = ""  # its path; "" for an entry
    metric: bool = False  # a metric's own, which a restore may do without
    below_metric: bool = False
    owner: str = ""  # the path of the nearest model above
    own: bool = False  # this worker's alone
    depth: int = 0
    listed_above: Kind | None = None  # of what kind the nearest object above is that lists its variables itself
    fallback: bool = False
    nameless: str = ""  # why it has no name
    by_key: bool = False  # its label is a dict's key

    @property
    def path(self) -> str:
        return f"{self.parent}/{self.label}" if self.parent else self.label


@dataclass
class _Slot:
    leaf: Leaf
    name: str
    of: str  # the name of its model variable


def path_of_slot(name: str, of: str, owner: str) -> str:
    """A slot's path below its optimizer: without the owner's name where the model variable is the owner's."""
    return f"{name}/{of.removeprefix(owner + '/') if owner else of}"


class Walker:
    """One walk; afterwards its public attributes are what it found."""

    def __init__(self, worker: int = 0, world_size: int = 1) -> None:
        self._worker = worker
        self._world_size = world_size
        self.leaves: list[Leaf] = []
        self.python: dict[str, Any] = {}
        self.per_worker: dict[str, PerWorker] = {}
        self.models: dict[str, Any] = {}
        self.optimizers: dict[str, OptimizerNode] = {}
        self.layers: list[Any] = []
        self.own_stores: list[tuple[str, Any]] = []
        self.unseen: dict[str, str] = {}
        self.variables: dict[str, Any] = {}  # as their framework hands them out, by name
        self.watched: list[tuple[Any, Callable[[Any], Fingerprint], Fingerprint]] = []
        self.values: list[tuple[Any, Any]] = []  # (Keras 3 variable, the TensorFlow variable that it holds)
        self.kept_alive: list[Any] = []
        self._queues: list[deque[_Node]] = [deque() for _ in range(7)]
        self._paths: dict[int, str] = {}  # by identity
        self._taken: dict[str, tuple[int, bool]] = {}  # names, and by whom: how deep, and whether by a dict's key
        self._nameless: set[int] = set()  # containers, by identity
        self._passed_over: set[int] = set()  # variables, by identity, of which a bundle holds what is state
        self._listing: list[tuple[str, Any]] = []  # objects that list their variables themselves, by path
        self._met: list[tuple[str, Any]] = []  # objects that may have children, by path
        self._numbers: list[tuple[str, list[int]]] = []  # in dicts' keys, by the path that they gave
        self._keys: dict[str, list[str]] = {}  # of dicts, by the path of their dict
        self._other_paths: list[tuple[str, _Node]] = []
        self._slots: dict[str, list[_Slot]] = {}
        self._part_of: dict[int, tuple[PartsLeaf, int]] = {}  # the whole, by identity of a part
        self._raw: list[Any] = []  # every variable by which an optimizer may know one

    def walk(self, state: Mapping[str, Any]) -> None:
        """Visits everything that can be reached from the state's entries."""
        for entry, marked in state.items():
            name, obj, own = entry, marked, isinstance(marked, PerWorker)
            if own:
                self.per_worker[entry] = marked
                name, obj = own_name(entry, self._worker), marked.obj
            check_entry(name, obj)
            self._push(_Node(obj, name, own=own), _OBJECTS)
        while any(self._queues):
            self._visit(next(queue for queue in self._queues if queue).popleft())
        check_listed(self._listing, self._is_found)
        self.unseen = unseen(self._met, self._is_found)
        self._check_numbers()
        self._check_ids()
        for leaf in self.leaves:
            leaf.is_kept_equal = any(leaf.name.startswith(f"{optimizer}/") for optimizer in self.optimizers)
        self._add_aliases()

    def _push(self, node: _Node, phase: int) -> None:
        kind = kind_of(node.obj)
        if kind in OPTIMIZERS or node.parent in self.optimizers:
            phase = _OF_OPTIMIZERS if node.fallback else _OPTIMIZERS
        elif node.parent and (node.below_metric or kind in METRICS):
            phase = _METRICS
        if node.nameless:
            phase = _NAMELESS if phase == _OBJECTS else _NAMELESS_LAST
        self._queues[phase].append(node)

    def _visit(self, node: _Node) -> None:
        kind = kind_of(node.obj)
        if kind is Kind.PER_WORKER:
            raise UnsupportedStateError(f"{node.path} is marked PerWorker, which marks an entry of state: make it one")
        target = raw_variable(node.obj) if kind is Kind.VARIABLE else node.obj
        if target is None:
            raise UsageError(
                f"{node.path} is a variable without a value yet: build the model before saving or restoring"
            )
        # An optimizer puts the slots for a sharded variable's parts together to another object for the same tensor.
        first = raw_variable(target.variables[0]) if is_sharded(target) else None
        known = self._paths.get(id(first if id(first) in self._part_of else target))
        if known is not None:
            self.kept_alive.append(node.obj)  # another wrapper of the same variable
            if not (node.fallback or node.nameless or id(target) in self._part_of):
                self._other_paths.append((known, node))
            return
        if node.nameless and kind not in CONTAINERS:
            what = f"{node.parent} holds a {type(node.obj).__qualname__} that has no name in a checkpoint"
            raise UnsupportedStateError(f"{what}: {node.nameless}")
        if node.nameless:  # what matters is whether there is state in it
            self._push_nameless(node)
            return
        path = self._unique(node.path, node)
        self._paths[id(target)] = path
        if node.by_key and (numbers := _NUMBER.findall(node.label)):
            self._numbers.append((path, [int(number, 0) for number in numbers]))
        if node.by_key:
            self._keys.setdefault(node.parent, []).append(node.label)
        self.kept_alive += (node.obj, target)
        if is_python_state(node.obj) if node.parent else carries_python_state(node.obj):
            self.python[path] = node.obj
        elif kind is not None and has_own_store(node.obj):  # else what else it has is in its Python state
            self.own_stores.append((path, node.obj))
        if kind in (Kind.DISTRIBUTED_ITERATOR, Kind.ITERATOR) and self._world_size > 1 and not node.own:
            raise UnsupportedStateError(
                f"{path}: with {self._world_size} workers each worker has its own input position; pass it as "
                "ckptflow.PerWorker(iterator)"
            )
        if kind is Kind.DISTRIBUTED_ITERATOR:
            for label, iterator in enumerate(replica_iterators(path, node.obj)):
                self._push(_Node(iterator, str(label), path, own=node.own), _OBJECTS)
        elif kind is Kind.VARIABLE:
            self._add_variable(path, node.obj, target, node)
        elif kind is not None:
            bundle = bundle_of(node.obj, path)
            if bundle is not None:
                node.metric = False
                for part in bundle.dtypes:
                    self._add(PartLeaf(self._unique(f"{path}/{part}", node), bundle, part), node)
            if kind not in (Kind.TABLE, Kind.ITERATOR):
                self._expand(node, kind, path)

    def _push_nameless(self, node: _Node) -> None:
        """What is in a container that has no name has none either."""
        if id(node.obj) in self._nameless:
            return
        self._nameless.add(id(node.obj))
        for _, child in pairs_of(node.obj):
            if holds_state(child):
                self._push(replace(node, obj=child), _OBJECTS)

    def _expand(self, node: _Node, kind: Kind | None, path: str) -> None:
        obj, owner = node.obj, node.owner
        self._met.append((path, obj))
        if is_keras3_model(obj) or is_tf_keras_model(obj):
            self.models[path] = obj
            owner = path
        if kind in LAYERS:
            self.layers.append(obj)
        if kind in OPTIMIZERS:
            self._add_optimizer(node, kind, path, owner)
        found = children_of(obj)
        if kind in OF_PREPROCESSING:
            self._passed_over.update(id(raw_variable(part)) for part in of_its_bundle(obj))
        if kind not in CONTAINERS or not node.parent:  # the others are watched as part of whatever holds them
            look = fingerprint_of(kind)
            self.watched.append((obj, look, look(obj)))
        family = family_of(obj) or node.listed_above
        if family and (family is not node.listed_above or has_own_list(obj)):
            self._listing.append((path, obj))
        is_metric = kind in METRICS and bool(node.parent)
        is_own = is_metric or (node.metric and kind in CONTAINERS)  # not those of a network or table that it holds
        above = (path, is_own, node.below_metric or is_metric, owner, node.own, node.depth + 1, family)
        is_fallback = node.fallback and kind in CONTAINERS
        for label, child in found.named:
            phase = _TRACKED if is_fallback else _OBJECTS
            self._push(_Node(child, clean(label), *above, fallback=is_fallback, by_key=found.by_key), phase)
        for reason, child in found.nameless:
            self._push(_Node(child, "", *above, nameless=reason), _OBJECTS)
        for label, child in found.fallback:
            self._push(_Node(child, clean(label), *above, fallback=True), _TRACKED)

    def _add_variable(self, path: str, variable: Any, raw: Any, node: _Node) -> Leaf:
        leaf: Leaf
        if is_sharded(raw):
            parts = [raw_variable(part) for part in raw.variables]
            leaf = self._add_parts(path, parts, starts_of_parts(raw), raw.shape.as_list())
            self._raw += parts
        elif is_on_mesh(raw):
            leaf = MeshLeaf(path, raw)
            self._raw.append(raw)
        else:
            leaf = VariableLeaf(path, raw)
            self._raw.append(raw)
        self.variables[path] = variable
        self._add(leaf, node)
        if VALUE in vars(variable) and vars(variable)[VALUE] is raw:
            self.values.append((variable, raw))
        return leaf

    def _add_parts(self, path: str, parts: list[Any], starts: Any, shape: Sequence[int | None]) -> PartsLeaf:
        leaf = PartsLeaf(path, parts, starts, [size or 0 for size in shape])
        for number, part in enumerate(parts):
            self._paths[id(part)] = path
            self._part_of[id(part)] = leaf, number
            self.kept_alive.append(part)
        return leaf

    def _add(self, leaf: Leaf, node: _Node) -> None:
        leaf.metric, leaf.own = node.metric, node.own
        self.leaves.append(leaf)

    def _add_optimizer(self, node: _Node, kind: Kind | None, path: str, owner: str) -> None:
        optimizer = node.obj
        if kind is Kind.KERAS3_OPTIMIZER:
            found = keras3.optimizer_slots(optimizer)
            built_for = list(trained_by(optimizer))
        else:
            found = tf_keras.optimizer_slots(optimizer, self._raw)
            for label, part in tf_keras.python_parts(optimizer).items():
                self.python[self._unique(f"{path}/{label}")] = part
            built_for = list({id(variable): variable for _, variable, _ in found if variable is not None}.values())
        names = [self._paths.get(id(raw_variable(variable))) for variable in built_for]
        self.optimizers[path] = OptimizerNode(optimizer, owner, tuple(dict.fromkeys(name for name in names if name)))
        counts: dict[str, int] = {}
        of_parts: dict[tuple[str, str], dict[int, Any]] = {}
        slots = self._slots.setdefault(path, [])
        for name, model_variable, variable in found:
            position = counts[name] = counts.get(name, -1) + 1
            raw, raw_model = raw_variable(variable), raw_variable(model_variable)
            if id(raw) in self._paths:
                continue
            of = self._paths.get(id(raw_model), str(position))
            if id(raw_model) in self._part_of:
                of_parts.setdefault((clean(name), of), {})[self._part_of[id(raw_model)][1]] = raw
                continue
            slot_path = self._unique(f"{path}/{path_of_slot(clean(name), of, owner)}")
            self._paths[id(raw)] = slot_path
            self.kept_alive += (variable, raw)
            slots.append(_Slot(self._add_variable(slot_path, variable, raw, node), clean(name), of))
        wholes = {leaf.name: leaf for leaf, _ in self._part_of.values()}
        for (name, of), parts in of_parts.items():  # the slots for a sharded variable's parts are one tensor as well
            whole, ordered = wholes[of], [parts[number] for number in sorted(parts)]
            slot_path = self._unique(f"{path}/{path_of_slot(name, of, owner)}")
            starts = [box[0] for box in whole.boxes if box]
            if [part.shape for part in ordered] == [part.shape for part in whole.parts]:
                leaf: Leaf = self._add_parts(slot_path, ordered, starts, whole.shape_or_scalar)
                self._add(leaf, node)
                slots.append(_Slot(leaf, name, of))
                continue
            for number, part in sorted(parts.items()):  # of another shape than its part (Adafactor's): no slice of one
                self._paths[id(part)] = part_path = self._unique(f"{slot_path}/{number}")
                self.kept_alive.append(part)
                self._add_variable(part_path, part, part, node)

    def _check_numbers(self) -> None:
        """Raises `UnsupportedStateError` for a name by a key that holds the address of an object of the state."""
        met = set(map(id, self.kept_alive)) if self._numbers else set()
        names = [leaf.name for leaf in self.leaves] + list(self.python)
        for path in (path for path, numbers in self._numbers if not met.isdisjoint(numbers)):
            if any(name == path or name.startswith(f"{path}/") for name in names):
                raise UnsupportedStateError(
                    f"{path}: its dict's key is, or holds, the address of another object of the state, as id() tells "
                    "it, which is another in every process; make the key a name"
                )

    def _check_ids(self) -> None:
        """Raises `UnsupportedStateError` for a dict whose keys are how TensorFlow knows variables of the state in this
        process: by their names, and how much it had made before. One alone may be a name that looks like it."""
        dicts = [(path, keys) for path, keys in self._keys.items() if len(keys) > 1 and all(map(_COUNTED.search, keys))]
        ids = set(map(tf_keras.unique_id_of, self._raw)) if dicts else set()
        for path in (path for path, keys in dicts if ids.issuperset(keys)):
            if any(leaf.name.startswith(f"{path}/") for leaf in self.leaves):
                raise UnsupportedStateError(
                    f"{path}: its keys, as {self._keys[path][0]!r}, are those by which TensorFlow knows variables in "
                    "this process (_unique_id), which are others in every process; make them names"
                )

    def _is_found(self, obj: Any) -> bool:
        raw = raw_variable(obj) if kind_of(obj) is Kind.VARIABLE else obj
        if raw is None:
            return True
        found = id(raw_variable(raw.variables[0]) if is_sharded(raw) else raw)
        return found in self._paths or found in self._passed_over

    def _unique(self, path: str, node: _Node | None = None) -> str:
        """The path, or, where another has it, with a number: by an order that every process has."""
        candidate, count = path, 0
        while candidate in self._taken:
            depth, by_key = self._taken[candidate]
            if node and node.depth == depth and (node.by_key or by_key):
                raise UnsupportedStateError(
                    f"{path} would be the name of two objects, by keys of a dict that read the same (as 1 and '1', or "
                    "'a/b' and 'b' in 'a'): give one of them a different key"
                )
            count += 1
            candidate = f"{path}_{count}"
        if len(candidate.encode()) > MAX_NAME_BYTES:
            raise UnsupportedStateError(f"the name {candidate[:80]!r}... is longer than {MAX_NAME_BYTES} bytes")
        self._taken[candidate] = (node.depth, node.by_key) if node else _BY_NO_NODE
        return candidate

    def _add_aliases(self) -> None:
        """Gives each leaf the other paths to it, one step off its name: those through the object that has two paths."""
        by_name = {leaf.name: leaf for leaf in self.leaves}
        names = sorted(by_name)

        def add(leaf: Leaf, alias: str) -> None:
            if leaf.own:
                return  # every worker has one of its own, and a name serves once
            if len(leaf.aliases) < _MAX_ALIASES and alias not in self._taken and len(alias.encode()) <= MAX_NAME_BYTES:
                self._taken[alias] = _BY_NO_NODE
                leaf.aliases += (alias,)

        for known, node in sorted(self._other_paths, key=lambda other: other[1].path):
            if node.path == known or node.path.startswith(known + "/"):
                continue  # it refers to an object that it is a part of
            named_above: set[str] = set()
            for optimizer in self._slots if known in self._slots else ():
                if optimizer == known or optimizer.startswith(known + "/"):  # itself and those that it wraps
                    for slot in self._slots[optimizer]:
                        add(
                            slot.leaf,
                            f"{node.path}{optimizer[len(known) :]}/{path_of_slot(slot.name, slot.of, node.owner)}",
                        )
                        named_above.add(slot.leaf.name)
            if known in by_name:
                add(by_name[known], node.path)
            first = bisect.bisect_left(names, known + "/")
            for name in names[first : bisect.bisect_left(names, known + "0")]:  # "0" comes right after "/"
                if name not in named_above and len(by_name[name].aliases) < _MAX_ALIASES:
                    add(by_name[name], node.path + name[len(known) :])
