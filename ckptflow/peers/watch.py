"""Which of the other workers have ended, or do not answer: asked from time to time while something waits for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

ASK_EVERY_S = 2.0
ENDED_AFTER_S = 6.0  # of refusals, so that no hiccup of a network is a death
SILENT_AFTER_S = 15.0  # of no answer at all, as from a process that is stopped, or behind a cut link
_ANSWERS = 3  # of one kind in a row, at least: one who asks seldom learns no more from a long time
_ASK_S = 0.1  # TensorFlow's call holds the interpreter's lock: all threads of this process stand still meanwhile
_SURE_S = 1.0  # for the last question, before a worker is called silent
_ASKED_FOR_SURE = 3  # at a time
_ASKED_OF_MANY = 8  # besides those who must come first
_BUDGET_S = 0.5  # for asking, before whoever waits looks again for what it waits for
_SAY_AFTER_S = (15.0, 60.0, 300.0, 1200.0)
_SAY_EVERY_S = 3600.0  # after those


@dataclass(frozen=True, slots=True)
class Peer:
    """A worker, as TensorFlow addresses it, and where its process is."""

    task: str
    address: str


def neighbours(worker: int, world_size: int) -> list[int]:
    """Whom a worker looks after in a part of a call that is long: worker 0 all, the others it and a few, the same each
    time, so that each is looked after by several."""
    if worker == 0:
        return list(range(1, world_size))
    ring = ((worker + distance) % world_size for distance in range(1, world_size))
    return [0, *[other for other in ring if other][:_ASKED_OF_MANY]]


def in_turn(others: Sequence[int], turn: int, count: int = _ASKED_OF_MANY) -> Sequence[int]:
    """Some of many others, different ones at each turn: each of a thousand asking all is too much."""
    if len(others) <= count:
        return others
    begin = turn * count % len(others)
    return [*others, *others][begin : begin + count]


def say_at() -> Iterator[float]:
    """After how many seconds of waiting it is said who is missing."""
    yield from _SAY_AFTER_S
    at_s = _SAY_EVERY_S
    while True:
        yield at_s
        at_s += _SAY_EVERY_S


class Answer(Enum):
    """What a process says when it is asked whether it is there."""

    HERE = ""
    SILENT = "does not answer"
    ENDED = "has ended"


@dataclass(slots=True)
class _Silence:
    """One kind of not being there, without a break."""

    answer: Answer
    since: float
    answers: int = 0


class Watch:
    """Asks other workers whether they are there, and remembers since when they did not say so. From any thread.

    A worker counts as gone once it has refused for 6 s, or has said nothing for 15 s (or `limit_s`, if that is less),
    and so at least three times in a row, all that while somebody has waited for it.
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
        self._silences: dict[int, _Silence] = {}

    def find_gone(self, workers: Iterable[int], started: float) -> dict[int, Answer]:
        """Those of these workers that are gone, and in which way, waited for since `started` (by the clock).

        Asks those that were not asked for two seconds, for about half a second in all.
        """
        began = self._clock()
        among = list(workers)
        for worker in self._in_turn(among):
            if self._clock() - began >= _BUDGET_S:
                break
            if began - self._asked.get(worker, -ASK_EVERY_S) >= ASK_EVERY_S:
                self._ask_one(worker, _ASK_S)
        gone = {worker: answer for worker in among if (answer := self._judge(worker, started)) is not Answer.HERE}
        silent = [worker for worker, answer in gone.items() if answer is Answer.SILENT]
        return {worker: answer for worker, answer in gone.items() if answer is Answer.ENDED} | self._sure(silent)

    def find_suspects(self, workers: Iterable[int]) -> list[int]:
        """Those of these workers that did not say that they are there when they were asked last. Asks nobody."""
        with self._lock:
            return [worker for worker in workers if worker in self._silences]

    def find_silent(self, started: float) -> dict[int, Answer]:
        """Some of the workers that are not there now, of those that were asked since `started`, for whatever time."""
        with self._lock:
            asked = [worker for worker in self._silences if self._asked[worker] >= started]
        return self._sure(asked)

    def _in_turn(self, workers: Sequence[int]) -> list[int]:
        """The longest silent ones first, so that of many some are known to be gone as soon as of one; then the rest."""
        with self._lock:
            silent = sorted((each for each in workers if each in self._silences), key=lambda w: self._silences[w].since)
        first = silent[:_ASKED_FOR_SURE]
        return first + sorted(set(workers) - set(first), key=lambda each: self._asked.get(each, 0.0))

    def _sure(self, workers: Sequence[int]) -> dict[int, Answer]:
        """Which of a few of these still do not answer: a slow network takes longer than is waited elsewhere."""
        for worker in workers[:_ASKED_FOR_SURE]:
            self._ask_one(worker, _SURE_S)
        with self._lock:
            return {
                worker: self._silences[worker].answer
                for worker in workers[:_ASKED_FOR_SURE]
                if worker in self._silences
            }

    def _ask_one(self, worker: int, timeout_s: float) -> None:
        asked = self._clock()
        answer = self._ask(self._peers[worker], timeout_s)
        with self._lock:
            self._asked[worker] = asked
            if answer is Answer.HERE:
                self._silences.pop(worker, None)
                return
            silence = self._silences.get(worker)
            if silence is None or silence.answer is not answer:
                self._silences[worker] = silence = _Silence(answer, asked)
            silence.answers += 1

    def _judge(self, worker: int, started: float) -> Answer:
        with self._lock:
            silence = self._silences.get(worker)
            if silence is None or silence.answers < _ANSWERS:
                return Answer.HERE
            limit_s = ENDED_AFTER_S if silence.answer is Answer.ENDED else self._silent_after_s
            return silence.answer if self._clock() - max(silence.since, started) >= limit_s else Answer.HERE
