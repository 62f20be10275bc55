"""What only plain Python objects lead to: the frameworks do not track it, so a checkpoint does not have it."""

from __future__ import annotations

import contextlib
import functools
from collections import ChainMap, UserDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from operator import attrgetter
from types import CellType, FunctionType, MappingProxyType, MemberDescriptorType, MethodType
from typing import Any
from weakref import WeakSet

import numpy as np
import tensorflow as tf

from ckptflow.format.words import some_of
from ckptflow.state.kinds import (
    CONTAINERS,
    METRICS,
    OPTIMIZERS,
    Kind,
    is_built,
    is_of_library,
    is_python_state,
    is_wrapped_container,
    kind_of,
)
from ckptflow.state.private.tensorflow import OWN, STORAGE

_MAX_ITEMS = 1000  # of a list or dict: longer ones are data
_FIRST = 8  # of these items it is told whether it is data
_MAX_LOOKS = 50_000  # at objects and items, of one walk
_MAX_DEPTH = 6
_SHOWN = 5
_EMPTY_CELL = CellType()
_MAPPINGS = (ChainMap, UserDict)  # which have it in an attribute
_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_ITEMS: dict[type, Callable[[Any], Iterable[Any]]] = {
    dict: dict.values,
    list: list.__iter__,
    tuple: tuple.__iter__,
    set: set.__iter__,
    frozenset: frozenset.__iter__,
    deque: deque.__iter__,
    MappingProxyType: MappingProxyType.values,
    WeakSet: WeakSet.__iter__,
    np.ndarray: attrgetter("flat"),
    **dict.fromkeys(_VIEWS, iter),
}
_SCALARS = {int, float, complex, bool, str, bytes, type(None)}
_FUNCTIONS = (FunctionType, MethodType, functools.partial)
_SHOWN_BY_CLASS = (Kind.TABLE, Kind.ITERATOR, Kind.LOOKUP, Kind.DISCRETIZATION)


def unseen(objects: Iterable[tuple[str, Any]], is_found: Callable[[Any], bool]) -> dict[str, str]:
    """By the path of an attribute of one of the objects: the names of variables, tables and such, and the classes of
    what has Python state, that are below it and that were not found. Looks at attributes, slots, closures and items
    alone, and calls nothing of the user's. Below an optimizer that is not built, those that are not built either are
    passed over: one that chooses among them takes them as its own when it is.
    """
    found: dict[str, str] = {}
    search = _Search(is_found)
    for path, obj in objects:
        if kind_of(obj) in CONTAINERS:
            continue
        may_take_others = _is_unbuilt_optimizer(obj)
        cls: Any = type(obj)
        hidden = [(name, value) for name, value in attributes_of(obj) if _may_hide(name, value)]
        for name, value in hidden + _of_class(cls):
            lost = []
            with contextlib.suppress(Exception):  # whatever is met there: this only warns
                lost += [_name_of(each) for each in search.lost_below(value, may_take_others)]
            if lost:
                found[f"{path}.{name}"] = some_of(lost, _SHOWN)
    return found


class _Search:
    """Meets each object once."""

    def __init__(self, is_found: Callable[[Any], bool]) -> None:
        self._is_found = is_found
        self._met: set[int] = set()
        self._looks = 0

    def lost_below(self, top: Any, may_take_others: bool) -> Iterator[Any]:
        left = [(top, 0)]
        while left:
            obj, depth = left.pop()
            self._looks += 1
            if self._looks > _MAX_LOOKS:
                return
            if id(obj) not in self._met and depth <= _MAX_DEPTH:
                if may_take_others and _is_unbuilt_optimizer(obj):
                    continue
                kind = kind_of(obj)
                if kind is Kind.VARIABLE or kind in _SHOWN_BY_CLASS or is_python_state(obj):
                    self._met.add(id(obj))
                    if not self._is_found(obj):
                        yield obj
                else:
                    left += [(each, depth + 1) for each in self._inside(obj, kind) if type(each) not in _SCALARS]

    def _inside(self, obj: Any, kind: Kind | None) -> list[Any]:
        if kind is None and not leads_on(obj):
            return []
        self._met.add(id(obj))
        if kind in CONTAINERS:
            return _items_of(obj)
        if kind in METRICS or kind is Kind.DATASET or self._is_found(obj):
            return []
        return _held_by(obj)


