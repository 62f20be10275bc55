"""Work in a few threads, each piece in one pooled buffer, its result taken over by the calling thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from ckptflow.transfer.buffers import Buffer, BufferPool


def run(
    pool: BufferPool,
    count: int,
    work: Callable[[int, Buffer], None],
    consume: Callable[[int, Buffer], None] | None = None,
    *,
    threads: int,
) -> None:
    """Calls `work(number, buffer)` for 0 … count - 1 in up to `threads` threads, and `consume` in the calling one.

    Raises the first error, as it was raised, once nothing is under way any more; what had not begun by then is left.
    Each buffer is back in the pool when this returns or raises.
    """
    # A piece of work goes through these states, each thread taking the next number when it has finished one:
    #
    #   numbered -> staging (waits for a buffer) -> working -> done (its buffer in `held`) -> consumed (buffer free)
    #
    # After an error, or once the caller is interrupted, `stop` is set: nothing new is numbered, what waits for a buffer
    # gives it back, and what is done is not consumed. An interrupt can come between any two lines of the caller, so it
    # counts nothing on the way out: it gives back whatever is held (again, it may be), and waits for the threads.
    numbers = iter(range(count))
    lock = threading.Lock()
    stop, is_left = threading.Event(), threading.Event()
    held: dict[int, tuple[Buffer, int]] = {}
    done: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()

    def loop() -> None:
        try:
            while not stop.is_set():
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                buffer = pool.acquire()
                turn = buffer.turn
                try:
                    if not stop.is_set():
                        work(number, buffer)
                except BaseException:
                    pool.release(buffer, turn)
                    raise
                held[number] = buffer, turn
                done.put(number)
                if is_left.is_set():  # the caller may have looked into `held` before
                    pool.release(buffer, turn)
        except BaseException as error:
            stop.set()
            done.put(error)
        finally:
            done.put(None)

    threads_made = [
        threading.Thread(target=loop, name=f"ckptflow-transfer-{i}") for i in range(min(threads, count, pool.count))
    ]
    first_error: BaseException | None = None
    try:
        for thread in threads_made:
            thread.start()
        alive = len(threads_made)
        while alive:
            item = done.get()
            if item is None:
                alive -= 1
            elif isinstance(item, BaseException):
                first_error = first_error or item
            else:
                if consume is not None and not stop.is_set():
                    consume(item, held[item][0])
                pool.release(*held[item])
                held.pop(item)
    finally:
        stop.set()
        is_left.set()
        for lease in held.copy().values():
            pool.release(*lease)
        for thread in threads_made:
            if thread.is_alive():  # one that has not begun finds `stop` set, and takes nothing
                thread.join()
    if first_error is not None:
        raise first_error
