"""What the children rules share: labels and attributes."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from itertools import chain
from typing import Any, NamedTuple

import tensorflow as tf

from ckptflow.errors import UnsupportedStateError
from ckptflow.state.kinds import (
    CONTAINERS,
    OPTIMIZERS,
    Kind,
    follows,
    has_items,
    is_checkpoint,
    is_keras3_model,
    is_mere_container,
    is_python_state,
    is_tf_keras_model,
    is_wrapped_container,
    kind_of,
    may_hold_state,
    tells_children_itself,
)
from ckptflow.state.private import tensorflow as private
from ckptflow.state.private.tensorflow import Reference, Trackable
from ckptflow.state.private.tf_keras import COALESCED, TRACKED

# Fallback children are named only when no other path leads to them: what a framework tracks by itself.
MAX_DEPTH = 20  # of containers in containers
_NUMBER = re.compile(r"_\d+$")


class Children(NamedTuple):
    """An object's children by label, in order; `fallback` those that are named last, if no other path names them.

    `nameless`: those for which there is no name that would be the same in another process, each with the reason. They
    must be named by another path. `by_key`: the labels are keys, in an order that means nothing.
    """

    named: list[tuple[str, Any]]
    fallback: list[tuple[str, Any]]
    nameless: Sequence[tuple[str, Any]] = ()
    by_key: bool = False

    def without(self, objects: Iterable[Any]) -> Children:
        """These children but for some objects."""
        ids = set(map(id, objects))
        named, fallback = ([pair for pair in pairs if id(pair[1]) not in ids] for pairs in (self.named, self.fallback))
        return self._replace(named=named, fallback=fallback)


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
        if name not in ignored and name not in OF_TENSORFLOW and follows(obj, value) and holds_state(value)
    }
    labels = strip_underscores(found)
    return [(labels[name], value) for name, value in found.items()]


def untracked(obj: Any, ignored: Collection[str] = ()) -> list[tuple[str, Any]]:
    """Those of them that TensorFlow may not track: Python state, and containers, as a set or a UserDict. It tracks
    anything else, but for what is kept from it on purpose."""
    return [(label, value) for label, value in attributes(obj, ignored) if _is_untracked(value)]


def _is_untracked(value: Any) -> bool:
    return is_python_state(value) or (kind_of(value) in CONTAINERS and not is_plain(value))


def holds_state(value: Any) -> bool:
    """Whether an attribute's value takes part in the walk. An empty list does (it may grow), a tuple of numbers not."""
    kind = kind_of(value)
    if kind is None or kind is Kind.DATASET:
        return kind is None and is_python_state(value)
    return type(value) is not tuple or _may_grow(value)


def _may_grow(value: tuple[Any, ...]) -> bool:
    """Whether a tuple, or one in it, has something else in it that can be state: by the types, as in `is_plain`."""
    level = [value]
    while level:
        items = list(chain.from_iterable(level))
        inner = {cls for cls in set(map(type, items)) if may_hold_state(cls)}
        if inner - {tuple}:
            return True
        level = [item for item in items if type(item) is tuple] if inner else []
    return False


def of_container(container: Any) -> Children:
    """The items of a list, tuple, dict, set or record that hold state, by position, key or field."""
    kind = container_kind(container)
    if is_plain(container):
        return Children([], [])
    pairs = [(key, value) for key, value in pairs_of(container) if holds_state(value)]
    if kind is Kind.SET:
        return _of_set([value for _, value in pairs])
    is_dict = kind is Kind.DICT
    problems = [key_problem(key) if is_dict else "" for key, _ in pairs]
    named = [(clean(key), value) for (key, value), problem in zip(pairs, problems, strict=True) if not problem]
    nameless = [(problem, value) for (_, value), problem in zip(pairs, problems, strict=True) if problem]
    return Children(named, [], nameless, by_key=is_dict)


def is_plain(container: Any) -> bool:
    """Whether nothing in it is state, nor in the containers in it, by the types alone, and all of one depth at once:
    each save looks, and a million numbers take some 20 ms, however they are nested."""
    level = [container]
    for _ in range(MAX_DEPTH):
        items = list(chain.from_iterable(_values_of_all(level)))
        inner = {cls for cls in set(map(type, items)) if may_hold_state(cls)}
        if not inner:
            return True
        if not all(map(is_mere_container, inner)):
            return False
        level = [item for item in items if type(item) in inner]
    return False


def _values_of_all(containers: list[Any]) -> Iterator[Iterable[Any]]:
    groups: dict[type, list[Any]] = {}
    for each in containers:
        groups.setdefault(type(each), []).append(each)
    return chain.from_iterable(_values_of(*group) for group in groups.items())


