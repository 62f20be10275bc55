"""Work in a few threads, each piece in one pooled buffer, its result taken over by the calling thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from ckptflow.transfer.buffers import Buffer, BufferPool
from ckptflow.transfer.streams import StoppedError, Turns


def run(
    pool: BufferPool,
    count: int,
    work: Callable[[int, Buffer], None],
    consume: Callable[[int, Buffer], None] | None = None,
    *,
    turns: Turns,
    threads: int,
) -> None:
    """Calls `work(number, buffer)` for 0 … count - 1 in up to `threads` threads, and `consume` in the calling one.

    `work` makes its transfers by `turns`, which are stopped with it. Raises the first error, as it was raised, once
    nothing is under way any more; what had not begun by then is left, also what waited for its turn.
    Each buffer is back in the pool when this returns or raises.
    """
    # A piece of work goes through these states, each thread taking the next number when it has finished one:
    #
    #   numbered -> staging (waits for a buffer) -> working -> done (its buffer in `held`) -> consumed (buffer free)
    #
    # After an error, or once the caller is interrupted, the turns are stopped: nothing new is numbered, what waits for
    # a buffer or for its turn gives up, and what is done is not consumed. An interrupt can come between any two lines
    # of the caller, so it counts nothing on the way out: it gives back whatever is held (again, it may be), and waits
    # for the threads.
    numbers = iter(range(count))
    lock = threading.Lock()
    is_left = threading.Event()
    held: dict[int, tuple[Buffer, int]] = {}
    done: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def loop() -> None:
        try:
            while not turns.is_stopped:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                buffer = pool.acquire()
                turn = buffer.turn
                try:
                    if not turns.is_stopped:
                        work(number, buffer)
                except BaseException:
                    pool.release(buffer, turn)
                    raise
                held[number] = buffer, turn
                done.put(number)
                if is_left.is_set():  # the caller may have looked into `held` before
                    pool.release(buffer, turn)
        except StoppedError:
            pass
        except BaseException as error:
            turns.stop(error)
        finally:
            done.put(None)

    threads_made = [
        threading.Thread(target=loop, name=f"ckptflow-transfer-{i}") for i in range(min(threads, count, pool.count))
    ]
    try:
        for thread in threads_made:
            thread.start()
        alive = len(threads_made)
        while alive:
            item = done.get()
            if item is None:
                alive -= 1
            else:
                if consume is not None and not turns.is_stopped:
                    consume(item, held[item][0])
                pool.release(*held[item])
                held.pop(item)
    finally:
        turns.stop()
        is_left.set()
        for lease in held.copy().values():
            pool.release(*lease)
        for thread in threads_made:
            if thread.is_alive():  # one that has not begun finds that, and takes nothing
                thread.join()
    turns.raise_first()
