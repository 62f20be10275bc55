"""What a save or a restore spends its time on: named spans, recorded only while somebody listens.

One listener in a process; without one a span costs a comparison. Names, each with one meaning, and their arguments:

    capture   holding references to every value, on the training thread: what blocks it    step
    plan      deciding who writes what, and what has not changed
    copy      having the storage copy what is proved not to have changed                   shards
    pack      copying one shard's slices into a buffer, and their checksums                shard, size_bytes
    write     making one shard durable, or sending it                                      shard, size_bytes
    receipt   writing this worker's receipt                                                size_bytes
    await     the coordinator waiting for the other workers' receipts
    commit    checking the receipts, creating the manifest, looking at the fence           step
    prune     deleting what need not stay
    read      reading one range of a shard                                                 shard, size_bytes
    verify    its checksums
    assign    copying what was read into the state, on the restoring thread                size_bytes
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Span:
    """One piece of work: `start_ns` and `end_ns` since the epoch, so that those of several processes lie together."""

    name: str
    thread: str
    start_ns: int
    end_ns: int
    arguments: dict[str, Any]


_listener: Callable[[Span], None] | None = None


@contextlib.contextmanager
def span(name: str, **arguments: Any) -> Iterator[None]:
    """Records what happens in the block, also where it raises."""
    listener = _listener
    if listener is None:
        yield
        return
    start_ns = time.time_ns()
    try:
        yield
    finally:
        listener(Span(name, threading.current_thread().name, start_ns, time.time_ns(), arguments))


@contextlib.contextmanager
def record() -> Iterator[list[Span]]:
    """The spans that end in the block, of every thread, in the order of their ends."""
    spans: list[Span] = []
    with listen(spans.append):
        yield spans


@contextlib.contextmanager
def listen(listener: Callable[[Span], None]) -> Iterator[None]:
    """Calls `listener` at each span that ends in the block, in the span's own thread."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before
