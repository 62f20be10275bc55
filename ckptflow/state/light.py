"""Keras's configs without the data in them.

A config may hold whole matrices (`Constant(matrix)`) and word lists (`StringLookup(vocabulary=words)`), as text, many
times as large as they are in memory. Most of it is in the checkpoint already, as tensors: what an initializer began
with, and what a lookup layer looks up. Other data has no place in a manifest beyond `MAX_DATA_BYTES`: what holds it is
marked, and whoever asked for the config leaves that part out. Nothing large is ever made into text to find that out.

Both Kerases serialize by one function that calls itself through its module. That is where each object and value is
looked at before Keras does, in this thread alone, for as long as it takes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from ckptflow.state.kinds import Kind, keras3, kind_of, tf_keras
from ckptflow.state.private import kerases
from ckptflow.state.private.tensorflow import EagerTensor, Initializer
from ckptflow.state.private.tf_keras import NAME, calls_in

MAX_DATA_BYTES = 256 << 10  # of one value that nothing but the config holds
MAX_ALL_DATA_BYTES = 2 << 20  # of all such values in one config that are longer than a few bytes
MAX_SAVED_DATA_BYTES = 1 << 10  # of one that is saved as a tensor, or that no restored model needs
_MARK = "__left_out__"
_NUMBERS = (int, float, complex, np.generic)
_ITEMS = (list, tuple, set, frozenset)
_AT_ONCE = frozenset({type(None), bool, int, float})  # most of what a config is made of
_SHORT = 1000  # characters
_FEW_BYTES = 16 << 10
_DATA = (str, bytes, dict, *_ITEMS, np.ndarray, EagerTensor)

_lock = threading.RLock()


def serialize_light(obj: Any, framework: str) -> Any:
    """What Keras's `serialize_keras_object` gives, of `keras` or `tf_keras`, with marks where there was data.

    A layer that is shared is known as one. Raises whatever the object's classes raise.
    """
    lib = kerases.of(framework).serialization()
    light = _Light(keras3() if framework == "keras" else tf_keras())
    with _lock, lib.ObjectSharingScope(), kerases.serializing_by(framework, light.in_place_of):
        try:
            return lib.serialize_keras_object(obj)
        except Exception as error:
            if light.missed:  # a class that computes with its data when it is asked for its config
                return mark(light.missed[0], f"what raises {type(error).__name__} without it")
            raise


class _Light:
    """Lets Keras serialize objects and values as they are, or what stands for them. `missed` says what is not there."""

    def __init__(self, keras: Any) -> None:
        self.missed: list[str] = []
        self._keras = keras
        self._made: dict[int, tuple[Any, Any]] = {}  # by identity, with the object, so that it stays its identity
        self._path: list[str] = []
        self._bytes = 0

    def in_place_of(self, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """What takes the place of Keras's function, in this thread alone."""
        thread = threading.get_ident()

        def serialize(obj: Any) -> Any:
            kind = type(obj)
            if threading.get_ident() != thread or kind in _AT_ONCE or (kind is str and len(obj) < _SHORT):
                return original(obj)
            if not hasattr(kind, "get_config"):
                return original(self._of(obj))
            self._path.append(_name(obj))
            try:
                return original(self._of(obj))
            finally:
                self._path.pop()

        return serialize

    def _of(self, obj: Any) -> Any:
        if isinstance(obj, _Data):
            return self._mark(obj.value)
        if isinstance(obj, _DATA):
            size_bytes = data_bytes(obj, MAX_DATA_BYTES)
            if size_bytes <= _FEW_BYTES:
                return obj
            self._bytes += size_bytes
            return self._mark(obj) if size_bytes > MAX_DATA_BYTES or self._bytes > MAX_ALL_DATA_BYTES else obj
        if not hasattr(type(obj), "get_config") or not hasattr(obj, "__dict__"):
            return obj
        if id(obj) not in self._made:
            made = _without_data(obj, self._keras)
            self._made[id(obj)] = obj, made
            self.missed += [_text(value.value) for value in vars(made).values() if isinstance(value, _Data)]
        return self._made[id(obj)][1]

    def _mark(self, value: Any) -> dict[str, Any]:
        return mark(_text(value), " in ".join(reversed(self._path)) or "it")


