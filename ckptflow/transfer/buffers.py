"""The memory budget: staging buffers that are made once and used again for ever; where none is free, transfers wait."""

from __future__ import annotations

import contextlib
import mmap
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from ckptflow.errors import UsageError
from ckptflow.format.spec import Bytes1D
from ckptflow.format.words import size_text

_LOOK_S = 0.1


def memory_for(what: str, size_bytes: int) -> Bytes1D:
    """Memory to read into. Raises `UsageError` if there is not so much: a sparse file may be as long as it likes."""
    try:
        return np.empty(size_bytes, np.uint8)
    except (MemoryError, ValueError) as error:
        raise UsageError(_too_large(what, size_bytes)) from error


def _too_large(what: str, size_bytes: int) -> str:
    return (
        f"{what} takes {size_text(size_bytes)}, more memory than this process can have: if it is what it should be, "
        "do it where there is more"
    )


class Buffer:
    """Page-aligned memory of a fixed length, holding whatever was last put there.

    `turn` counts how often it was acquired: who held it before can be told from who holds it now.
    """

    __slots__ = ("array", "turn", "view")

    def __init__(self, size_bytes: int) -> None:
        # Private, so that it is this process's own anonymous memory and not accounted as shared.
        try:
            memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError) as error:
            raise UsageError(_too_large("a staging buffer", size_bytes)) from error
        self.view = memoryview(memory)
        self.array: Bytes1D = np.frombuffer(memory, dtype=np.uint8)
        self.turn = 0


class Buffers(Protocol):
    """Where the threads of a pipeline get their buffers: a pool, or a part of one."""

    @property
    def count(self) -> int: ...

    def acquire(self) -> Buffer: ...

    def acquire_now(self) -> Buffer | None: ...

    def release(self, buffer: Buffer, turn: int | None = None) -> None: ...


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
                f"a memory budget of {budget_bytes:,} bytes is too small for one staging buffer of "
                f"{self.buffer_bytes:,}"
            )
        # A slot is a buffer or the right to make one. Whoever takes a token from `_tokens` looks for a free slot; there
        # are never fewer tokens than free slots, and one too many does no harm. All that `release` does is two calls
        # which cannot be torn apart by an interrupt, and which may be done again.
        self._free: list[tuple[Buffer, int]] = []  # with the turn that is over; the last one first: it is in the cache
        self._made = 0
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(self.count):
            self._tokens.put(None)
        self._lock = threading.Lock()
        self._is_closed = False

    def acquire(self) -> Buffer:
        """A buffer for the caller alone; waits while all are in use. Raises `UsageError` once the pool is closed."""
        while True:
            self._tokens.get()
            buffer = self._take()
            if buffer is not None:
                return buffer

    def acquire_now(self) -> Buffer | None:
        """The same without waiting; None if all are in use."""
        return self.acquire_within(0)

    def acquire_within(self, wait_s: float) -> Buffer | None:
        """The same; None if all are in use for so long."""
        try:
            self._tokens.get(timeout=wait_s)
        except queue.Empty:
            return None
        return self._take()

    def _take(self) -> Buffer | None:
        """One that is free, or new, for a token; None if it was one token too many."""
        if self._is_closed:
            self._tokens.put(None)  # the next one who waits
            raise UsageError("the buffer pool is closed")
        with self._lock:
            while self._free:
                buffer, turn = self._free.pop()
                if turn == buffer.turn:  # else it was given back twice, and has been taken since
                    buffer.turn += 1
                    return buffer
            if self._made == self.count:
                return None
            self._made += 1
        try:
            return Buffer(self.buffer_bytes)
        except BaseException:
            with self._lock:
                self._made -= 1
            self._tokens.put(None)
            raise

    def release(self, buffer: Buffer, turn: int | None = None) -> None:
        """Gives a buffer back. No transfer may still be using it.

        With the `turn` that it had when it was acquired it may be given back more than once: an interrupt can hit
        between any two lines, and who cannot know whether it came before or after gives it back again.
        """
        if not self._is_closed:
            self._free.append((buffer, buffer.turn if turn is None else turn))
            self._tokens.put(None)

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
        self._is_closed = True
        self._free.clear()
        self._tokens.put(None)


class BufferShare:
    """A part of a pool: no more than `count` of its buffers at once. While all of them are in use, `wait` is called now
    and then, and `starve` while there would be one, but the pool has none; each may raise, and `acquire` with it.

    Whoever shares a pool with others that keep buffers for long has some left in this way. Of a buffer that is given
    back more than once, by its turn, the first time counts.
    """

    def __init__(self, pool: BufferPool, count: int, *, wait: Callable[[], None], starve: Callable[[], None]) -> None:
        self._pool = pool
        self.count = count
        self._wait = wait
        self._starve = starve
        self._out: set[tuple[int, int]] = set()
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(count):
            self._tokens.put(None)

    def acquire(self) -> Buffer:
        while True:
            if not self._has_token(_LOOK_S):
                self._wait()
            elif (buffer := self._take(_LOOK_S)) is not None:
                return buffer
            else:
                self._starve()

    def acquire_now(self) -> Buffer | None:
        return self._take(0) if self._has_token(0) else None

    def release(self, buffer: Buffer, turn: int | None = None) -> None:
        turn = buffer.turn if turn is None else turn
        self._pool.release(buffer, turn)
        try:
            self._out.remove((id(buffer), turn))
        except KeyError:
            return
        self._tokens.put(None)

    def _has_token(self, wait_s: float) -> bool:
        try:
            self._tokens.get(timeout=wait_s)
        except queue.Empty:
            return False
        return True

    def _take(self, wait_s: float) -> Buffer | None:
        """One of the pool, for a token; None, and the token is back, where it has none."""
        buffer = self._pool.acquire_within(wait_s)
        if buffer is None:
            self._tokens.put(None)
        else:
            self._out.add((id(buffer), buffer.turn))
        return buffer
