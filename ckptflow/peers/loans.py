"""What this worker has read for others: kept in its buffers until each has had it, or is given up.

States of a range that others want of this worker: awaited (not read yet), lent (here, for those who have not had it),
over. No waiting here is without a limit, and none of it needs the main thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ckptflow.stops import awake_s

PHASES = 3  # in a round, in which one checkpoint is read
LATE_S = 5.0  # without anybody who comes for what is here, when its buffer is needed
STUCK_S = 30.0  # of asking without anything that ends: those who wait had better ask the storage themselves


class Key(NamedTuple):
    """Bytes of a shard, in one phase: one reading of one checkpoint by all workers."""

    phase: int
    shard: int
    begin: int
    end: int


@dataclass
class _Loan:
    """Verified bytes, and for whom they are still kept."""

    view: memoryview
    give_back: Callable[[], None]
    left: set[int]
    busy: set[int] = field(default_factory=set)  # who is getting it now


class Loans:
    """Thread-safe. `clock` and the limits `late_s` and `stuck_s` are other ones in tests."""

    def __init__(
        self, clock: Callable[[], float] = awake_s, *, late_s: float = LATE_S, stuck_s: float = STUCK_S
    ) -> None:
        self._clock = clock
        self._late_s = late_s
        self._stuck_s = stuck_s
        self._news = threading.Condition()
        self._phase = -1
        self._awaited: dict[Key, set[int]] = {}
        self._lent: dict[Key, _Loan] = {}
        self._lost: set[int] = set()  # workers that did not come when they should have
        self._absent: set[int] = set()  # those that will not come any more in this round
        self._over_below = 0  # phases that this worker takes no part in, or not any more
        self._present: set[int] = set()  # those that have a connection
        self._advanced_s = clock()  # when something has ended: a request to the storage, or what one gets
        self._asked: dict[int, tuple[Key, float]] = {}  # what each worker asks for, and since when

    def begin(self, phase: int, wanters: Mapping[Key, Collection[int]]) -> None:
        """From here on these ranges are awaited, each by these workers. What is lent from an earlier phase stays."""
        with self._news:
            if phase // PHASES != self._phase // PHASES:
                self._absent = set()
            self._phase = phase
            absent = self._lost | self._absent
            self._awaited = {key: set(workers) - absent for key, workers in wanters.items()}
            self._advanced_s = self._clock()
            self._news.notify_all()

    def lend(self, key: Key, view: memoryview, give_back: Callable[[], None]) -> None:
        """It is here; `give_back` is called when nobody needs it any more, and takes no lock."""
        with self._news:
            loan = _Loan(view, give_back, self._awaited.pop(key, set()))
            self._advanced_s = self._clock()
            if loan.left:
                self._lent[key] = loan
            self._news.notify_all()
        if not loan.left:
            give_back()

    def take(self, key: Key, worker: int, wait_s: float) -> memoryview | None:
        """What is lent, to be returned by `done`; None if it is not here after `wait_s`.

        Raises `GoneError` if it cannot be had: then this worker is expected to ask for nothing else in this round.
        """
        deadline_s = self._clock() + wait_s
        with self._news:
            if worker not in self._asked or self._asked[worker][0] != key:
                self._asked[worker] = key, self._clock()
            while True:
                if key in self._lent and worker in self._lent[key].left:
                    self._advanced_s = self._clock()
                    self._lent[key].busy.add(worker)
                    return self._lent[key].view
                if not self._may_come(key, worker):
                    self._leave(worker)
                    raise GoneError
                left_s = deadline_s - self._clock()
                if left_s <= 0:
                    return None
                self._news.wait(left_s)

    def done(self, key: Key, worker: int) -> None:
        """This worker has had it, or will not."""
        with self._news:
            self._advanced_s = self._clock()
            self._forget(key, worker)

    def arrive(self, worker: int) -> None:
        """It has a connection, until it leaves."""
        with self._news:
            self._present.add(worker)

    def leave(self, worker: int) -> None:
        """It will not come any more in this round: nothing is kept for it."""
        with self._news:
            self._present.discard(worker)
            self._leave(worker)

    def press(self) -> set[int]:
        """A buffer is needed: where nobody has come for long, nothing is kept for those who did not, in later rounds as
        well; if some of them have no connection, for these. Who that was."""
        with self._news:
            loans = list(self._lent.values())
            if self._clock() - self._advanced_s < self._late_s or any(loan.busy for loan in loans):
                return set()
            missing = {worker for loan in loans for worker in loan.left}
            late = missing - self._present or missing
            for worker in late:
                self._leave(worker)
            self._lost |= late
        return late

    def advance(self) -> None:
        """The storage goes on."""
        self._advanced_s = self._clock()

    def withdraw(self, below: int) -> None:
        """What is not here yet of phases below this one will not come."""
        with self._news:
            self._over_below = max(self._over_below, below)
            self._news.notify_all()

    def end(self) -> None:
        """All is over: everything is given back."""
        with self._news:
            self._awaited = {}
            for loan in self._lent.values():
                loan.give_back()
            self._lent = {}
            self._news.notify_all()

    def _may_come(self, key: Key, worker: int) -> bool:
        stuck_s = self._clock() - max(self._advanced_s, self._asked[worker][1])
        if key.phase < self._over_below or stuck_s >= self._stuck_s or worker in self._lost:
            return False
        return key.phase > self._phase or worker in self._awaited.get(key, ())

    def _leave(self, worker: int) -> None:
        self._absent.add(worker)
        for workers in self._awaited.values():
            workers.discard(worker)
        for key in list(self._lent):
            self._forget(key, worker)

    def _forget(self, key: Key, worker: int) -> None:
        loan = self._lent.get(key)
        if loan is None:
            return
        loan.left.discard(worker)
        loan.busy.discard(worker)
        if not loan.left:
            loan.give_back()
            del self._lent[key]


class GoneError(Exception):
    """It cannot be had of this worker."""