def _values_of(cls: type, containers: list[Any]) -> Iterable[Iterable[Any]]:
    """What each of some containers of one class holds: without a step of Python for each, where that can be."""
    if cls in _BUILTIN:
        return map(_BUILTIN[cls], containers)
    if is_wrapped_container(containers[0]):  # by TensorFlow, which answers item by item in Python
        is_list = isinstance(containers[0], list)
        inside = (
            [vars(each)[private.STORAGE] for each in containers] if is_list else [c.__wrapped__ for c in containers]
        )
        return _values_of_all(inside)
    for kind, values in _BUILTIN.items():
        if issubclass(cls, kind):
            return map(values, containers)
    pairs = _items if kind_of(containers[0]) is Kind.DICT else pairs_of
    return ([value for _, value in pairs(each)] for each in containers)


_BUILTIN: dict[type, Callable[[Any], Iterable[Any]]] = {
    list: list.__iter__,
    tuple: tuple.__iter__,
    dict: dict.values,
    set: set.__iter__,
    frozenset: frozenset.__iter__,
}


def container_kind(obj: Any) -> Kind | None:
    """What kind of container an object is, also where it is a Module or a layer besides."""
    if has_items(obj):
        return Kind.DICT if isinstance(obj, dict) else Kind.SET if isinstance(obj, (set, frozenset)) else Kind.LIST
    return kind_of(obj)


def pairs_of(container: Any) -> Iterable[tuple[Any, Any]]:
    """What a container holds, by key, field or position. A set's positions mean nothing."""
    kind = container_kind(container)
    if kind is Kind.DICT:
        return _items(container)
    if kind is Kind.RECORD:
        fields = getattr(type(container), "__attrs_attrs__", None)
        if fields is None:
            return enumerate(container.__tf_flatten__()[1])
        return [(field.name, getattr(container, field.name, None)) for field in fields]
    if isinstance(container, tuple) and hasattr(container, "_fields"):
        return zip(container._fields, container, strict=True)
    # TensorFlow's list wrapper answers item by item in Python; its storage is a plain list.
    storage = vars(container).get(private.STORAGE) if hasattr(container, "__dict__") else None
    return enumerate(storage if isinstance(storage, list) else container)


def _items(mapping: Any) -> list[tuple[Any, Any]]:
    """What a mapping holds, but for a view of a file, which is data. Raises `UnsupportedStateError` for one that cannot
    say so."""
    if any(cls.__module__.partition(".")[0] in _VIEWS_OF_FILES for cls in type(mapping).__mro__):
        return []
    try:
        return list(mapping.items())
    except Exception as error:  # of a class that is not ours
        raise UnsupportedStateError(
            f"a {type(mapping).__qualname__} in the state cannot be looked at for variables ({type(error).__name__}: "
            f"{error}): the checkpoint could be incomplete. Make its items() work whenever "
            "something is saved, or keep it out of the objects in state"
        ) from error


_VIEWS_OF_FILES = {"h5py", "numpy", "shelve", "dbm"}  # open or closed: they hold no variables


_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")
_OBJECT = re.compile(r" at 0x[0-9a-f]{6,}\b")  # as Python tells of one; a number alone may be the user's own


def key_problem(key: Any) -> str:
    """Why a dict's key gives no name that is the same in every process; "" if it does."""
    is_text = isinstance(key, (str, bytes))
    if isinstance(key, (int, float)) or key is None or (is_text and not _OBJECT.search(repr(key))):
        return ""
    if isinstance(key, tuple) and (problem := next(filter(None, map(key_problem, key)), "")):
        return problem
    if not is_text and not isinstance(key, (frozenset, Trackable, Reference)):
        text = str(key)
        has_address = (_OBJECT if isinstance(key, tuple) else _ADDRESS).search(text)  # its texts are the user's own
        if not has_address and not _shows_set(key, text):
            return ""
    return (
        f"it is in a dict under a key of type {type(key).__qualname__}, which does not read the same in every "
        "process; make the key a string or a number"
    )


def _shows_set(value: Any, text: str) -> bool:
    """Whether the text of a key has a set in it, whose order is another one in each process."""
    if isinstance(value, (set, frozenset)):
        return repr(value) in text
    if isinstance(value, Enum):
        return _shows_set(value.value, text)
    parts: Iterable[Any] = value if isinstance(value, tuple) else ()
    if is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, field.name, None) for field in fields(value)]
    return any(_shows_set(part, text) for part in parts)


def _of_set(values: list[Any]) -> Children:
    """The members of a set in the order in which they were made, as far as Keras's numbers in their names tell it."""
    keys = [_order_key(value) for value in values]
    order = sorted((place for place, key in enumerate(keys) if keys.count(key) == 1), key=lambda place: keys[place])
    nameless = [(_same_in_set(key[0]), values[place]) for place, key in enumerate(keys) if keys.count(key) > 1]
    return Children(list(layer_labels(values[place] for place in order)), [], nameless)


