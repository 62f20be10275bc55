"""What tells that an object's children, or their names, are no longer those that the walk found."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from ckptflow.state.children import (
    MAX_DEPTH,
    OF_TENSORFLOW,
    container_kind,
    holds_state,
    is_plain,
    key_problem,
    name_of,
    pairs_of,
    tracked,
)
from ckptflow.state.kinds import (
    CONTAINERS,
    Kind,
    follows,
    has_items,
    is_python_state,
    kind_of,
    tells_children_itself,
)
from ckptflow.state.private import tf_keras
from ckptflow.state.private.tensorflow import BY_NAME, Trackable

Fingerprint = tuple[Any, ...]
_NAMES = ("name", tf_keras.NAME)  # by which whatever lists a layer may call it


def fingerprint(obj: Any, ignored: Collection[str] = ()) -> Fingerprint:
    """Everything an object holds that can be state, through its lists and dicts: what each is called, and its identity.

    Two fingerprints are equal only if the object's children are the same under the same labels, in the same order, as
    long as those are kept alive. Labels are told by the text that they give a name, not by what is equal: 1 and True
    are, as keys.
    """
    held = vars(obj)
    values = (
        (name, value)
        for name, value in held.items()
        if name not in ignored and (name not in OF_TENSORFLOW or name == tf_keras.TRACKED) and follows(obj, value)
    )
    found = _collect(values, 0)
    found += [held[name] for name in _NAMES if type(held.get(name)) is str]
    by_name = held.get(BY_NAME)
    if by_name:
        found += _collect(((name, child) for name, child in by_name.items() if name not in held), 0)
    if has_items(obj) and not is_plain(obj):
        found.append(tuple(_collect(_labelled(obj, container_kind(obj)), 0)))
    if tells_children_itself(obj):
        found += _collect(tracked(obj).items(), 0)
    for name in ("compiled_metrics", "compiled_loss"):  # tf_keras keeps metrics in objects that are not tracked
        container = held.get(name)
        if container is not None and kind_of(container) is None:
            found += _collect(vars(container).items(), 0)
    return tuple(found)


def container_fingerprint(container: Any) -> Fingerprint:
    """The same of a list, tuple or dict that is an entry of the state itself."""
    return tuple(_collect([("", container)], 0))


def _collect(pairs: Iterable[tuple[Any, Any]], depth: int) -> list[Any]:
    found: list[Any] = []
    for label, value in pairs:
        kind = kind_of(value)
        if kind in CONTAINERS:
            found.append(isinstance(value, Trackable))  # whether TensorFlow tracks it: its labels are others
            if depth < MAX_DEPTH and not is_plain(value):
                found.append((label, tuple(_collect(_labelled(value, kind), depth + 1))))
            elif type(value) is not tuple or holds_state(value):  # nothing yet, and its name is taken nevertheless
                found.append((label,))
            if is_python_state(value):
                found.append(id(value))
        elif kind is not None or is_python_state(value):
            found.append((label, id(value)))
    return found


def _labelled(container: Any, kind: Kind | None) -> Iterable[tuple[Any, Any]]:
    if kind is Kind.SET:
        return ((name_of(value) if holds_state(value) else "", value) for _, value in pairs_of(container))
    return ((_text(key), value) for key, value in pairs_of(container)) if kind is Kind.DICT else pairs_of(container)


def _text(key: Any) -> str:
    """What a dict's key reads as in names; nothing where it gives none."""
    if type(key) is str:
        return key
    return "" if key_problem(key) else str(key)
