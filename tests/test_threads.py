"""Several calls at once: all have ended, in order, and whatever one raises comes out."""

from __future__ import annotations

import math
import signal
import threading
import time

import pytest

from ckptflow.threads import as_timeout, at_once


@pytest.mark.parametrize("limit_s", [math.inf, 1e10, threading.TIMEOUT_MAX])
def test_a_limit_that_no_clock_can_wait_for_is_none(limit_s: float) -> None:
    assert as_timeout(limit_s) is None


def test_a_limit_that_is_no_number_is_refused() -> None:
    assert [as_timeout(limit_s) for limit_s in (None, -1.0, 0, 86_400.0)] == [None, -1.0, 0, 86_400.0]
    with pytest.raises(ValueError, match="not nan"):
        as_timeout(math.nan)


class Panic(BaseException):
    """No Exception."""


def test_results_are_in_order() -> None:
    assert at_once(3, lambda item: item * 2, range(20)) == list(range(0, 40, 2))
    assert at_once(3, lambda item: item, []) == []


@pytest.mark.parametrize("error", [ValueError("x"), Panic(), SystemExit(0), KeyboardInterrupt()])
def test_whatever_one_raises_comes_out(error: BaseException) -> None:
    done: list[int] = []

    def call(item: int) -> None:
        if item == 3:
            raise error
        done.append(item)

    with pytest.raises(type(error)) as raised:
        at_once(4, call, range(20))
    assert raised.value is error
    assert len(done) == 19


def test_ctrl_c_waits_for_what_has_begun_and_begins_no_more() -> None:
    """A call that goes on would write into memory, and to storage, that the caller has let go."""
    main = threading.get_ident()
    running: set[int] = set()
    done: list[int] = []

    def call(item: int) -> None:
        running.add(item)
        if item == 2:
            signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.05)
        running.remove(item)
        done.append(item)

    heeded = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs do not
    try:
        with pytest.raises(KeyboardInterrupt):
            at_once(3, call, range(100))
    finally:
        signal.signal(signal.SIGINT, heeded)
    assert not running
    assert len(done) < 50
