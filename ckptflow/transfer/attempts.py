"""Who does which piece of a work, and which one is late: asked for a second time, by a thread that has nothing to do.

Of a hundred requests to a cloud a few take ten times as long as the others. As long as there is other work, that costs
nothing; the last of them are what everybody waits for. `late_after_s` is the rule, on numbers alone.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

LEAST_ENDED = 8  # pieces of work, before any is called late
LATE = 2  # times what nine of ten took
LEAST_S = 0.25  # less than that is not worth a request
HELPERS = 8  # second attempts at once


def late_after_s(taken_s: Sequence[float]) -> float | None:
    """How long one piece may take before it is begun a second time; None: too few have ended to tell.

    Nine of ten, so that one in twenty may be slow by any factor without being what is usual.
    """
    if len(taken_s) < LEAST_ENDED:
        return None
    return max(LEAST_S, LATE * sorted(taken_s)[len(taken_s) * 9 // 10])


class Attempts:
    """Pieces of work 0 … `count` - 1, each begun once, and once more if it is late and no other is left to begin.

    The first attempt that succeeds is the one that counts; one that fails counts only if no other is under way. What
    the others bring is dropped, and nobody waits for them. Thread-safe; the time is told.
    """

    def __init__(self, count: int, *, helpers: int = 0) -> None:
        self._count = count
        self._next = 0
        self._helpers_left = helpers
        self._began_s: dict[int, float] = {}  # of those that have not ended
        self._under_way: dict[int, int] = {}  # attempts of those that were begun twice
        self._won: set[int] = set()
        self._taken_s: list[float] = []
        self._lock = threading.Lock()

    def begin(self, now_s: float) -> int | None:
        """The next one; None: all were begun."""
        with self._lock:
            if self._next == self._count:
                return None
            number, self._next = self._next, self._next + 1
            self._began_s[number] = now_s
            return number

    def may_help(self) -> bool:
        """Whether one more thread is to look for what is late."""
        with self._lock:
            self._helpers_left -= 1
            return self._helpers_left >= 0

    def wait_s(self, now_s: float) -> float | None:
        """How long from now until one may be late, if nothing ends; None: there is none that could be."""
        with self._lock:
            oldest_s = min((at for number, at in self._began_s.items() if number not in self._under_way), default=None)
            if oldest_s is None:
                return None
            late_s = late_after_s(self._taken_s)
            return LEAST_S if late_s is None else max(0.0, oldest_s + late_s - now_s)

    def begin_late(self, now_s: float) -> int | None:
        """The one that is late for longest, for a second attempt."""
        with self._lock:
            late_s = late_after_s(self._taken_s)
            waiting = [(at, number) for number, at in self._began_s.items() if number not in self._under_way]
            if late_s is None or not waiting or now_s - min(waiting)[0] < late_s:
                return None
            number = min(waiting)[1]
            self._under_way[number] = 2
            return number

    def is_raced(self, number: int) -> bool:
        """Whether another attempt may bring it, or has."""
        return number in self._won or self._under_way.get(number, 1) > 1

    def is_won(self, number: int) -> bool:
        return number in self._won

    def end(self, number: int, now_s: float) -> bool:
        """It has succeeded. Whether that was the first attempt to do so."""
        with self._lock:
            if number in self._won:
                return False
            self._won.add(number)
            self._taken_s.append(now_s - self._began_s.pop(number))
            return True

    def fail(self, number: int) -> bool:
        """It has failed. Whether that counts: no other attempt may bring it any more."""
        with self._lock:
            if number in self._won:
                return False
            self._under_way[number] = self._under_way.get(number, 1) - 1
            return self._under_way[number] == 0
