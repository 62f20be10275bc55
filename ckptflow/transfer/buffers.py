"""The memory budget: staging buffers that are made once and used again for ever; where none is free, transfers wait."""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Iterator

import numpy as np

from ckptflow.errors import UsageError
from ckptflow.format.spec import Bytes1D


class Buffer:
    """Page-aligned memory of a fixed length, holding whatever was last put there.

    `turn` counts how often it was acquired: who held it before can be told from who holds it now.
    """

    __slots__ = ("array", "turn", "view")

    def __init__(self, size_bytes: int) -> None:
        # Private, so that it is this process's own anonymous memory and not accounted as shared.
        memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(memory)
        self.array: Bytes1D = np.frombuffer(memory, dtype=np.uint8)
        self.turn = 0


class BufferPool:
    """At most `budget_bytes` of staging memory, in buffers of `buffer_bytes` (rounded up to whole pages).

    A buffer is made when one is wanted and none is free, and never given back to the system nor zeroed: touching fresh
    memory is slow. Where all are in use, `acquire` waits: that is the back-pressure. Whoever acquires a buffer releases
    it as soon as no transfer reads or writes it any more, whatever happened, and never waits for a second one while
    holding a first, so that nobody waits for ever. Thread-safe. One manager's saves and restores share one pool.
    """

    def __init__(self, budget_bytes: int, buffer_bytes: int) -> None:
        self.buffer_bytes = -(-max(1, buffer_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE
        self.count = budget_bytes // self.buffer_bytes
        if buffer_bytes < 1 or self.count < 1:
            raise ValueError(
                f"a memory budget of {budget_bytes:,} bytes does not hold one staging buffer of {self.buffer_bytes:,}"
            )
        self._free: dict[Buffer, None] = {}  # the last released first, which the cache may still hold
        self._made = 0
        self._changed = threading.Condition()
        self._is_closed = False

    @property
    def made_bytes(self) -> int:
        """The memory taken so far; it never shrinks before `close`."""
        return self._made * self.buffer_bytes

    def acquire(self) -> Buffer:
        """A buffer for the caller alone; waits while all are in use. Raises `UsageError` once the pool is closed."""
        with self._changed:
            while not self._is_closed:
                if self._free:
                    buffer, _ = self._free.popitem()
                    buffer.turn += 1
                    return buffer
                if self._made < self.count:
                    self._made += 1
                    break
                self._changed.wait()
            if self._is_closed:
                raise UsageError("the buffer pool is closed")
        try:
            return Buffer(self.buffer_bytes)
        except BaseException:
            with self._changed:
                self._made -= 1
                self._changed.notify()
            raise

    def release(self, buffer: Buffer, turn: int | None = None) -> None:
        """Gives a buffer back. No transfer may still be using it.

        With the `turn` that it had when it was acquired it may be given back more than once: an interrupt can hit
        between any two lines, and who cannot know whether it came before or after gives it back again.
        """
        with self._changed:
            if not self._is_closed and turn in (None, buffer.turn):
                self._free[buffer] = None
                self._changed.notify()

    @contextlib.contextmanager
    def buffer(self) -> Iterator[Buffer]:
        """Acquires a buffer and releases it on leaving the block, by an error as well."""
        buffer = self.acquire()
        try:
            yield buffer
        finally:
            self.release(buffer)

    def close(self) -> None:
        """Lets the memory go, and raises in whoever waits. Buffers in use stay valid until they are released."""
        with self._changed:
            self._is_closed = True
            self._free.clear()
            self._changed.notify_all()
