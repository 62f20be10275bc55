"""Several calls at once, also while the program is ending: `concurrent.futures` takes no work then."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from multiprocessing.pool import ThreadPool
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def at_once(count: int, call: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """What `call` returns for each item, in their order; up to `count` run at once.

    A save that a script leaves behind goes on while the interpreter waits for its threads. All calls have ended when
    this returns or raises; what it raises is the first error that came. After Ctrl-C no further call is begun.
    """
    if not items:
        return []
    errors: list[BaseException] = []
    is_left = threading.Event()

    def attempt(item: _Item) -> list[_Result]:
        if is_left.is_set():
            return []
        try:
            return [call(item)]
        except BaseException as error:  # one that is no Exception would end the pool's thread, and be waited for
            errors.append(error)
            return []

    with ThreadPool(min(count, len(items))) as threads:
        try:
            results = threads.map_async(attempt, items, chunksize=1)
            threads.close()
            threads.join()
        except BaseException:
            is_left.set()
            threads.close()
            threads.join()
            raise
    if errors:
        raise errors[0]
    return [result for found in results.get() for result in found]


def left_alone(name: str, call: Callable[[], _Result]) -> Future[_Result]:
    """`call` in a thread that nobody has to wait for, not even the interpreter when it ends."""
    ended: Future[_Result] = Future()

    def run() -> None:
        try:
            ended.set_result(call())
        except BaseException as error:
            ended.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return ended
