"""Threads in tests: until something is so, and what a call raises elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

HANG_S = 300.0  # nothing takes so long that ends, however busy the machine: pytest's own limit for a test is twice this


def until(is_so: Callable[[], object], timeout_s: float) -> None:
    """Returns once it is so; fails when the time is over."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def raised_in_a_thread(call: Callable[[], object], kind: type[Exception]) -> list[Exception]:
    """What a call of that kind of error raises in another thread: one, or none."""
    raised: list[Exception] = []

    def elsewhere() -> None:
        try:
            call()
        except kind as error:
            raised.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    return raised
