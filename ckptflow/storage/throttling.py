"""A storage that asks for fewer requests at once: whoever has one of them under way hears of it.

Between a transfer and the client lie wrappers and retries, and who opened the store may be far away. So it is told by
the thread: what is asked in a block of `hearing` is asked for the one who hears.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar

from ckptflow.threads import saying

# Requests that may be under way at once to one storage. 128 connections of 12 MB/s fill a link of 10 Gbit/s; each costs
# a thread, a socket and its buffers, and S3 itself advises to have no more than some requests for each Gbit/s.
MOST_AT_ONCE = 128

_NOBODY: list[Callable[[], None]] = []
_hearer: ContextVar[list[Callable[[], None]]] = ContextVar("_hearer", default=_NOBODY)


def hearing(refused: Callable[[], None]) -> AbstractContextManager[None]:
    """In this block, and this thread, `refused` is called whenever the storage answers that it wants fewer requests."""
    return saying(_hearer, refused)


def tell_of_refusal() -> None:
    """The storage has just answered so to a request of this thread."""
    for refused in _hearer.get():
        refused()
