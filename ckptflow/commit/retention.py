"""Which checkpoints to keep: pure policies, data in, reasons out.

A policy is any callable that takes the checkpoints that count (oldest first, one for each step) and returns one item
for each: a text is the reason why it is kept, True keeps it without one, None or False does not. What any policy keeps
stays.
Nothing here deletes, and nothing here reads a clock.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, SupportsIndex, TypeVar

from ckptflow.commit.catalog import Checkpoint

Policy = Callable[[Sequence[Checkpoint]], Sequence[str | bool | None]]
Mode = Literal["min", "max"]

# The last word of a metric's name that says that low values are good.
_LOWER_IS_BETTER = frozenset(
    ["loss", "losses", "error", "errors", "mae", "mape", "mse", "msle", "rmse", "crossentropy", "perplexity"]
)
_NEGATED = frozenset(["neg", "negative", "minus"])  # so that high values are good


@dataclass(frozen=True)
class KeepLast:
    """Keeps the newest `n` checkpoints. `n` = 0 keeps none (the newest one always stays, whatever the policies say)."""

    n: int

    def __post_init__(self) -> None:
        _check_count(self.n)

    def __call__(self, checkpoints: Sequence[Checkpoint]) -> Sequence[str | None]:
        count = len(checkpoints)
        return [f"{count - i} of the last {self.n}" if count - i <= self.n else None for i in range(count)]


@dataclass(frozen=True)
class KeepBest:
    """Keeps the `n` checkpoints with the best value of `metric`: the lowest with `mode="min"`, the highest with "max".

    `mode` may be left out for a metric whose name ends in "loss", "error" or the like, of which the lowest is best.
    Equal values: the older one is better, as it was first. A checkpoint without the metric, or where it is NaN, is
    never among the best. As long as no checkpoint has the metric, all are kept, and the log says so: a name that is
    misspelt deletes nothing.
    """

    metric: str
    n: int = 1
    mode: Mode | None = None

    def __post_init__(self) -> None:
        _check_count(self.n)
        object.__setattr__(self, "mode", choose_mode(self.metric, self.mode))

    def __call__(self, checkpoints: Sequence[Checkpoint]) -> Sequence[str | None]:
        ranked = rank(checkpoints, self.metric, self.mode)
        if not ranked:
            return [f"no checkpoint has the metric {self.metric}"] * len(checkpoints)
        reasons: list[str | None] = [None] * len(checkpoints)
        for place, (i, value) in enumerate(ranked[: self.n], 1):
            reasons[i] = f"{place} of the best {self.n} by {self.metric} ({self.mode}): {value:g}"
        return reasons


def choose_mode(metric: str, mode: Mode | None) -> Mode:
    """`mode`, or what the metric's name says: "min" for a loss or an error. Raises ValueError if it says nothing."""
    if mode in ("min", "max"):
        return mode
    if mode is not None:
        raise ValueError(f'mode is "min" or "max", not {mode!r}')
    words = re.findall("[a-z]+", str(metric).lower())
    if words and words[-1] in _LOWER_IS_BETTER and not _NEGATED & set(words):
        return "min"
    raise ValueError(
        f"the name of the metric {metric!r} does not say which value is best: give "
        'mode="max" if the highest is best, mode="min" if the lowest is'
    )


def rank(checkpoints: Sequence[Checkpoint], metric: str, mode: Mode | None) -> list[tuple[int, float]]:
    """The checkpoints that have the metric, the best first: the index and the value of each."""
    sign = -1 if choose_mode(metric, mode) == "max" else 1
    values = [checkpoint.metrics.get(metric, math.nan) for checkpoint in checkpoints]
    return sorted(((i, v) for i, v in enumerate(values) if not math.isnan(v)), key=lambda pair: sign * pair[1])


class HasMetrics(Protocol):
    """What has a step and metrics: a checkpoint, or a row about one."""

    @property
    def step(self) -> int: ...

    @property
    def metrics(self) -> Mapping[str, float]: ...


_HasMetricsT = TypeVar("_HasMetricsT", bound=HasMetrics)


