"""Plain Python state ↔ JSON, without loss and without pickle.

JSON has no infinities, no bytes, no tuples, no integers that every reader takes whole, and only strings as keys. What
it lacks becomes an object with one member whose name starts with "$"; a key of the state's own that starts with "$"
gets one more "$" in front:

    {"$int": "0x…"} beyond ±2**53 · {"$float": "nan" | "inf" | "-inf"} · {"$bytes": base64} · {"$tuple": […]}
    {"$dict": [[key, value], …]} where a key is no string · {"$str": base64 of UTF-8} where a string has lone surrogates
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from ckptflow.errors import CorruptCheckpointError, UnsupportedStateError

MAX_DEPTH = 100  # of lists, tuples and dicts in one another
# What a manifest has room for beside its tensors: of the state, the workers' own together, and of the metadata.
MAX_STATE_BYTES = 128 * 2**20
MAX_METADATA_BYTES = 32 * 2**20
_EXACT_INT = 2**53  # beyond this, JSON readers that hold numbers as float64 lose digits
_SCALARS = (type(None), bool, int, float, str, bytes)


def to_json(value: Any, where: str) -> Any:
    """The JSON-able form of a value, from which `from_json` makes an equal value of the same types.

    Takes None, bool, int, float, str, bytes, list, tuple and dict (with any of the first six as keys), and NumPy
    scalars that equal one of these, which they become. Raises `UnsupportedStateError` for anything else, naming its
    place below `where`.
    """
    return _to_json(value, where, ())


def from_json(value: Any, where: str = "state") -> Any:
    """The value that `to_json` made `value` of. Raises `CorruptCheckpointError` for what `to_json` never makes."""
    return _from_json(value, where, 0)


def check_room(found: Mapping[str, Any], max_bytes: int) -> None:
    """Raises `UnsupportedStateError`, naming the largest, if JSON's form of values and names takes more.

    Lists and dicts, which take much more memory than text, have a bound of their own: one for each 256 bytes of room,
    and for each 16 that are used.
    """
    texts = {name: msgspec.json.encode({name: value}) for name, value in found.items()}
    sizes = {name: len(text) for name, text in texts.items()}
    containers = sum(text.count(b"[") + text.count(b"{") - 1 for text in texts.values())
    total_bytes = sum(sizes.values())
    if total_bytes <= max_bytes and containers <= (max_bytes + 16 * total_bytes) // 256:
        return
    name = max(sizes, key=lambda name: sizes[name])
    raise UnsupportedStateError(
        f"{name} takes {sizes[name]:,} bytes of JSON, of {total_bytes:,} in all, with {containers:,} lists and dicts; "
        f"there is room for {max_bytes:,} bytes of such state in a manifest. Nothing was saved. Keep large data in a "
        "tf.Variable or a table, which become tensors"
    )


def _to_json(value: Any, where: str, path: tuple[Any, ...]) -> Any:
    value = _as_python(value)
    kind = type(value)
    if kind not in _SCALARS and kind not in (list, tuple, dict):
        raise UnsupportedStateError(
            f"{_place(where, path)} is of type {kind.__module__}.{kind.__qualname__}, which a checkpoint cannot store "
            "exactly; build it from None, bool, int, float, str, bytes, list, tuple and dict (an array: "
            "array.tolist(), "
            "or a tf.Variable)"
        )
    if value is None or kind is bool:
        return value
    if kind is int:
        return value if -_EXACT_INT <= value <= _EXACT_INT else {"$int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if kind is str:
        return value if is_unicode(value) else {"$str": _base64(value.encode("utf-8", "surrogatepass"))}
    if kind is bytes:
        return {"$bytes": _base64(value)}
    if len(path) == MAX_DEPTH:
        raise UnsupportedStateError(
            f"{where} is nested more than {MAX_DEPTH} deep, or contains itself; make it flatter"
        )
    if kind is not dict:
        items = [_to_json(item, where, (*path, index)) for index, item in enumerate(value)]
        return items if kind is list else {"$tuple": items}
    if all(type(key) is str and is_unicode(key) for key in value):
        return {
            f"${key}" if key.startswith("$") else key: _to_json(item, where, (*path, key))
            for key, item in value.items()
        }
    for key in value:
        if type(_as_python(key)) not in _SCALARS:
            raise UnsupportedStateError(
                f"{_place(where, path)} has a key of type {type(key).__name__}; keys can be None, bool, int, float, "
                "str or bytes"
            )
    return {"$dict": [[_to_json(key, where, path), _to_json(item, where, (*path, key))] for key, item in value.items()]}


def _as_python(value: Any) -> Any:
    """A NumPy scalar as Python's own of the same value; any other value, and a scalar that Python has none for, as it
    is. By `item()` a time would be a number or a datetime, a record a tuple, and a text would lose zeros at its end."""
    if isinstance(value, (np.str_, np.bytes_)):
        return "".join([value]) if isinstance(value, np.str_) else bytes(value)  # its own __str__ strips zeros, too
    is_other = not isinstance(value, np.generic) or isinstance(value, (np.datetime64, np.timedelta64, np.void))
    return value if is_other else value.item()


def _place(where: str, path: tuple[Any, ...]) -> str:
    shown = (hex(step) if type(step) is int and abs(step) > _EXACT_INT else repr(step) for step in path)
    return where + "".join(f"[{text if len(text) < 60 else text[:60] + '…'}]" for text in shown)


def _from_json(value: Any, where: str, depth: int) -> Any:
    if isinstance(value, list):
        _check_depth(where, depth)
        return [_from_json(item, where, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((tag, content),) = value.items()
        if tag.startswith("$") and not tag.startswith("$$"):
            return _from_tag(tag, content, where, depth)
    _check_depth(where, depth)
    if any(key.startswith("$") and not key.startswith("$$") for key in value):
        raise CorruptCheckpointError(f"{where} has a member whose name starts with a single '$' among others")
    return {key.removeprefix("$"): _from_json(item, where, depth + 1) for key, item in value.items()}


def _check_depth(where: str, depth: int) -> None:
    """Raises for a container that `to_json` would not have written."""
    if depth >= MAX_DEPTH:
        raise CorruptCheckpointError(f"{where} is nested more than {MAX_DEPTH} deep")


def _from_tag(tag: str, content: Any, where: str, depth: int) -> Any:
    try:
        if tag == "$int" and isinstance(content, str):
            return int(content, 16)
        if tag == "$float" and content in ("nan", "inf", "-inf"):
            return float(content)
        if tag == "$bytes" and isinstance(content, str):
            return base64.b64decode(content, validate=True)
        if tag == "$str" and isinstance(content, str):
            return base64.b64decode(content, validate=True).decode("utf-8", "surrogatepass")
        if tag in ("$tuple", "$dict"):
            _check_depth(where, depth)
        if tag == "$tuple" and isinstance(content, list):
            return tuple(_from_json(item, where, depth + 1) for item in content)
        if tag == "$dict" and isinstance(content, list):
            pairs = [(_from_json(key, where, MAX_DEPTH), item) for key, item in content]
            if all(isinstance(key, _SCALARS) for key, _ in pairs):
                return {key: _from_json(item, where, depth + 1) for key, item in pairs}
    except CorruptCheckpointError:
        raise
    except (ValueError, TypeError) as error:
        raise CorruptCheckpointError(f"{where} has a malformed {tag!r}: {error}") from error
    raise CorruptCheckpointError(f"{where} has a member {tag!r} that is not a known kind of value")


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
