"""Since when a worker does not answer, and when that is enough."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from ckptflow.peers.watch import ENDED_AFTER_S, SILENT_AFTER_S, Answer, Peer, Watch, neighbours

PEERS = [Peer(str(number), f"host{number}") for number in range(100)]


class Clock:
    """Goes on by what each question takes."""

    def __init__(self, question_s: float = 0.0) -> None:
        self.now, self.question_s = 1000.0, question_s
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []

    def __call__(self) -> float:
        return self.now

    def ask(self, peer: Peer, timeout_s: float) -> Answer:
        self.asked.append(peer.task)
        self.now += min(self.question_s, timeout_s)
        return Answer.SILENT if self.question_s > timeout_s else self.answers.get(peer.task, Answer.HERE)


@pytest.mark.parametrize(
    ("answer", "limit_s", "after_s"),
    [
        (Answer.ENDED, math.inf, ENDED_AFTER_S),
        (Answer.SILENT, math.inf, SILENT_AFTER_S),
        (Answer.SILENT, 10.0, 10.0),
        (Answer.ENDED, 10.0, ENDED_AFTER_S),
    ],
)
def test_one_is_gone_after_so_long_without_a_break(answer: Answer, limit_s: float, after_s: float) -> None:
    clock = Clock()
    watch = Watch(PEERS, clock.ask, limit_s, clock)
    clock.answers["3"] = answer
    while clock.now < 1000 + after_s:
        assert watch.find_gone([3, 4], 1000.0) == {}
        clock.now += 2
    assert watch.find_gone([3, 4], 1000.0) == {3: answer}
    clock.answers["3"] = Answer.HERE
    clock.now += 2
    assert watch.find_gone([3, 4], 1000.0) == {}
    clock.answers["3"] = answer
    clock.now += 2
    assert watch.find_gone([3, 4], 1000.0) == {}  # counted anew


def test_nobody_is_asked_more_often_than_every_two_seconds() -> None:
    clock = Clock()
    watch = Watch(PEERS, clock.ask, math.inf, clock)
    for _ in range(100):
        watch.find_gone([1], 1000.0)
        clock.now += 0.1
    assert len(clock.asked) in (5, 6)


def test_slow_answers_take_half_a_second_at_a_time_and_all_are_asked_in_turn() -> None:
    clock = Clock(question_s=0.05)
    watch = Watch(PEERS, clock.ask, math.inf, clock)
    for _ in range(25):
        before = clock.now
        watch.find_gone(range(100), 1000.0)
        assert clock.now - before <= 0.6
    assert len(set(clock.asked)) == 100


def test_a_network_that_is_slower_than_a_question_makes_nobody_silent() -> None:
    clock = Clock(question_s=0.5)
    watch = Watch(PEERS, clock.ask, math.inf, clock)
    for _ in range(100):
        assert watch.find_gone([3], 1000.0) == {}
        clock.now += 2


@pytest.mark.parametrize("answer", [Answer.ENDED, Answer.SILENT])
def test_what_was_before_the_wait_does_not_count(answer: Answer) -> None:
    clock = Clock()
    watch = Watch(PEERS, clock.ask, math.inf, clock)
    clock.answers["3"] = answer
    watch.find_gone([3], clock.now)
    clock.now += 1000  # nobody waits, and so nobody asks
    started = clock.now
    for _ in range(3):
        assert watch.find_gone([3], started) == {}
        clock.now += 2


def test_one_that_is_silent_and_then_refuses_has_refused_for_long_enough() -> None:
    clock = Clock()
    watch = Watch(PEERS, clock.ask, math.inf, clock)
    clock.answers["3"] = Answer.SILENT
    while clock.now < 1012:
        assert watch.find_gone([3], 1000.0) == {}
        clock.now += 2
    clock.answers["3"] = Answer.ENDED
    while clock.now < 1012 + ENDED_AFTER_S:
        assert watch.find_gone([3], 1000.0) == {}
        clock.now += 2
    assert watch.find_gone([3], 1000.0) == {3: Answer.ENDED}


def test_who_is_silent_is_one_that_was_asked_in_this_wait() -> None:
    clock = Clock()
    watch = Watch(PEERS, clock.ask, math.inf, clock)
    clock.answers["3"] = Answer.SILENT
    watch.find_gone([3, 4], clock.now)
    assert watch.find_silent(clock.now) == {3: Answer.SILENT}
    clock.now += 1
    assert watch.find_silent(clock.now) == {}


def test_one_answer_that_takes_its_time_makes_nobody_silent() -> None:
    clock = Clock(question_s=0.5)
    watch = Watch(PEERS, clock.ask, math.inf, clock)
    watch.find_gone([3], clock.now)
    assert watch.find_silent(1000.0) == {}


def test_of_many_that_are_silent_some_are_known_as_soon_as_of_one() -> None:
    """And asking them holds up whoever waits for some seconds at the most."""
    clock = Clock(question_s=2.0)
    watch = Watch(PEERS, clock.ask, math.inf, clock)
    found: dict[int, Answer] = {}
    while not found:
        before = clock.now
        found = watch.find_gone(range(100), 1000.0)
        assert clock.now - before <= 4.0
        clock.now += 2
    assert clock.now <= 1000 + SILENT_AFTER_S + 10
    assert set(found.values()) == {Answer.SILENT}


def test_three_answers_are_needed_however_short_the_limit() -> None:
    clock = Clock()
    watch = Watch(PEERS, clock.ask, 1.0, clock)
    clock.answers["3"] = Answer.SILENT
    for _ in range(2):
        assert watch.find_gone([3], 1000.0) == {}
        clock.now += 2
    assert watch.find_gone([3], 1000.0) == {3: Answer.SILENT}


def test_each_worker_is_looked_after_by_several_in_a_long_part() -> None:
    assert neighbours(0, 2) == [1]
    assert neighbours(1, 2) == [0]
    for world_size in (3, 9, 10, 1000):
        asked = [neighbours(worker, world_size) for worker in range(world_size)]
        assert all(len(set(others)) == len(others) and worker not in others for worker, others in enumerate(asked))
        assert all(len(others) <= 9 for others in asked[1:])
        by = Counter(other for others in asked for other in others)
        assert min(by[worker] for worker in range(world_size)) >= min(world_size - 1, 9)