def _is_unbuilt_optimizer(obj: Any) -> bool:
    return kind_of(obj) in OPTIMIZERS and not is_built(obj)


def _may_hide(name: str, value: Any) -> bool:
    if name.startswith(OWN):
        return False
    kind = kind_of(value)
    return kind in CONTAINERS or (kind is None and leads_on(value))


def _items_of(container: Any) -> list[Any]:
    """What a container holds, without a call to its own class, which may read it from anywhere; nothing of what is
    long, or begins with numbers or texts: that is data."""
    if is_wrapped_container(container):  # by TensorFlow: what it is made of lies elsewhere
        container = vars(container)[STORAGE] if isinstance(container, list) else container.__wrapped__
    cls: Any = type(container)
    read = next((read for base, read in _ITEMS.items() if issubclass(cls, base)), None)
    if read is None:
        is_known = kind_of(container) is not Kind.DICT or issubclass(cls, _MAPPINGS)
        return [value for _, value in attributes_of(container)] if is_known else []
    items = list(islice(read(container), _MAX_ITEMS + 1))
    is_data = len(items) > _MAX_ITEMS or all(type(each) in _SCALARS for each in items[:_FIRST])
    return [] if is_data else items


def leads_on(obj: Any) -> bool:
    """Whether what an object holds that is of no kind is looked at: one of the user's own classes, a function, a
    view of a dict, or an array of objects."""
    if isinstance(obj, np.ndarray):
        return bool(obj.dtype.kind == "O")
    cls: Any = type(obj)
    return _lead_on(cls)


@functools.cache
def _lead_on(cls: Any) -> bool:
    if issubclass(cls, type):
        return False
    return not is_of_library(cls) or issubclass(cls, (*_FUNCTIONS, *_VIEWS, tf.train.ExponentialMovingAverage))


def _held_by(obj: Any) -> list[Any]:
    if isinstance(obj, FunctionType):
        return [cell.cell_contents for cell in obj.__closure__ or () if cell != _EMPTY_CELL]
    if isinstance(obj, MethodType):
        return [obj.__self__, obj.__func__]
    if isinstance(obj, functools.partial):
        return [obj.func, *obj.args, *obj.keywords.values()]
    if isinstance(obj, (WeakSet, np.ndarray, *_VIEWS)):
        return _items_of(obj)
    return [value for _, value in attributes_of(obj)]


@functools.cache
def _classes_of_users(cls: Any) -> tuple[Any, ...]:
    return tuple(base for base in cls.__mro__ if not is_of_library(base))


def _of_class(cls: Any) -> list[tuple[str, Any]]:
    """What a class of the user's has for all of its objects, if it is state."""
    return [
        (name, value)
        for base in _classes_of_users(cls)
        for name, value in vars(base).items()
        if kind_of(value) not in (None, *METRICS)
    ]


def _name_of(obj: Any) -> str:
    if kind_of(obj) is Kind.VARIABLE:
        return f"{obj.name} {obj.shape}"
    return f"a {type(obj).__qualname__}"


def attributes_of(obj: Any) -> list[tuple[str, Any]]:
    """The attributes of any object, also where they are in slots."""
    held = getattr(obj, "__dict__", None)
    found = list(held.items()) if isinstance(held, Mapping) else []
    cls: Any = type(obj)
    for name in _slots_of(cls):
        with contextlib.suppress(Exception):  # one that was never set
            found.append((name, getattr(obj, name)))
    return found


@functools.cache
def _slots_of(cls: Any) -> tuple[str, ...]:
    found: list[str] = []
    for base in cls.__mro__:
        slots = vars(base).get("__slots__", ())
        names = (slots,) if isinstance(slots, str) else tuple(slots)
        found += [name for name in names if isinstance(vars(base).get(name), MemberDescriptorType)]
    return tuple(found)
