"""When to save, as pure rules."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptflow.callbacks.cadence import EveryEpochs, EverySeconds, EverySteps, choose, crosses


@pytest.mark.parametrize(
    ("before", "now", "period", "expected"),
    [
        (0, 4, 5, False),
        (0, 5, 5, True),
        (4, 6, 5, True),  # 5 was inside one execution
        (5, 5, 5, False),
        (5, 9, 5, False),
        (3, 23, 5, True),  # several at once
        (7, 8, 1, True),
    ],
)
def test_crosses(before: int, now: int, period: int, expected: bool) -> None:
    assert crosses(before, now, period) is expected


def saves_at(rule: Any, steps: Sequence[int], execution: int = 1) -> list[int]:
    """The steps at which a rule saves, for the step after each execution."""
    found = []
    for step in steps:
        if rule.after_batches(execution, lambda step=step: step):
            found.append(step)
            rule.saved(step, 0)
    return found


@pytest.mark.parametrize(
    ("period", "first", "steps", "execution", "expected"),
    [
        (3, 0, range(1, 11), 1, [3, 6, 9]),
        (3, 4, range(5, 11), 1, [6, 9]),  # resumed
        (5, 0, range(4, 25, 4), 4, [8, 12, 16, 20]),
        (3, 0, range(4, 25, 4), 4, [4, 8, 12, 16, 20, 24]),
        (2, 0, [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4], 1, [2, 4]),  # gradients are accumulated over three batches
        (100, 0, range(1, 100), 1, []),
        (10, 0, range(2, 42, 2), 1, [10, 20, 30, 40]),  # a batch is two updates
        (10, 7, range(10, 44, 3), 1, [10, 22, 31, 40]),
        (10, 0, range(8, 100, 8), 4, [16, 24, 32, 40, 56, 64, 72, 80, 96]),
    ],
)
def test_every_steps(period: int, first: int, steps: Sequence[int], execution: int, expected: list[int]) -> None:
    rule = EverySteps(period)
    rule.begin(first, 0)
    assert saves_at(rule, steps, execution) == expected
    assert not rule.after_epoch(1)


def test_every_steps_asks_for_the_step_only_when_it_can_matter() -> None:
    asked = []

    def step_now(step: int) -> Callable[[], int]:
        return lambda: asked.append(step) or step  # type: ignore[func-returns-value]

    rule = EverySteps(50)
    rule.begin(0, 0)
    for step in range(1, 101):
        if rule.after_batches(1, step_now(step)):
            rule.saved(step, 0)
    assert asked == [1, 50, 100]


@pytest.mark.parametrize(("first", "expected"), [(0, [2, 4, 6]), (1, [2, 4, 6]), (2, [4, 6]), (5, [6])])
def test_every_epochs(first: int, expected: list[int]) -> None:
    rule = EveryEpochs(2)
    rule.begin(0, first)
    assert [epoch for epoch in range(first + 1, 8) if rule.after_epoch(epoch)] == expected
    assert not rule.after_batches(1, lambda: 2)


class Clocks:
    """Two workers whose clocks run apart; `looks` counts their exchanges."""

    def __init__(self, seconds_per_batch: Callable[[int], float]) -> None:
        self.now = 0.0
        self.looks: list[float] = []
        self._seconds = seconds_per_batch
        self.said: list[int] = []

    def chief_says(self, passed_ms: Callable[[], int]) -> int:
        self.said.append(passed_ms())
        self.looks.append(self.now)
        return self.said[-1]


@pytest.mark.parametrize(
    "seconds_per_batch",
    [
        lambda _: 0.01,
        lambda _: 3.0,
        lambda batch: 60.0 if batch == 1 else 0.01,
        lambda batch: 0.01 if batch < 99 else 5.0,
    ],
    ids=["quick", "slow", "slow at first", "slow later"],
)
def test_every_seconds_by_the_first_worker_alone(seconds_per_batch: Callable[[int], float]) -> None:
    clocks = Clocks(seconds_per_batch)
    chief = EverySeconds(20, clocks.chief_says, lambda: clocks.now)
    other = EverySeconds(20, lambda passed_ms: clocks.said[-1], lambda: 7 * clocks.now)
    chief.begin(0, 0)
    other.begin(0, 0)
    saved, batches = [0.0], 5000
    for batch in range(1, batches + 1):
        clocks.now += seconds_per_batch(batch)
        count = len(clocks.looks)
        due = chief.after_batches(1, lambda: 0)
        looked = len(clocks.looks) > count
        assert looked == (other._to_go <= 1), "workers look at different batches: one would wait for ever"
        assert other.after_batches(1, lambda: 0) == due
        if due:
            saved.append(clocks.now)
            chief.saved(0, 0)
            other.saved(0, 0)
    gaps = [after - before for before, after in itertools.pairwise(saved)]
    longest = max(seconds_per_batch(batch) for batch in range(1, batches + 1))
    assert gaps
    assert all(gap > 19.99 for gap in gaps)
    assert (
        sum(gap < 20.01 + 2 * longest for gap in gaps) >= len(gaps) - 1
    )  # one may be late where batches become slower
    assert len(clocks.looks) < 14 * len(saved) + batches * longest / 20 + 14


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, None, None), "give every_steps, every_epochs or every_seconds"),
        ((1, 0, None), "every_epochs is a whole number above 0, not 0"),
        ((0, None, None), "every_steps is a whole number above 0, not 0"),
        ((True, None, None), "every_steps is a whole number"),
        ((1.5, None, None), "every_steps is a whole number"),
        ((None, -1, None), "every_epochs is a whole number"),
        ((None, None, 0), "every_seconds is a number of seconds above 0"),
        ((None, None, float("nan")), "every_seconds"),
        ((None, None, float("inf")), "every_seconds"),
    ],
)
def test_what_is_no_period_is_refused(given: tuple[Any, Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose(*given, lambda passed_ms: passed_ms())


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=40), st.integers(1, 9), st.integers(1, 3))
def test_several_rules_save_when_one_of_them_would(turns: list[tuple[int, bool]], steps: int, epochs: int) -> None:
    """Batches, some of which end an epoch: saved where a multiple is crossed, and where an epoch is due."""
    rule = choose(steps, epochs, None, lambda passed_ms: passed_ms())
    step = epoch = last = last_epoch = 0
    rule.begin(0, 0)
    for count, ends_epoch in turns:
        step += count
        is_due = rule.after_batches(count, lambda: step)  # noqa: B023 - asked at once
        assert is_due == crosses(last, step, steps)
        if is_due:
            rule.saved(step, epoch)
            last = step
        if ends_epoch:
            epoch += 1
            is_due = rule.after_epoch(epoch)
            assert is_due == crosses(last_epoch, epoch, epochs)
            last_epoch = epoch
            if is_due:
                rule.saved(step, epoch)
                last = step
