"""How long this process was stopped: by SIGSTOP, as schedulers do that suspend jobs, or with its virtual machine.

A limit of time is for what does not come while somebody waits. Whoever is stopped does not wait, and what the workers
of a suspended job wait for comes when they go on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_TICK_S = 0.5
_LONGEST_S = 3.0  # between two looks of a process that runs, however busy the machine


class Stops:
    """Looks at a clock again and again: what is long between two looks was a stop. From any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looked_s = clock()
        self._stopped_s = 0.0
        self._lock = threading.Lock()

    def look(self) -> float:
        """The seconds of all stops so far."""
        with self._lock:
            now_s = self._clock()
            between_s, self._looked_s = now_s - self._looked_s, now_s
            if between_s > _LONGEST_S:
                self._stopped_s += between_s - _TICK_S
            return self._stopped_s


class _Ticking:
    """Stops of this process, and the daemon thread that looks for them once somebody has asked."""

    def __init__(self) -> None:
        self._stops = Stops()
        self._start = threading.RLock()  # a signal's handler may come in between
        self._thread: threading.Thread | None = None

    def stopped_s(self) -> float:
        with self._start:
            if self._thread is None or not self._thread.is_alive():  # the latter: after a fork
                self._stops = Stops()
                self._thread = threading.Thread(target=self._tick, args=(self._stops,), name="stops", daemon=True)
                self._thread.start()
        return self._stops.look()

    def _tick(self, stops: Stops) -> None:
        while True:
            time.sleep(_TICK_S)
            stops.look()


_ticking = _Ticking()


def stopped_s() -> float:
    """How long this process was stopped since it was asked for first; only differences mean something."""
    return _ticking.stopped_s()


def awake_s() -> float:
    """A clock that stands still while this process is stopped."""
    return time.monotonic() - stopped_s()