def _same_in_set(name: str) -> str:
    return (
        "it is in a set, whose order differs between processes, together with another one named "
        f"{name!r}; put them in a list or a dict, or give each a unique name"
    )


def _order_key(value: Any) -> tuple[str, int]:
    """A name without the number that Keras made up, and that number: it counts what a process has made."""
    name, class_name = name_of(value), type(value).__name__
    base = automatic_base(name, class_name)
    number = name.removeprefix(base).removeprefix("_") if base is not None else ""
    return (name if base is None else base, int(number or 0))


def name_of(value: Any) -> str:
    """What an object is called, or, without a name, what its class is called."""
    # A variable is not asked for what it may lack: see `kinds`.
    name = value.name if kind_of(value) is Kind.VARIABLE else getattr(value, "name", None)
    return str(name or type(value).__name__.lower()).split(":")[0]


def layer_labels(layers: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Layers by the name that their user gave them, or, where Keras made one up, by class, counted here."""
    counts: dict[str, int] = {}
    for layer in layers:
        name = name_of(layer)
        base = automatic_base(name, type(layer).__name__)
        if base is None:
            yield clean(name), layer
            continue
        count = counts.get(base, 0)
        counts[base] = count + 1
        yield (f"{base}_{count}" if count else base), layer


def automatic_base(name: str, class_name: str) -> str | None:
    """The name without its number where Keras made it up from the class; None if a user gave it."""
    plain_class = class_name.lower().replace("_", "")
    made_up = {plain_class, *(["private" + plain_class] if class_name.startswith("_") else [])}  # as tf_keras does
    for base in (name, _NUMBER.sub("", name)):
        plain = base.lower().replace("_", "")
        if plain in made_up or (plain == "model" and class_name == "Functional"):
            return base
    return None


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
    root = vars(checkpoint).get(private.ROOT)
    root = root() if isinstance(root, weakref.ref) else root
    edges = tracked(checkpoint)
    own: dict[str, Any] = {}
    for name, value in vars(checkpoint).items():
        child = value() if isinstance(value, weakref.ref) else edges.get(name, value if _is_untracked(value) else None)
        if name not in _OF_ANY_CHECKPOINT and child is not None:
            own[name] = child
    if tells_children_itself(checkpoint) and root is None:
        own |= {name: child for name, child in edges.items() if name not in own and name != "save_counter"}
    labels = strip_underscores(own)
    # A dataset stays, so that it is refused by name: without an iterator it has no position.
    named = [(clean(labels[name]), child) for name, child in own.items() if kind_of(child) or is_python_state(child)]
    if root is None or root is checkpoint:
        return named
    taken = {label for label, _ in named}
    roots = checkpoint_children(root) if is_checkpoint(root) else [(root_label(root), root)]
    return [("root" if label in taken else label, child) for label, child in roots] + named


_bare = tf.Module()
tf.train.TrackableView.children(_bare)
# In which attributes TensorFlow and tf_keras themselves keep what they track.
OF_TENSORFLOW = {name for name in vars(_bare) if name.startswith(private.OWN)} | {TRACKED, COALESCED}
_OF_ANY_CHECKPOINT = frozenset({"root", private.ARGUMENTS}).union(
    *(vars(make()) for make in (tf.train.Checkpoint, tf.compat.v1.train.Checkpoint))
)


def tracked(obj: Any) -> dict[str, Any]:
    """What TensorFlow tracks of a trackable object, by its name for each."""
    is_new = COALESCED not in getattr(obj, "__dict__", {COALESCED})
    try:
        return dict(tf.train.TrackableView.children(obj))
    finally:
        if is_new:  # it would tell the same for ever, also once it is built
            vars(obj).pop(COALESCED, None)


def graph_children(obj: Any, ignored: Collection[str] = ()) -> list[tuple[str, Any]]:
    """What TensorFlow itself tracks of an object, labelled by its edges."""
    if not isinstance(obj, Trackable):
        return []
    found = {
        clean(name): child for name, child in tracked(obj).items() if name not in ignored and kind_of(child) is not None
    }
    labels = strip_underscores(found)
    return [(labels[name], child) for name, child in found.items()]


def generic(obj: Any) -> Children:
    """The children of any trackable object: what TensorFlow tracks, and what it does not. Of that, a `tf.Module` lists
    everything as its own."""
    if is_checkpoint(obj):
        counter = tracked(obj).get("save_counter")
        return Children(checkpoint_children(obj) + ([] if counter is None else [("save_counter", counter)]), [])
    return Children(graph_children(obj), attributes(obj) if isinstance(obj, tf.Module) else untracked(obj))
