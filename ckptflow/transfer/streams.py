"""The turns of transfers: as many at once as the number that was found, and none once the work is stopping."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from ckptflow.storage.store import Store
from ckptflow.storage.throttling import MOST_AT_ONCE, hearing
from ckptflow.storage.wanted import while_wanted
from ckptflow.storage.wrappers import quickest_s
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.stream_count import FIRST, FIRST_READING, Meter, Transfer, first_number, is_far

logger = logging.getLogger("ckptflow.transfer")

ON_DISK = 2  # two large writes keep a disk busy
PIECE_BYTES = 4 * 2**20  # about what one request asks an object store for, where there is more to ask for
LEAST_PIECE_BYTES = 2**20  # the same, where fewer ranges are left to read than there are streams
_PAGE_BYTES = 4096
READING_BYTES = 64 * 2**20  # of staging memory, where only one checkpoint is read
_READING_COUNTS = {False: 4, True: 16}  # buffers: on an object store one is one request

_Result = TypeVar("_Result")


class StoppedError(Exception):
    """The work for which a transfer was to be is stopping: it did not begin. Never leaves a pipeline."""


def pieces(size_bytes: int, most: int = 2**31, piece_bytes: int | None = None) -> list[tuple[int, int]]:
    """Begins and ends of the requests, all alike and at most so many, that a long range of an object is asked for in.

    Each of two thirds of `piece_bytes` (else `PIECE_BYTES`) to one and a half times that, unless there would be too
    many: one that has to wait for another is worth none.
    """
    count = max(1, min(round(size_bytes / (piece_bytes or PIECE_BYTES)), most))
    step = -(-size_bytes // count)
    step = -(-step // _PAGE_BYTES) * _PAGE_BYTES
    return [(begin, min(begin + step, size_bytes)) for begin in range(0, size_bytes, step)]


def streams_for(
    store: Store, pool: BufferPool, concurrency: int | None = None, *, is_for_reading: bool = True
) -> Streams:
    """The streams of a store: `concurrency` of them if it is given, two on a disk, else as many as pay.

    No more than the pool's memory can take: on an object store a long buffer is filled by several requests, and sent
    by one.
    """
    if not store.is_object_store:
        return Streams(pool.count, fixed=concurrency or ON_DISK, where=store.url)
    most = pool.count * len(pieces(pool.buffer_bytes)) if is_for_reading else pool.count
    first = FIRST_READING if is_for_reading else FIRST
    return Streams(most, fixed=concurrency, where=store.url, first=first, quickest_s=partial(quickest_s, store))


def pool_for_reading(store: Store) -> BufferPool:
    """Staging memory for one who only reads: 64 MiB."""
    count = _READING_COUNTS[store.is_object_store]
    return BufferPool(READING_BYTES, READING_BYTES // count)


class Streams:
    """The turns of transfers of one store: no more at once than the number that is decided from those before.

    Thread-safe. One for all saves of a manager, one for all that it reads: what one save has found, the next begins
    with. They are not compared with one another: what a connection gives to a reader says nothing of a writer.
    """

    def __init__(
        self,
        most: int,
        *,
        fixed: int | None = None,
        where: str = "",
        clock: Callable[[], float] = time.monotonic,
        first: int = FIRST,
        quickest_s: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._meter = Meter(min(most, MOST_AT_ONCE), fixed, clock(), first)
        self._first = first
        self._quickest_s = quickest_s
        self._where = where
        self._clock = clock
        self._lock = threading.Lock()
        self._bells: list[queue.SimpleQueue[None]] = []  # of those who wait; rung once more than needed is no harm

    @property
    def most(self) -> int:
        """The number that is never exceeded."""
        return self._meter.most

    @property
    def count(self) -> int:
        """How many transfers may be under way now."""
        return self._meter.choice.streams

    @property
    def at_the_end(self) -> int:
        """For how many the last work is cut: for as many as may ever be, unless the storage has asked for fewer."""
        return self._meter.choice.ceiling or self._meter.most

    @property
    def by_turns(self) -> int:
        """How many shards of a save are written at a time, if it pays to divide it evenly: far away; else 1."""
        return self.most if is_far(self._quickest_s()) else 1

    @property
    def under_way(self) -> int:
        """How many are."""
        return len(self._meter.under_way)

    def look(self) -> None:
        """Before the transfers of a pipeline: the first number is chosen by how far away the storage turned out to be.

        Takes no lock, as `wake`.
        """
        self._meter.begin_with(first_number(self.most, self._first, self._quickest_s()))

    def begin(self, transfer: Transfer, is_stopped: Callable[[], bool]) -> None:
        """Waits for a turn. Raises `StoppedError` instead, at once, where it is no longer wanted (see `wake`)."""
        bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._bells.append(bell)  # before looking: what changes after that rings it
        try:
            while not self._begin_now(transfer, is_stopped):
                bell.get()
        finally:
            self._bells.remove(bell)

    def _begin_now(self, transfer: Transfer, is_stopped: Callable[[], bool]) -> bool:
        with self._lock:
            if is_stopped():
                raise StoppedError
            if self._meter.has_room:
                self._meter.begin(transfer, self._clock())
                return True
            return False

    def end(self, transfer: Transfer, size_bytes: int | None) -> None:
        """Gives the turn back, if it had begun. None: the transfer has failed."""
        with self._lock:
            before = self.count
            self._meter.end(transfer, self._clock(), size_bytes)
        self.wake()
        self._say(before)

    def refused(self, transfer: Transfer) -> None:
        """The storage has asked for fewer requests instead of answering this one."""
        with self._lock:
            before = self.count
            self._meter.refused(transfer, self._clock())
        self.wake()  # it may have ended a round by which the number rises
        self._say(before)

    def wake(self) -> None:
        """Whoever waits looks again. Takes no lock: an interrupt would leave it locked."""
        for bell in self._bells.copy():
            bell.put(None)

    def _say(self, before: int) -> None:
        choice = self._meter.choice
        if choice.streams != before:
            logger.debug("%s: %d streams after %d: %s", self._where, choice.streams, before, choice.reason)


class Turns:
    """The transfers of one pipeline, which end together: at the first error none that waits begins any more, and what
    is being read is not wanted any more (`while_wanted`)."""

    def __init__(self, streams: Streams) -> None:
        streams.look()
        self.streams = streams
        self._is_stopped = False
        self._errors: list[BaseException] = []
        self._under_way: set[Transfer] = set()

    @property
    def is_stopped(self) -> bool:
        return self._is_stopped

    def stop(self, error: BaseException | None = None) -> None:
        """From here on no transfer begins; what waits for its turn raises `StoppedError`."""
        if error is not None:
            self._errors.append(error)
        self._is_stopped = True
        self.streams.wake()

    def leave(self) -> None:
        """What is still under way is not wanted any more, and keeps no turn from others. Takes no lock, as `wake`."""
        for transfer in self._under_way.copy():
            transfer.is_left = True
        self.streams.wake()

    def raise_first(self) -> None:
        """Raises the error that stopped it, if one did, and holds it no longer."""
        errors, self._errors = self._errors, []
        try:
            if errors:
                raise errors[0]
        finally:
            del errors

    def transfer(
        self, size_bytes: int, call: Callable[[], _Result], is_raced: Callable[[], bool] = lambda: False
    ) -> _Result:
        """What `call` returns, made in its turn, and counted as one transfer of so many bytes.

        What it raises stops the pipeline before the turn is given back, so that nobody who waits gets that; but not
        where `is_raced` says that another attempt may bring the same. Only for the threads of a pipeline: Ctrl-C,
        which comes to the main thread, can so not tear a turn from its end.
        """
        transfer = Transfer()
        self._under_way.add(transfer)
        moved: int | None = None
        try:
            self.streams.begin(transfer, lambda: self._is_stopped)
            with (
                hearing(partial(self.streams.refused, transfer)),
                while_wanted(lambda: not (transfer.is_left or self._is_stopped)),
            ):
                result = call()
            moved = size_bytes
            return result
        except StoppedError:
            raise
        except BaseException as error:
            if not is_raced():
                self.stop(error)
            raise
        finally:
            self.streams.end(transfer, moved)
            self._under_way.discard(transfer)
