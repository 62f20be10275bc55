"""Whether what a request brings is still wanted: asked before each try, and between two pieces of a reply.

A restore asks twice for what is late, and ends with its first error, or by Ctrl-C, while other requests are under way.
These cannot be called back, since they are inside a client. But a reply that comes, however slowly, need not come to
its end, and nothing is tried again: neither its buffer nor the end of the process waits for it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar

from ckptflow.errors import StorageError
from ckptflow.threads import saying

_ALWAYS: list[Callable[[], bool]] = []
_is_wanted: ContextVar[list[Callable[[], bool]]] = ContextVar("_is_wanted", default=_ALWAYS)


def while_wanted(is_wanted: Callable[[], bool]) -> AbstractContextManager[None]:
    """In this block, this thread, and the coroutines that it has run, reads end by an error once it says no."""
    return saying(_is_wanted, is_wanted)


def is_wanted() -> bool:
    """Whether what this thread reads is still waited for."""
    return all(says() for says in _is_wanted.get())


def check_wanted() -> None:
    """Raises `StorageError`, which nothing tries again, if nobody waits for the rest."""
    if not is_wanted():
        raise StorageError("given up: nobody waits for it any more")
