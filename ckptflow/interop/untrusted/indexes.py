"""The index of a model in several files, which says what is in which of them; somebody else wrote it."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from ckptflow.decoding import decode_json, is_flat, without_strings
from ckptflow.errors import CorruptCheckpointError
from ckptflow.interop.untrusted.private_copy import open_regular
from ckptflow.storage.faults import os_errors

_Kind = TypeVar("_Kind")
_SPARE_LISTS = 16  # of an index with few entries


def read_index(path: str, kind: type[_Kind], max_bytes: int, what: str) -> _Kind:
    """The index at `path`, which is called `what` in messages, as the type `kind`: its other members are passed over.

    Raises `CorruptCheckpointError` where it is longer than `max_bytes`, has more lists and objects than its entries
    need, or is none; else as `open_regular`, and `StorageError`.
    """
    with os_errors("read", path), open_regular(path) as file:
        text = file.read(max_bytes + 1)
    try:
        if len(text) > max_bytes:
            raise ValueError(f"longer than {max_bytes:,} bytes")
        if not is_flat(without_strings(text), len(text), _SPARE_LISTS):
            raise ValueError("it has too many lists and objects for its size")
        return decode_json(text, kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{path} is not an {what}: {error}") from error
