"""What the children rules share: labels, attributes, and what tells that an object has changed its children."""

from __future__ import annotations

import re
import weakref
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

import tensorflow as tf

from ckptflow.state.kinds import (
    CONTAINERS,
    OPTIMIZERS,
    Kind,
    is_checkpoint,
    is_keras3_model,
    is_tf_keras_model,
    kind_of,
)

# Fallback children are named only when no other path leads to them: what a framework tracks by itself.
_NUMBER = re.compile(r"_\d+$")
COALESCED = "_coalesced_children"  # where an optimizer of tf_keras keeps what it first told TensorFlow of its children


class Children(NamedTuple):
    """An object's children by label, in order; `fallback` those that are named last, if no other path names them."""

    named: list[tuple[str, Any]]
    fallback: list[tuple[str, Any]]


def clean(label: object) -> str:
    """A label fit for a tensor name: Unicode and slashes stay, what UTF-8 cannot hold is escaped."""
    text = str(label).encode("utf-8", "backslashreplace").decode()
    return text.strip("/") or "_"


def strip_underscores(names: Collection[str]) -> dict[str, str]:
    """Attribute names without leading underscores, or as they are where two would become one."""
    stripped = {name: name.lstrip("_") or name for name in names}
    seen: dict[str, int] = {}
    for label in stripped.values():
        seen[label] = seen.get(label, 0) + 1
    return {name: label if name == label or seen[label] == 1 else name for name, label in stripped.items()}


def attributes(obj: Any, ignored: Collection[str] = ()) -> list[tuple[str, Any]]:
    """The attributes of an object that can hold state, labelled, in the order in which they were assigned."""
    found = {
        name: value
        for name, value in vars(obj).items()
        if name not in ignored and not name.startswith("_self_") and holds_state(value)
    }
    labels = strip_underscores(found)
    return [(labels[name], value) for name, value in found.items()]


def holds_state(value: Any) -> bool:
    """Whether an attribute's value takes part in the walk. An empty list does (it may grow), a tuple of numbers not."""
    kind = kind_of(value)
    if kind is None or kind is Kind.DATASET:
        return False
    return not (type(value) is tuple and not any(holds_state(item) for item in value))


def items(container: Any) -> list[tuple[str, Any]]:
    """The items of a list, tuple or dict that hold state, by position or key."""
    if kind_of(container) is Kind.DICT:
        pairs: Iterable[tuple[Any, Any]] = list(container.items())
    elif isinstance(container, tuple) and hasattr(container, "_fields"):
        pairs = zip(container._fields, container, strict=True)
    else:
        pairs = enumerate(_values(container))
    return [(clean(key), value) for key, value in pairs if holds_state(value)]


def _values(container: Any) -> Iterable[Any]:
    # TensorFlow's list wrapper answers item by item in Python; its storage is a plain list.
    storage = vars(container).get("_storage") if hasattr(container, "__dict__") else None
    return storage if isinstance(storage, list) else container


def layer_labels(layers: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Layers by the name that their user gave them, or, where Keras made one up, by class, counted here."""
    counts: dict[str, int] = {}
    for layer in layers:
        name = str(layer.name)
        base = automatic_base(name, type(layer).__name__)
        if base is None:
            yield clean(name), layer
            continue
        count = counts.get(base, 0)
        counts[base] = count + 1
        yield (f"{base}_{count}" if count else base), layer


def automatic_base(name: str, class_name: str) -> str | None:
    """The name without its number where Keras made it up from the class; None where a user gave it."""
    plain_class = class_name.lower().replace("_", "")
    for base in (name, _NUMBER.sub("", name)):
        plain = base.lower().replace("_", "")
        if plain == plain_class or (plain == "model" and class_name == "Functional"):
            return base
    return None


def fingerprint(obj: Any, ignored: Collection[str] = ()) -> tuple[int, ...]:
    """The identities of everything an object holds that can be state, through its lists and dicts, in order.

    Two fingerprints are equal exactly if the object's children are the same, as long as those are kept alive.
    """
    ids: list[int] = []
    values = (
        value
        for name, value in vars(obj).items()
        if name not in ignored and (not name.startswith("_self_") or name == "_self_tracked_trackables")
        if name != COALESCED
    )
    _collect(values, ids, 0)
    for name in ("compiled_metrics", "compiled_loss"):  # tf_keras keeps metrics in objects that are not tracked
        container = vars(obj).get(name)
        if container is not None and kind_of(container) is None:
            _collect(vars(container).values(), ids, 0)
    return tuple(ids)


def container_fingerprint(container: Any) -> tuple[int, ...]:
    """The same of a list, tuple or dict that is an entry of the state itself."""
    ids: list[int] = []
    _collect([container], ids, 0)
    return tuple(ids)


def _collect(values: Iterable[Any], ids: list[int], depth: int) -> None:
    for value in values:
        kind = kind_of(value)
        if kind is None:
            continue
        if kind in CONTAINERS:
            if depth < 20:
                inner = value.values() if kind is Kind.DICT else _values(value)
                _collect(inner, ids, depth + 1)
        else:
            ids.append(id(value))


def singular(label: str) -> str:
    """A slot's name of the attribute that lists it: `velocities` → `velocity`, `momentums` → `momentum`."""
    if label.endswith("ies"):
        return label[:-3] + "y"
    return label[:-1] if label.endswith("s") and not label.endswith("ss") else label


def root_label(root: Any) -> str:
    """The name of an object that was handed over without one."""
    if is_keras3_model(root) or is_tf_keras_model(root):
        return "model"
    return "optimizer" if kind_of(root) in OPTIMIZERS else "state"


def checkpoint_children(checkpoint: Any) -> list[tuple[str, Any]]:
    """What a `tf.train.Checkpoint` holds now: its root as an object of its own, and its attributes by name.

    The graph that TensorFlow makes of it would merge the two, and give of a root what it tracks and no more.
    """
    root = vars(checkpoint).get("_root")
    root = root() if isinstance(root, weakref.ref) else root
    tracked = tf.train.TrackableView.children(checkpoint)
    own: dict[str, Any] = {}
    for name, value in vars(checkpoint).items():
        child = value() if isinstance(value, weakref.ref) else tracked.get(name)
        if name not in _OF_ANY_CHECKPOINT and child is not None:
            own[name] = child
    labels = strip_underscores(own)
    # A dataset stays, so that it is refused by name: without an iterator it has no position.
    named = [(clean(labels[name]), child) for name, child in own.items() if kind_of(child) is not None]
    if root is None or root is checkpoint:
        return named
    taken = {label for label, _ in named}
    roots = checkpoint_children(root) if is_checkpoint(root) else [(root_label(root), root)]
    return [("root" if label in taken else label, child) for label, child in roots] + named


_OF_ANY_CHECKPOINT = frozenset({"root", "_kwargs"}).union(
    *(vars(make()) for make in (tf.train.Checkpoint, tf.compat.v1.train.Checkpoint))
)


def generic(obj: Any) -> Children:
    """The children of any trackable object: what TensorFlow tracks, and for a `tf.Module` also what it does not."""
    if is_checkpoint(obj):
        counter = tf.train.TrackableView.children(obj).get("save_counter")
        return Children(checkpoint_children(obj) + ([] if counter is None else [("save_counter", counter)]), [])
    tracked = {clean(name): child for name, child in tf.train.TrackableView.children(obj).items()}
    labels = strip_underscores(tracked)
    named = [(labels[name], child) for name, child in tracked.items() if kind_of(child) is not None]
    fallback = attributes(obj) if isinstance(obj, tf.Module) else []
    return Children(named, fallback)
