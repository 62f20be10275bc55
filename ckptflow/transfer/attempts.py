"""Who does which piece of a work, and which one is late: begun again, by a thread that has nothing to do.

Of a hundred requests to a cloud a few take ten times as long as the others. As long as there is other work, that costs
nothing; the last of them are what everybody waits for. `late_after_s` is the rule, on numbers alone.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

RECENT = 8  # that ended last, by which it is judged: the last ranges of a restore come in smaller requests
FEWEST = 3  # the same, where there are few in all: half of them, of which one may be slow itself
LATE = 2  # times what all of these took, but for the slowest
LEAST_S = 0.25  # less than that is not worth a request
MOST_ATTEMPTS = 3  # at one piece: the second may be as slow as the first
HELPERS = 8  # threads that make such attempts


def late_after_s(taken_s: Sequence[float], count: int) -> float | None:
    """How long one piece of `count` may take before it is begun again; None: too few have ended to tell.

    Without the slowest one: one in twenty may be slow by any factor without being what is usual.
    """
    if len(taken_s) < min(RECENT, max(FEWEST, count // 2)):
        return None
    return max(LEAST_S, LATE * sorted(taken_s[-RECENT:])[-2])


class Attempts:
    """Pieces of work 0 … `count` - 1, each begun once, and again if it is late and no other is left to begin.

    The first attempt that succeeds is the one that counts; one that fails counts only if no other is under way. What
    the others bring is dropped, and nobody waits for them. Thread-safe; the time is told.
    """

    def __init__(self, count: int, *, helpers: int = 0) -> None:
        self._count = count
        self._next = 0
        self._helpers_left = helpers
        self._began_s: dict[int, float] = {}  # the last attempts at those that have not ended
        self._begun: Counter[int] = Counter()
        self._failed: Counter[int] = Counter()
        self._won: set[int] = set()
        self._taken_s: list[float] = []
        self._lock = threading.Lock()

    def begin(self, now_s: float) -> int | None:
        """The next one; None: all were begun."""
        with self._lock:
            if self._next == self._count:
                return None
            number, self._next = self._next, self._next + 1
            self._begun[number] = 1
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
            began_s = min(self._may_be_late().values(), default=None)
            if began_s is None:
                return None
            late_s = late_after_s(self._taken_s, self._count)
            return LEAST_S if late_s is None else max(0.0, began_s + late_s - now_s)

    def begin_late(self, now_s: float) -> int | None:
        """The one that is late for longest, for another attempt."""
        with self._lock:
            waiting, late_s = self._may_be_late(), late_after_s(self._taken_s, self._count)
            number = min(waiting, key=lambda number: waiting[number], default=None)
            if number is None or late_s is None or now_s - waiting[number] < late_s:
                return None
            self._begun[number] += 1
            self._began_s[number] = now_s
            return number

    def _may_be_late(self) -> dict[int, float]:
        return {number: at for number, at in self._began_s.items() if self._begun[number] < MOST_ATTEMPTS}

    def is_raced(self, number: int) -> bool:
        """Whether another attempt may bring it, or has."""
        return number in self._won or self._begun[number] - self._failed[number] > 1

    def is_won(self, number: int) -> bool:
        """Whether an attempt has brought it."""
        return number in self._won

    def end(self, number: int, now_s: float) -> bool:
        """It has succeeded. Whether that was the first attempt to do so."""
        with self._lock:
            if number in self._won:
                return False
            self._won.add(number)
            began_s = self._began_s.pop(number)
            if self._begun[number] == 1:
                self._taken_s.append(now_s - began_s)
            return True

    def fail(self, number: int) -> bool:
        """It has failed. Whether that counts: no other attempt may bring it any more."""
        with self._lock:
            self._failed[number] += 1
            return number not in self._won and self._failed[number] == self._begun[number]
