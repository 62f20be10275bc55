"""A storage that asks for fewer requests at once: whoever has one of them under way hears of it.

Between a transfer and the client lie wrappers and retries, and who opened the store may be far away. So it is told by
the thread: what is asked in a block of `hearing` is asked for the one who hears.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# Requests that may be under way at once to one storage. 128 connections of 12 MB/s fill a link of 10 Gbit/s; each costs
# a thread, a socket and its buffers, and S3 itself advises to have no more than some requests for each Gbit/s.
MOST_AT_ONCE = 128

_hearer: ContextVar[Callable[[], None] | None] = ContextVar("_hearer", default=None)


@contextmanager
def hearing(refused: Callable[[], None]) -> Iterator[None]:
    """In this block, and this thread, `refused` is called whenever the storage answers that it wants fewer requests."""
    token = _hearer.set(refused)
    try:
        yield
    finally:
        _hearer.reset(token)


def tell_of_refusal() -> None:
    """The storage has just answered so to a request of this thread."""
    refused = _hearer.get()
    if refused is not None:
        refused()
