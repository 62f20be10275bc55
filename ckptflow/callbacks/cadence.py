"""When to save: pure rules over counts of batches, steps and epochs that are the same on every worker."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Sequence
from typing import Protocol, SupportsIndex


class Cadence(Protocol):
    """Says after which batches and epochs to save. `begin` comes first; `saved` after each save, whoever made it."""

    def begin(self, step: int, epoch: int) -> None: ...

    def after_batches(self, count: int, step_now: Callable[[], int]) -> bool:
        """`count` more batches were trained. `step_now` may wait for the accelerator: asked only when it can matter."""

    def after_epoch(self, epoch: int) -> bool:
        """`epoch` epochs are done."""

    def saved(self, step: int, epoch: int) -> None: ...


def crosses(before: int, now: int, period: int) -> bool:
    """Whether a multiple of `period` lies in (before, now]: with several steps in one execution none may be hit."""
    return now // period > before // period


class EverySteps:
    """After each multiple of `period` steps, at the first batch end at or past it.

    A batch is a step, a part of one, or several where `train_step` updates more often: as many as at the last look.
    """

    def __init__(self, period: SupportsIndex) -> None:
        self._period = _check_count("every_steps", period)
        self._last = self._seen = self._batches = self._to_go = 0
        self._steps_per_batch = 1

    def begin(self, step: int, epoch: int) -> None:
        self.saved(step, epoch)
        self._to_go = 1  # how many steps a batch is

    def after_batches(self, count: int, step_now: Callable[[], int]) -> bool:
        self._batches += count
        self._to_go -= count
        if self._to_go > 0:  # none can have crossed
            return False
        step = step_now()
        self._steps_per_batch = max(1, math.ceil((step - self._seen) / self._batches))
        if crosses(self._last, step, self._period):
            return True
        self._wait_from(step)
        return False

    def after_epoch(self, epoch: int) -> bool:
        return False

    def saved(self, step: int, epoch: int) -> None:
        self._last = step
        self._wait_from(step)

    def _wait_from(self, step: int) -> None:
        self._seen, self._batches = step, 0
        self._to_go = math.ceil((self._period - step % self._period) / self._steps_per_batch)


class EveryEpochs:
    """At the end of each `period`-th epoch, counted from the first epoch of all."""

    def __init__(self, period: SupportsIndex) -> None:
        self._period = _check_count("every_epochs", period)
        self._last = 0

    def begin(self, step: int, epoch: int) -> None:
        self._last = epoch

    def after_batches(self, count: int, step_now: Callable[[], int]) -> bool:
        return False

    def after_epoch(self, epoch: int) -> bool:
        is_due = crosses(self._last, epoch, self._period)
        self._last = epoch
        return is_due

    def saved(self, step: int, epoch: int) -> None:
        pass


class EverySeconds:
    """When `period_s` seconds have passed since the last save, by the first worker's clock.

    Workers must look at that clock together, by a message each: not at every batch. The next one is due when
    half of the rest has passed at the rate of batches so far, and never after more batches than there were since the
    save; these are numbers that all workers have from the look before.
    """

    def __init__(
        self,
        period_s: float,
        chief_says: Callable[[Callable[[], int]], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if isinstance(period_s, bool) or not 0 < period_s < math.inf:
            raise ValueError(f"every_seconds is a number of seconds above 0, not {period_s!r}")
        self._period_ms = max(1, round(period_s * 1000))
        self._chief_says = chief_says
        self._clock = clock
        self._start_s = 0.0
        self._batches = self._to_go = 0

    def begin(self, step: int, epoch: int) -> None:
        self.saved(step, epoch)

    def after_batches(self, count: int, step_now: Callable[[], int]) -> bool:
        self._batches += count
        self._to_go -= count
        if self._to_go > 0:
            return False
        passed_ms = max(1, self._chief_says(lambda: round((self._clock() - self._start_s) * 1000)))
        if passed_ms >= self._period_ms:
            return True
        expected = (self._period_ms - passed_ms) * self._batches // (2 * passed_ms)
        self._to_go = min(max(expected, 1), self._batches)
        return False

    def after_epoch(self, epoch: int) -> bool:
        return False

    def saved(self, step: int, epoch: int) -> None:
        self._start_s = self._clock()
        self._batches, self._to_go = 0, 1


class Several:
    """When any of several rules says so; each of them counts all batches, epochs and saves."""

    def __init__(self, rules: Sequence[Cadence]) -> None:
        self._rules = rules

    def begin(self, step: int, epoch: int) -> None:
        for rule in self._rules:
            rule.begin(step, epoch)

    def after_batches(self, count: int, step_now: Callable[[], int]) -> bool:
        due = [rule.after_batches(count, step_now) for rule in self._rules]  # all are told
        return any(due)

    def after_epoch(self, epoch: int) -> bool:
        due = [rule.after_epoch(epoch) for rule in self._rules]
        return any(due)

    def saved(self, step: int, epoch: int) -> None:
        for rule in self._rules:
            rule.saved(step, epoch)


def choose(
    every_steps: SupportsIndex | None,
    every_epochs: SupportsIndex | None,
    every_seconds: float | None,
    chief_says: Callable[[Callable[[], int]], int],
) -> Cadence:
    """The rules that were asked for; `chief_says` gives all workers what a function returns on the chief.

    Raises ValueError for none, or a period that is none.
    """
    rules: list[Cadence] = []
    if every_steps is not None:
        rules.append(EverySteps(every_steps))
    if every_epochs is not None:
        rules.append(EveryEpochs(every_epochs))
    if every_seconds is not None:
        rules.append(EverySeconds(every_seconds, chief_says))
    if not rules:
        raise ValueError("give every_steps, every_epochs or every_seconds, or more than one of them")
    return Several(rules)


def _check_count(name: str, period: SupportsIndex) -> int:
    try:
        count = -1 if isinstance(period, bool) else operator.index(period)
    except TypeError:
        count = -1
    if count < 1:
        raise ValueError(f"{name} is a whole number above 0, not {period!r}")
    return count