def _name(obj: Any) -> str:
    name = getattr(obj, "__dict__", {}).get(NAME)
    return type(obj).__name__ + (f" {name!r}" if isinstance(name, str) else "")


class _Data:
    """Stands for data in an object's attribute, so that nothing makes text of it."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _without_data(obj: Any, keras: Any) -> Any:
    """The object, or a shallow copy of it in which large data is marked; the object itself is not touched.

    One that does something when it is deleted is not copied, as the copy would do it.
    """
    is_initializer = isinstance(obj, (Initializer, keras.initializers.Initializer))
    is_lookup = kind_of(obj) is Kind.LOOKUP
    limit_bytes = MAX_SAVED_DATA_BYTES if is_initializer or is_lookup else MAX_DATA_BYTES
    found = vars(obj)
    stand_ins: dict[str, Any] = {
        name: _Data(value) for name, value in found.items() if data_bytes(value, limit_bytes) > limit_bytes
    }
    if kind_of(found.get(kerases.LOOKUP)) is Kind.LOOKUP:  # a TextVectorization, whose config has its words
        inner = _without_data(found[kerases.LOOKUP], keras)
        if inner is not found[kerases.LOOKUP]:
            stand_ins[kerases.LOOKUP] = inner
    if not stand_ins or hasattr(type(obj), "__del__"):
        return obj
    if is_initializer:  # whatever it gives, the checkpoint's values take its place
        return keras.initializers.Zeros()
    if is_lookup:
        stand_ins |= {"input_vocabulary": None, "input_idf_weights": None}
    copy = object.__new__(type(obj))
    vars(copy).update(found | stand_ins)
    return copy


def data_bytes(value: Any, limit_bytes: int) -> int:
    """About how many bytes of plain data a value is, without what is in objects; counts no further than the limit."""
    if type(value) in _AT_ONCE or not isinstance(value, _DATA):
        return 0
    total, waiting = 0, [value]
    while waiting and total <= limit_bytes:
        each = waiting.pop()
        if isinstance(each, (str, bytes)):
            total += len(each)
        elif isinstance(each, _NUMBERS):
            total += 8
        elif isinstance(each, np.ndarray):
            total += each.nbytes
        elif isinstance(each, EagerTensor):
            total += each.shape.num_elements() * max(each.dtype.size, 1)
        elif isinstance(each, _ITEMS):
            total += len(each)
            waiting.extend(each if total <= limit_bytes else ())  # += would ask a wrapped tuple to do it
        elif isinstance(each, dict) and each is value:  # a dict inside of it is looked at when its turn comes
            total += len(each)
            waiting += (*each, *(inner for inner in each.values() if isinstance(inner, (str, *_NUMBERS))))
    return total


def has_large_constants(model: Any) -> bool:
    """Whether a model of tf_keras calls its layers with constants that are data: it makes text of them by itself."""
    return any(
        data_bytes(tf.nest.flatten((node.call_args, node.call_kwargs)), MAX_DATA_BYTES) > MAX_DATA_BYTES
        for layer in kerases.layers_in(model)
        for node in calls_in(layer)
    )


def mark(what: str, where: str) -> dict[str, Any]:
    """What stands in a config for data that is not in it."""
    return {"class_name": _MARK, "config": {"what": f"{what} in {where}"}}


def marks_in(config: Any) -> list[str]:
    """What was left out of a config, in words."""
    found: list[str] = []
    waiting = [config]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            if each.get("class_name") == _MARK:
                found.append(str(each["config"]["what"]))
            else:
                waiting += each.values()
        elif isinstance(each, (list, tuple)):
            waiting += each
    return found


def _text(value: Any) -> str:
    if isinstance(value, (np.ndarray, EagerTensor)):
        dtype = value.dtype if isinstance(value, np.ndarray) else value.dtype.name
        return f"an array of {dtype} {tuple(value.shape)}"
    kind = next(kind for kind in (str, bytes, dict, *_ITEMS) if isinstance(value, kind))
    return f"a {kind.__name__} of {len(value):,}"