def best_first(checkpoints: Sequence[Checkpoint], metric: str, mode: Mode | None) -> list[Checkpoint]:
    """The checkpoints that have the metric, the best first: of equal steps the newest stands for all, as for policies.

    `checkpoints` are oldest first. Raises ValueError if neither `mode` nor the metric's name says which value is best.
    """
    mode = choose_mode(metric, mode)
    found = newest_of_steps(checkpoints)
    return [found[i] for i, _ in rank(found, metric, mode)]


def newest_of_steps(checkpoints: Sequence[_HasMetricsT]) -> list[_HasMetricsT]:
    """Of checkpoints that are oldest first, the newest of each step."""
    return list({checkpoint.step: checkpoint for checkpoint in checkpoints}.values())


@dataclass(frozen=True)
class KeepEvery:
    """Keeps one checkpoint for every `steps` steps, or for every `seconds` seconds: give exactly one of the two.

    `steps=n`: the first checkpoint at or after each multiple of n. `seconds=s`: the first, then, in the order of steps,
    each that was made at least s seconds after the last kept one, by the clocks of those who made them; and one that
    says it was made before the last kept one: a clock went back, nobody knows by how much, and time counts from there.
    So a clock that was hours ahead once costs one checkpoint more, and not those of the hours to come.
    """

    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise ValueError("give steps or seconds, one of the two")
        period = self.steps if self.steps is not None else self.seconds
        is_whole = self.steps is None or (isinstance(self.steps, SupportsIndex) and not isinstance(self.steps, bool))
        if period is None or not is_whole or not period > 0 or not math.isfinite(period):
            raise ValueError(f"a period is a number above 0, and whole for steps, not {period!r}")

    def __call__(self, checkpoints: Sequence[Checkpoint]) -> Sequence[str | None]:
        return self._by_steps(checkpoints, self.steps) if self.steps is not None else self._by_seconds(checkpoints)

    def _by_steps(self, checkpoints: Sequence[Checkpoint], period: int) -> Sequence[str | None]:
        reasons: list[str | None] = []
        last = -1
        for checkpoint in checkpoints:
            multiple = checkpoint.step // period
            is_first = multiple > last and (multiple > 0 or checkpoint.step == 0)
            reasons.append(f"first at or after step {multiple * period:,}" if is_first else None)
            last = max(last, multiple)
        return reasons

    def _by_seconds(self, checkpoints: Sequence[Checkpoint]) -> Sequence[str | None]:
        period = self.seconds or math.inf
        reasons: list[str | None] = []
        kept: float | None = None  # only what stays may decide: what is pruned now is not there to be asked next time
        for checkpoint in checkpoints:
            made = checkpoint.created_at.timestamp()
            reason = f"{period:g} seconds after the one before" if kept is None or made - kept >= period else None
            if kept is not None and made < kept:
                reason = "made before the one before it, by the clocks"
            reasons.append(reason)
            kept = made if reason else kept
        return reasons


def reasons_to_keep(checkpoints: Sequence[Checkpoint], policies: Sequence[Policy]) -> list[str | None]:
    """For each checkpoint all the reasons to keep it, joined, or None.

    Raises ValueError where a policy does not return one item for each checkpoint.
    """
    found: list[list[str]] = [[] for _ in checkpoints]
    for policy in policies:
        # Each its own: one that sorts what it is given, or changes it, must not mix up the others' answers.
        answers = list(policy(tuple(checkpoints)))
        if len(answers) != len(checkpoints):
            raise ValueError(f"{policy!r} returned {len(answers)} answers for {len(checkpoints)} checkpoints")
        for reasons, answer in zip(found, answers, strict=True):
            if answer:
                reasons.append(answer if isinstance(answer, str) else f"retained by {policy!r}")
    return ["; ".join(reasons) or None for reasons in found]


def _check_count(n: int) -> None:
    if not isinstance(n, int) or isinstance(n, bool) or n < 0:
        raise ValueError(f"n is how many to keep, 0 or more, not {n!r}")
