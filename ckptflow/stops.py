"""A clock that stands still while this process is stopped: by SIGSTOP, as schedulers do, or with its virtual machine.

A limit of time is for what does not come while somebody waits. Whoever is stopped does not wait, and what the workers
of a suspended job wait for comes when they go on.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

_TICK_S = 0.5
_LONGEST_S = 3.0  # between two looks of a process that runs, however busy the machine


class Stops:
    """Looks at a clock again and again: what is long between two looks was a stop. From any thread.

    Code that keeps the interpreter's lock looks like a stop. What the process computed meanwhile, by `used`, is none.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, used: Callable[[], float] = time.process_time
    ) -> None:
        self._clock, self._used = clock, used
        self._looked_s, self._used_s = clock(), used()
        self._stopped_s = 0.0
        self._lock = threading.RLock()  # a signal's handler may come in between

    def look(self) -> float:
        """The time by the clock, without all stops so far."""
        with self._lock:
            now_s, used_s = self._clock(), self._used()
            ran_s = _LONGEST_S + used_s - self._used_s
            self._stopped_s += max(0.0, now_s - self._looked_s - ran_s)
            self._looked_s, self._used_s = now_s, used_s
            return now_s - self._stopped_s


class Ticking:
    """Stops of this process, and the daemon thread that looks for them once somebody has asked."""

    def __init__(self) -> None:
        self._start = threading.RLock()  # as above
        self._stops: Stops | None = None  # while no thread looks, as where none can be started, no stop is found

    def awake_s(self) -> float:
        with self._start:
            if self._stops is None:
                stops = Stops()
                with contextlib.suppress(RuntimeError):
                    threading.Thread(target=_tick, args=(stops,), name="stops", daemon=True).start()
                    self._stops = stops
        return self._stops.look() if self._stops is not None else time.monotonic()


def _tick(stops: Stops) -> None:
    while True:
        time.sleep(_TICK_S)
        stops.look()


def _begin_anew() -> None:
    """In a child, which has no other thread than the one that forked, and locks that others held stay so."""
    global ticking
    ticking = Ticking()


ticking = Ticking()
os.register_at_fork(after_in_child=_begin_anew)


def awake_s() -> float:
    """Seconds without those in which this process was stopped, as far as is known; only differences mean something."""
    return ticking.awake_s()
