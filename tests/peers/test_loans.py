"""What is kept for other workers, and until when: by a clock that is told."""

from __future__ import annotations

import pytest

from ckptflow.peers.loans import LATE_S, PHASES, STUCK_S, GoneError, Key, Loans

VIEW = memoryview(b"bytes")


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def key(number: int, phase: int = PHASES) -> Key:
    return Key(phase, 0, number, number + 1)


def begun(clock: Clock, count: int = 3, workers: tuple[int, ...] = (1, 2)) -> Loans:
    loans = Loans(clock)
    loans.begin(PHASES, {key(number): workers for number in range(count)})
    return loans


def test_it_is_given_back_when_all_have_had_it(clock: Clock) -> None:
    loans, back = begun(clock), list[int]()
    assert loans.take(key(0), 1, 0) is None
    loans.lend(key(0), VIEW, lambda: back.append(0))
    for worker in (1, 2):
        assert back == []
        assert loans.take(key(0), worker, 0) is VIEW
        loans.done(key(0), worker)
    assert back == [0]
    with pytest.raises(GoneError):
        loans.take(key(0), 1, 0)


def test_what_nobody_wants_is_given_back_at_once(clock: Clock) -> None:
    loans, back = begun(clock), list[int]()
    loans.lend(key(7), VIEW, lambda: back.append(7))
    for worker in (1, 2):
        loans.leave(worker)
    loans.lend(key(0), VIEW, lambda: back.append(0))
    assert back == [7, 0]


def test_who_does_not_come_is_lost_only_when_a_buffer_is_needed_and_not_while_it_gets_something(clock: Clock) -> None:
    loans, back = begun(clock), list[int]()
    loans.lend(key(0), VIEW, lambda: back.append(0))
    assert loans.take(key(0), 1, 0) is VIEW
    clock.now_s += 10 * LATE_S
    assert loans.press() == set()
    loans.done(key(0), 1)
    clock.now_s += LATE_S - 0.1
    assert loans.press() == set()
    clock.now_s += 0.1
    assert loans.press() == {2}
    assert back == [0]
    with pytest.raises(GoneError):
        loans.take(key(1), 2, 0)
    loans.begin(2 * PHASES, {key(0, 2 * PHASES): (1, 2)})  # for the rest of the restore
    loans.lend(key(0, 2 * PHASES), VIEW, lambda: back.append(1))
    assert loans.take(key(0, 2 * PHASES), 1, 0) is VIEW
    loans.done(key(0, 2 * PHASES), 1)
    assert back == [0, 1]


def test_nobody_waits_for_a_storage_that_stands_still(clock: Clock) -> None:
    loans = begun(clock)
    clock.now_s += STUCK_S - 0.1
    loans.advance()
    assert loans.take(key(0), 1, 0) is None
    clock.now_s += STUCK_S - 0.1
    assert loans.take(key(0), 1, 0) is None
    clock.now_s += 0.1
    with pytest.raises(GoneError):
        loans.take(key(0), 1, 0)
    loans.advance()
    with pytest.raises(GoneError):  # it was told so once, and reads by itself
        loans.take(key(1), 1, 0)
    assert loans.take(key(1), 2, 0) is None


def test_how_long_it_stood_still_before_somebody_asked_does_not_count(clock: Clock) -> None:
    """Each range, for each worker: what was said before the phase began took its time."""
    loans = begun(clock)
    for number in (0, 1):
        clock.now_s += 2 * STUCK_S
        assert loans.take(key(number), 1, 0) is None
        clock.now_s += STUCK_S - 0.1
        assert loans.take(key(number), 1, 0) is None
    clock.now_s += 0.1
    with pytest.raises(GoneError):
        loans.take(key(1), 1, 0)


def test_a_later_phase_is_waited_for_and_one_that_was_left_is_not(clock: Clock) -> None:
    loans = begun(clock)
    assert loans.take(key(0, PHASES + 1), 1, 0) is None
    loans.withdraw(2 * PHASES)
    for phase in (PHASES, PHASES + 1):
        with pytest.raises(GoneError):
            loans.take(key(0, phase), 2, 0)
    assert loans.take(key(0, 2 * PHASES), 1, 0) is None  # the next checkpoint
    loans.begin(2 * PHASES, {key(0, 2 * PHASES): (1, 2)})
    assert loans.take(key(0, 2 * PHASES), 2, 0) is None


def test_what_is_lent_can_be_had_after_a_withdrawal_and_until_the_end(clock: Clock) -> None:
    loans, back = begun(clock), list[int]()
    loans.lend(key(0), VIEW, lambda: back.append(0))
    loans.withdraw(2 * PHASES)
    assert loans.take(key(0), 1, 0) is VIEW
    loans.end()
    assert back == [0]
    loans.done(key(0), 1)
    assert back == [0]


def test_a_worker_gets_nothing_that_it_does_not_want(clock: Clock) -> None:
    loans = begun(clock, workers=(1,))
    loans.lend(key(0), VIEW, lambda: None)
    with pytest.raises(GoneError):
        loans.take(key(0), 2, 0)
    assert loans.take(key(0), 1, 0) is VIEW


def test_who_has_no_connection_is_lost_first(clock: Clock) -> None:
    loans = begun(clock)
    loans.arrive(1)
    loans.lend(key(0), VIEW, lambda: None)
    clock.now_s += LATE_S
    assert loans.press() == {2}
    assert loans.take(key(0), 1, 0) is VIEW


def test_one_that_waits_for_slow_others_is_no_storage_that_stands_still(clock: Clock) -> None:
    loans = begun(clock)
    loans.lend(key(0), VIEW, lambda: None)
    for worker in (1, 2):
        clock.now_s += STUCK_S - 0.1
        assert loans.take(key(0), worker, 0) is VIEW
        clock.now_s += STUCK_S - 0.1
        loans.done(key(0), worker)
    clock.now_s += STUCK_S - 0.1
    assert loans.take(key(1), 1, 0) is None
