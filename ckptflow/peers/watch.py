"""Which of the other workers have ended, or do not answer: asked from time to time while something waits for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

ASK_EVERY_S = 2.0
ENDED_AFTER_S = 6.0  # of refusals, so that no hiccup of a network is a death
SILENT_AFTER_S = 15.0  # of no answer at all, as from a process that is stopped, or behind a cut link
_BUDGET_S = 1.0  # for asking, before whoever waits looks again for what it waits for


@dataclass(frozen=True, slots=True)
class Peer:
    """A worker, as TensorFlow addresses it, and where its process is."""

    task: str
    address: str


class Answer(Enum):
    """What a process says when it is asked whether it is there."""

    HERE = ""
    SILENT = "does not answer"
    ENDED = "has ended"


class Watch:
    """Asks other workers whether they are there, and remembers since when they did not say so. From any thread.

    A worker counts as gone once it has refused for 6 s, or has said nothing for 15 s (or `limit_s`, if that is less).
    """

    def __init__(
        self,
        peers: Sequence[Peer],
        ask: Callable[[Peer, float], Answer],
        limit_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ask(peer, timeout_s)` says what a process answers."""
        self._peers = peers
        self._ask = ask
        self._silent_after_s = min(SILENT_AFTER_S, limit_s)
        self._clock = clock
        self._lock = threading.Lock()
        self._asked: dict[int, float] = {}  # when a worker was asked last
        self._silent: dict[int, tuple[float, Answer]] = {}  # since when it is not there, and what it said last

    def find_gone(self, workers: Iterable[int]) -> dict[int, Answer]:
        """Those of these workers that are gone, and in which way. Asks those that were not asked for two seconds,
        the longest ago first, for about a second in all."""
        started = self._clock()
        among = list(workers)
        for worker in sorted(among, key=lambda each: self._asked.get(each, 0.0)):
            if self._clock() - started >= _BUDGET_S:
                break
            if started - self._asked.get(worker, -ASK_EVERY_S) >= ASK_EVERY_S:
                self._ask_one(worker)
        return {worker: answer for worker in among if (answer := self._verdict(worker)) is not Answer.HERE}

    def _ask_one(self, worker: int) -> None:
        asked = self._clock()
        answer = self._ask(self._peers[worker], _BUDGET_S)
        with self._lock:
            self._asked[worker] = asked
            if answer is Answer.HERE:
                self._silent.pop(worker, None)
            else:
                since, _ = self._silent.get(worker, (asked, answer))
                self._silent[worker] = since, answer

    def _verdict(self, worker: int) -> Answer:
        with self._lock:
            since, answer = self._silent.get(worker, (0.0, Answer.HERE))
        if answer is Answer.HERE:
            return answer
        limit_s = ENDED_AFTER_S if answer is Answer.ENDED else self._silent_after_s
        return answer if self._clock() - since >= limit_s else Answer.HERE
