"""JSON into a type, by any thread: msgspec looks at a type when it is first asked for it, and the process crashes where
two threads ask at once. And whether JSON has more lists and objects than memory is to be taken for."""

from __future__ import annotations

import re
import threading
from typing import Any, TypeVar

import msgspec

_Kind = TypeVar("_Kind")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+\\?(?:"|\Z)', re.DOTALL)  # one without an end as well: linear in any text
_making = threading.Lock()
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


def is_flat(text: bytes, size_bytes: int, spare: int) -> bool:
    """Whether JSON of so many bytes has few lists and objects in `text`, `spare` and some for its length: each takes
    far more memory than its bracket."""
    return text.count(b"[") + text.count(b"{") <= spare + size_bytes // 16


def without_strings(text: bytes) -> bytes:
    """JSON without its strings, in which brackets are no lists."""
    return _STRING.sub(b"", text)


def decode_json(data: bytes | str | msgspec.Raw, kind: type[_Kind]) -> _Kind:
    """What `msgspec.json.decode` returns and raises."""
    with _making:
        decoder = _decoders.get(kind)
        if decoder is None:
            decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    value: _Kind = decoder.decode(data)
    return value
