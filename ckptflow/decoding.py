"""JSON into a type, by any thread: msgspec looks at a type when it is first asked for it, and the process crashes where
two threads ask at once."""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import msgspec

_Kind = TypeVar("_Kind")
_making = threading.Lock()
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


def decode_json(data: bytes | str | msgspec.Raw, kind: type[_Kind]) -> _Kind:
    """What `msgspec.json.decode` returns and raises."""
    with _making:
        decoder = _decoders.get(kind)
        if decoder is None:
            decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    value: _Kind = decoder.decode(data)
    return value
