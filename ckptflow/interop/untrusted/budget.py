"""How much memory and time a foreign file may take: in proportion to its bytes as they came, however it is packed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar

from ckptflow.errors import UsageError
from ckptflow.state.limits import limited, machine_bytes

MEMORY_VARIABLE = "CKPTFLOW_FOREIGN_MEMORY_BYTES"
TIME_VARIABLE = "CKPTFLOW_FOREIGN_TIME_S"
UNPACKED_FREE_BYTES = 2**26  # what a small file may unpack to: all zeros, vocabularies
UNPACKED_RATIO = 50  # weights stay below 4, with an optimizer that was not used yet
_PARSER_FREE_BYTES, _PARSER_RATIO = 2**29, 16  # of short texts, which are objects in memory, and of a proto's messages
VARIABLES_FREE_BYTES, VARIABLES_RATIO = 2**26, 8  # an optimizer may be new, with several slots, all may be wider
_TIME_S, _BYTES_PER_S = 120, 2**22  # slower than any disk that a model is read from

_source_bytes: ContextVar[int | None] = ContextVar("source_bytes", default=None)


@contextlib.contextmanager
def one_source(size_bytes: int) -> Iterator[None]:
    """All that is read inside of it came packed as one file of so many bytes, which is what it is measured by."""
    token = _source_bytes.set(size_bytes)
    try:
        yield
    finally:
        _source_bytes.reset(token)


def unpacked_bytes(size_bytes: int) -> int:
    """What all that is packed in a file of so many bytes may take in memory, through all layers of packing."""
    chosen = chosen_bytes()
    if chosen is not None:
        return chosen
    source_bytes = _source_bytes.get()
    return UNPACKED_FREE_BYTES + UNPACKED_RATIO * (size_bytes if source_bytes is None else source_bytes)


def parser_bytes(size_bytes: int) -> int:
    """What a process may take, beyond what it is before, that reads files of so many bytes in all."""
    chosen = chosen_bytes()
    return _usual_bytes(size_bytes) if chosen is None else chosen


def builder_bytes(size_bytes: int) -> int:
    """As `parser_bytes`, of a process that only builds a model: what the user chose may be meant for its variables, so
    that it never lowers this."""
    return max(_usual_bytes(size_bytes), chosen_bytes() or 0)


def _usual_bytes(size_bytes: int) -> int:
    wanted = min(_PARSER_RATIO * size_bytes, machine_bytes())
    if _source_bytes.get() is not None:
        wanted = min(wanted, 2 * unpacked_bytes(size_bytes))
    return _PARSER_FREE_BYTES + wanted


def limited_variables(stored_bytes: int | None, where: str) -> contextlib.AbstractContextManager[None]:
    """The variables that a config asks for inside of it may take what goes with so much that is stored for them.

    Raises `UsageError` where they would take more.
    """
    if stored_bytes is None:
        return contextlib.nullcontext()
    most = VARIABLES_FREE_BYTES + min(VARIABLES_RATIO * stored_bytes, machine_bytes())
    way = (
        f"Hand the model over (model=), made by your code, or allow more bytes by {MEMORY_VARIABLE} in the environment"
    )
    return limited(max(most, chosen_bytes() or 0), where, way)


def parser_s(size_bytes: int) -> int:
    """The seconds that reading files of so many bytes in all may take."""
    chosen = _chosen(TIME_VARIABLE)
    return _TIME_S + size_bytes // _BYTES_PER_S if chosen is None else chosen


def chosen_bytes() -> int | None:
    """What the user has said that reading a foreign file may take, instead of what is in proportion to it."""
    return _chosen(MEMORY_VARIABLE)


def _chosen(name: str) -> int | None:
    text = os.environ.get(name)
    if not text:
        return None
    if not text.isdecimal() or len(text) > 18 or not int(text):
        raise UsageError(f"{name} is a number above 0, not {text!r:.50}")
    return int(text)
