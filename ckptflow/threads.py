"""Several calls at once, also while the program is ending: `concurrent.futures` takes no work then.

And what one thread says to what it calls, beneath code of others.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

_LONGEST_S = threading.TIMEOUT_MAX / 2  # and what is added to a limit fits, too
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def at_once(count: int, call: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """What `call` returns for each item, in their order; up to `count` run at once.

    A save that a script leaves behind goes on while the interpreter waits for its threads. All calls have ended when
    this returns or raises; what it raises is the first error that came. After Ctrl-C no further call is begun.
    """
    numbers = iter(range(len(items)))
    results: dict[int, _Result] = {}
    errors: list[BaseException] = []

    def work() -> None:
        for number in numbers:
            try:
                results[number] = call(items[number])
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=work, name="ckptflow-at-once") for _ in range(min(count, len(items)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:
        for _ in numbers:
            pass  # no further one begins
        for thread in threads:
            if thread.is_alive():  # one that has not begun finds nothing to do
                thread.join()
        raise
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(items))]


def as_timeout(timeout_s: float | None) -> float | None:
    """A limit as Python's waits take it: None for none, which is also what is more than they can wait for.

    Raises ValueError for NaN.
    """
    if timeout_s is None:
        return None
    if math.isnan(timeout_s):
        raise ValueError("a timeout is a number of seconds, or None for no limit, not nan")
    return timeout_s if timeout_s < _LONGEST_S else None


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


@contextmanager
def saying(variable: ContextVar[list[_Item]], value: _Item) -> Iterator[None]:
    """In this block, this thread, and the coroutines that it has run, find the value in the variable's list.

    After it the list is empty, also in copies of the context: a client's connection keeps the one in which it was made
    for as long as it lasts, and must not keep what the value holds.
    """
    said = [value]
    token = variable.set(said)
    try:
        yield
    finally:
        said.clear()
        variable.reset(token)
