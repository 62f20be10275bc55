"""Work in a few threads, each piece in one pooled buffer, its result taken over by the calling thread."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from ckptflow.errors import CorruptCheckpointError
from ckptflow.transfer.attempts import HELPERS, Attempts
from ckptflow.transfer.buffers import Buffer, BufferPool, Buffers
from ckptflow.transfer.streams import StoppedError, Turns

_Result = TypeVar("_Result")
_LOOK_S = 0.1  # between two looks whether what is waited for is still needed


@dataclass(frozen=True)
class Lane:
    """`count` pieces of work for up to `threads` threads, each with one of these buffers.

    `attempts` may have what is late at the end begun a second time, in another buffer, if one is free: what is done
    first counts. The other one is not waited for, and gives its buffer and its turn back when it ends.
    """

    count: int
    threads: int
    buffers: Buffers
    attempts: Attempts


class _Use(Generic[_Result]):
    """A buffer that somebody uses, and perhaps somebody else: it goes back when all of them have said that they have
    done with it, each as often as they like. Takes no lock: an interrupt would leave it locked."""

    def __init__(self, buffers: Buffers, buffer: Buffer, result: _Result) -> None:
        self.buffer = buffer
        self.result = result
        self._buffers = buffers
        self._turn = buffer.turn
        self._users = {"caller", "others"}

    def end(self, user: str) -> None:
        self._users.discard(user)
        if not self._users:
            self._buffers.release(self.buffer, self._turn)


def run(
    pool: BufferPool,
    count: int,
    work: Callable[[int, Buffer], _Result],
    consume: Callable[[int, Buffer, _Result], None] | None = None,
    *,
    turns: Turns,
    threads: int,
    attempts: Attempts | None = None,
) -> None:
    """Calls `work(number, buffer)` for 0 … count - 1 in up to `threads` threads, and `consume` in the calling one.

    See `run_lanes`, of which this is one lane.
    """
    run_lanes([Lane(count, threads, pool, attempts or Attempts(count))], work, consume, turns=turns)


def run_lanes(
    lanes: Sequence[Lane],
    work: Callable[[int, Buffer], _Result],
    consume: Callable[[int, Buffer, _Result], None] | None = None,
    lend: Callable[[int, Buffer, Callable[[], None]], None] | None = None,
    *,
    turns: Turns,
) -> None:
    """Calls `work(number, buffer)` for the numbers of all lanes, those of the first one first, each lane's in order by
    its threads, and `consume` in the calling one.

    `work` makes its transfers by `turns`, which are stopped with it. Raises the first error, as it was raised, once
    nothing is under way any more; what had not begun by then is left, also what waited for its turn.
    Each buffer is back where it came from when this returns or raises, but for what belongs to a late attempt that
    is not waited for, and for what `lend(number, buffer, give_back)` has given to others, when its work was done: that
    goes back when they have called `give_back` as well.
    """
    # A piece of work goes through these states, each thread taking the next number when it has finished one:
    #
    #   numbered -> staging (waits for a buffer) -> working -> done (its buffer in `held`) -> consumed (buffer free)
    #
    # After an error, or once the caller is interrupted, the turns are stopped: nothing new is numbered, what waits for
    # a buffer or for its turn gives up, and what is done is not consumed. An interrupt can come between any two lines
    # of the caller, so it counts nothing on the way out: it gives back whatever is held (again, it may be), and waits
    # for the threads.
    firsts = [0, *itertools.accumulate(lane.count for lane in lanes)]
    is_left = threading.Event()
    held: dict[int, _Use[_Result]] = {}
    doing: dict[threading.Thread, int] = {}
    done: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    news: queue.SimpleQueue[None] = queue.SimpleQueue()  # for those who wait for what is late
    is_helped = threading.Event()

    def loop(lane: Lane, first: int, in_order: threading.Lock) -> None:
        try:
            while not turns.is_stopped:
                with in_order:  # nobody has a number and waits for a buffer while one with a later number gets it
                    number = None if turns.is_stopped else lane.attempts.begin(time.monotonic())
                    buffer = None if number is None else lane.buffers.acquire()
                if number is None or buffer is None:
                    help_out(lane, first)
                    return
                attempt(lane, first, number, buffer)
        except StoppedError:
            pass
        except BaseException as error:
            turns.stop(error)
        finally:
            done.put(None)

    def help_out(lane: Lane, first: int) -> None:
        tries = lane.attempts
        if not tries.may_help():
            return
        is_helped.set()
        while not turns.is_stopped and (wait_s := tries.wait_s(time.monotonic())) is not None:
            buffer = None if wait_s > 0 else lane.buffers.acquire_now()
            if buffer is None:  # nothing is late, or none is free: as soon as something has ended that may have changed
                with suppress(queue.Empty):
                    news.get(timeout=min(wait_s, _LOOK_S) or _LOOK_S)
                continue
            number = tries.begin_late(time.monotonic())
            if number is None:
                lane.buffers.release(buffer)
            else:
                attempt(lane, first, number, buffer)

    def attempt(lane: Lane, first: int, number: int, buffer: Buffer) -> None:
        tries, turn = lane.attempts, buffer.turn
        doing[threading.current_thread()] = number
        try:
            if turns.is_stopped:
                raise StoppedError
            result = work(first + number, buffer)
        except BaseException as error:
            lane.buffers.release(buffer, turn)
            is_last = tries.fail(number)
            # That it is damaged was found twice in the same way: another attempt that is cut off does not undo that.
            is_damaged = isinstance(error, CorruptCheckpointError) and not tries.is_won(number)
            if isinstance(error, StoppedError) or is_last or is_damaged:
                raise
            return
        finally:
            del doing[threading.current_thread()]
        if not tries.end(number, time.monotonic()):
            lane.buffers.release(buffer, turn)
            return
        use = held[first + number] = _Use(lane.buffers, buffer, result)
        if lend is None:
            use.end("others")
        else:
            lend(first + number, buffer, partial(use.end, "others"))
        done.put(first + number)
        for _ in range(HELPERS if is_helped.is_set() else 0):
            news.put(None)
        if is_left.is_set():  # the caller may have looked into `held` before
            use.end("caller")

    threads_made = {
        threading.Thread(target=loop, args=(lane, first, in_order), name=f"ckptflow-transfer-{first + i}"): lane
        for lane, first, in_order in zip(lanes, firsts, [threading.Lock() for _ in lanes], strict=False)
        for i in range(min(lane.threads, lane.count, lane.buffers.count))
    }
    left = firsts[-1]
    try:
        for thread in threads_made:
            thread.start()
        alive = len(threads_made)
        while alive and left:
            item = done.get()
            if item is None:
                alive -= 1
                continue
            use = held[item]
            if consume is not None and not turns.is_stopped:
                consume(item, use.buffer, use.result)
            use.end("caller")
            del use
            held.pop(item)
            left -= 1
    finally:
        turns.stop()
        is_left.set()
        for use in held.copy().values():
            use.end("caller")
        for thread, lane in threads_made.items():
            # One that has not begun finds that, and takes nothing. One whose work another has done is not waited for.
            while thread.is_alive() and not lane.attempts.is_won(doing.get(thread, -1)):
                thread.join(_LOOK_S)
        turns.leave()
    turns.raise_first()
