"""Work in a few threads, each piece in one pooled buffer, its result taken over by the calling thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from ckptflow.errors import CorruptCheckpointError
from ckptflow.transfer.attempts import HELPERS, Attempts
from ckptflow.transfer.buffers import Buffer, BufferPool
from ckptflow.transfer.streams import StoppedError, Turns

_Result = TypeVar("_Result")
_LOOK_S = 0.1  # between two looks whether what is waited for is still needed


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

    `work` makes its transfers by `turns`, which are stopped with it. Raises the first error, as it was raised, once
    nothing is under way any more; what had not begun by then is left, also what waited for its turn.
    Each buffer is back in the pool when this returns or raises.

    `attempts` may have what is late at the end begun a second time, in another buffer, if one is free: `consume` gets
    the buffer and the result of whichever is done first. The other one is not waited for, and gives its buffer and its
    turn back when it ends: these alone may be missing when this returns.
    """
    # A piece of work goes through these states, each thread taking the next number when it has finished one:
    #
    #   numbered -> staging (waits for a buffer) -> working -> done (its buffer in `held`) -> consumed (buffer free)
    #
    # After an error, or once the caller is interrupted, the turns are stopped: nothing new is numbered, what waits for
    # a buffer or for its turn gives up, and what is done is not consumed. An interrupt can come between any two lines
    # of the caller, so it counts nothing on the way out: it gives back whatever is held (again, it may be), and waits
    # for the threads.
    tries = attempts or Attempts(count)
    is_left = threading.Event()
    held: dict[int, tuple[Buffer, int, _Result]] = {}
    doing: dict[threading.Thread, int] = {}
    done: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    news: queue.SimpleQueue[None] = queue.SimpleQueue()  # for those who wait for what is late
    is_helped = threading.Event()

    def loop() -> None:
        try:
            while not turns.is_stopped:
                number = tries.begin(time.monotonic())
                if number is None:
                    help_out()
                    return
                attempt(number, pool.acquire())
        except StoppedError:
            pass
        except BaseException as error:
            turns.stop(error)
        finally:
            done.put(None)

    def help_out() -> None:
        if not tries.may_help():
            return
        is_helped.set()
        while not turns.is_stopped and (wait_s := tries.wait_s(time.monotonic())) is not None:
            buffer = None if wait_s > 0 else pool.acquire_now()
            if buffer is None:  # nothing is late, or none is free: as soon as something has ended that may have changed
                with suppress(queue.Empty):
                    news.get(timeout=min(wait_s, _LOOK_S) or _LOOK_S)
                continue
            number = tries.begin_late(time.monotonic())
            if number is None:
                pool.release(buffer)
            else:
                attempt(number, buffer)

    def attempt(number: int, buffer: Buffer) -> None:
        turn = buffer.turn
        doing[threading.current_thread()] = number
        try:
            if turns.is_stopped:
                raise StoppedError
            result = work(number, buffer)
        except BaseException as error:
            pool.release(buffer, turn)
            is_last = tries.fail(number)
            # That it is damaged was found twice in the same way: another attempt that is cut off does not undo that.
            is_damaged = isinstance(error, CorruptCheckpointError) and not tries.is_won(number)
            if isinstance(error, StoppedError) or is_last or is_damaged:
                raise
            return
        finally:
            del doing[threading.current_thread()]
        if not tries.end(number, time.monotonic()):
            pool.release(buffer, turn)
            return
        held[number] = buffer, turn, result
        done.put(number)
        for _ in range(HELPERS if is_helped.is_set() else 0):
            news.put(None)
        if is_left.is_set():  # the caller may have looked into `held` before
            pool.release(buffer, turn)

    threads_made = [
        threading.Thread(target=loop, name=f"ckptflow-transfer-{i}") for i in range(min(threads, count, pool.count))
    ]
    left = count
    try:
        for thread in threads_made:
            thread.start()
        alive = len(threads_made)
        while alive and left:
            item = done.get()
            if item is None:
                alive -= 1
                continue
            buffer, turn, result = held[item]
            if consume is not None and not turns.is_stopped:
                consume(item, buffer, result)
            del result
            pool.release(buffer, turn)
            held.pop(item)
            left -= 1
    finally:
        turns.stop()
        is_left.set()
        for buffer, turn, _ in held.copy().values():
            pool.release(buffer, turn)
        for thread in threads_made:
            # One that has not begun finds that, and takes nothing. One whose work another has done is not waited for.
            while thread.is_alive() and not tries.is_won(doing.get(thread, -1)):
                thread.join(_LOOK_S)
        turns.leave()
    turns.raise_first()
