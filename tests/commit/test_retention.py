"""Policies: what each keeps and why, on figures that are missing, NaN, equal, or from a clock that went astray."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptflow.commit.catalog import Checkpoint
from ckptflow.commit.retention import KeepBest, KeepEvery, KeepLast, Policy, reasons_to_keep
from ckptflow.format.layout import Folder
from ckptflow.testing import MemoryStore
from tests.commit.roots import Job, folders

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def checkpoint(step: int, *, seconds: float = 0.0, **metrics: float) -> Checkpoint:
    return Checkpoint(step, 1, metrics, None, NOON + timedelta(seconds=seconds), 10, f"root/{step}")


def kept(checkpoints: Sequence[Checkpoint], *policies: Policy) -> list[int]:
    reasons = reasons_to_keep(checkpoints, policies)
    return [c.step for c, reason in zip(checkpoints, reasons, strict=True) if reason is not None]


STEPS = [checkpoint(step) for step in (1, 2, 3, 5, 8)]


@pytest.mark.parametrize(
    ("n", "expected"), [(0, []), (1, [8]), (3, [3, 5, 8]), (5, [1, 2, 3, 5, 8]), (99, [1, 2, 3, 5, 8])]
)
def test_keep_last(n: int, expected: list[int]) -> None:
    assert kept(STEPS, KeepLast(n)) == expected


LOSSES = [
    checkpoint(1, loss=0.5),
    checkpoint(2, loss=math.nan),
    checkpoint(3, loss=0.2),
    checkpoint(4),
    checkpoint(5, loss=0.2),
    checkpoint(6, loss=math.inf),
    checkpoint(7, loss=-math.inf),
]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (KeepBest("loss", 0), []),
        (KeepBest("loss", 1), [7]),
        (KeepBest("loss", 2), [3, 7]),  # of equal values the older one, as it was first
        (KeepBest("loss", 3), [3, 5, 7]),
        (KeepBest("loss", 99), [1, 3, 5, 6, 7]),  # never one without the metric, nor NaN
        (KeepBest("loss", 1, mode="max"), [6]),
        (
            KeepBest("accuracy", 1, "max"),
            [1, 2, 3, 4, 5, 6, 7],
        ),  # a name that is misspelt deletes nothing
    ],
)
def test_keep_best(policy: KeepBest, expected: list[int]) -> None:
    assert kept(LOSSES, policy) == expected


def test_a_metric_that_no_save_has_given_is_said_once_and_deletes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """`KeepBest("val_los")` kept one checkpoint, and said nothing."""
    store = MemoryStore()
    life = Job(store, [KeepLast(1), KeepBest("val_loss")])
    life.resume()
    for step in (1, 2, 3):
        life.save(step, metrics={"loss": 1.0})
    assert len(folders(store)) == 3
    assert caplog.text.count("KeepBest('val_loss'): no checkpoint has this metric") == 1
    assert "they have: loss" in caplog.text
    for step in (4, 5):
        life.save(step, metrics={"loss": 1.0, "val_loss": step})
    assert folders(store) == [str(Folder(4, 1)), str(Folder(5, 1))]


@pytest.mark.parametrize("name", ["loss", "val_loss", "eval/Loss", "val_mean_absolute_error_1", "val_mae", "test-RMSE"])
def test_a_name_that_says_it_needs_no_mode(name: str) -> None:
    assert KeepBest(name) == KeepBest(name, 1, "min")
    assert KeepBest(name, mode="max").mode == "max"


@pytest.mark.parametrize("name", ["accuracy", "neg_log_loss", "val_auc", "loss_scale", "errorless", "lossless", ""])
def test_a_name_that_does_not_say_it_needs_one(name: str) -> None:
    with pytest.raises(ValueError, match=r'mode="max" if the highest is best, mode="min" if'):
        KeepBest(name)


@pytest.mark.parametrize(
    ("steps", "period", "expected"),
    [
        ([0, 5, 10, 15, 20], 10, [0, 10, 20]),
        ([1, 9, 11, 19, 31, 32], 10, [11, 31]),
        ([3, 3, 3], 3, [3]),
        ([], 3, []),
    ],
)
def test_keep_every_steps(steps: list[int], period: int, expected: list[int]) -> None:
    assert kept([checkpoint(step) for step in steps], KeepEvery(steps=period)) == expected


def test_keep_every_seconds_survives_clocks_that_go_astray() -> None:
    """A time far in the future, and the way back from it, from where time counts anew."""
    times = [0, 50, 100, 1e9, 120, 180, 240]
    checkpoints = [checkpoint(i + 1, seconds=s) for i, s in enumerate(times)]
    assert kept(checkpoints, KeepEvery(seconds=100)) == [1, 3, 4, 5, 7]


@given(st.lists(st.floats(-1e6, 1e6), max_size=30), st.floats(1, 1e5))
def test_keep_every_seconds_says_the_same_whether_the_others_were_pruned_or_not(
    times: list[float], period: float
) -> None:
    policies = (KeepLast(1), KeepEvery(seconds=period))
    every = [checkpoint(i, seconds=s) for i, s in enumerate(times)]
    there: list[Checkpoint] = []
    for each in every:
        there.append(each)
        steps = kept(there, *policies)
        there = [c for c in there if c.step in steps]
    assert [c.step for c in there] == kept(every, *policies)


def test_what_any_policy_keeps_stays_with_all_reasons() -> None:
    reasons = reasons_to_keep(STEPS[-2:], [KeepLast(1), KeepEvery(steps=4), lambda found: [True] * len(found)])
    assert reasons[0] is not None
    assert reasons[0].startswith("first at or after step 4; retained by ")
    assert reasons[1] is not None
    assert reasons[1].startswith("1 of the last 1; first at or after step 8; retained by ")
    assert reasons_to_keep(STEPS, []) == [None] * 5


@pytest.mark.parametrize("answers", [[], [True], [True] * 6])
def test_a_policy_that_answers_for_too_few_or_too_many_is_refused(answers: list[bool]) -> None:
    with pytest.raises(ValueError, match="answers for 5 checkpoints"):
        reasons_to_keep(STEPS, [lambda _: answers])


@pytest.mark.parametrize(
    "make",
    [
        lambda: KeepLast(-1),
        lambda: KeepLast(True),
        lambda: KeepLast(1.5),  # type: ignore[arg-type]
        lambda: KeepBest("loss", -1),
        lambda: KeepBest("loss", mode="best"),  # type: ignore[arg-type]
        lambda: KeepEvery(),
        lambda: KeepEvery(steps=1, seconds=1),
        lambda: KeepEvery(steps=0),
        lambda: KeepEvery(steps=2.5),  # type: ignore[arg-type]
        lambda: KeepEvery(steps=True),
        lambda: KeepEvery(seconds=-1),
        lambda: KeepEvery(seconds=math.nan),
        lambda: KeepEvery(seconds=math.inf),
    ],
)
def test_arguments_are_checked_at_once(make: Any) -> None:
    with pytest.raises(ValueError, match=r"n is|mode is|give steps|a period"):
        make()


@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.floats(-1e6, 1e6), st.sampled_from([0.1, 0.2, math.nan, math.inf, None])),
        unique_by=lambda row: row[0],
    ),
    st.integers(0, 5),
    st.integers(1, 20),
)
def test_policies_answer_for_each_and_keep_no_more_than_they_say(
    rows: list[tuple[int, float, float | None]], n: int, period: int
) -> None:
    checkpoints = [
        checkpoint(step, seconds=seconds, **({} if loss is None else {"loss": loss}))
        for step, seconds, loss in sorted(rows, key=lambda row: row[0])
    ]
    steps = [c.step for c in checkpoints]
    assert kept(checkpoints, KeepLast(n)) == (steps[-n:] if n else [])
    best = kept(checkpoints, KeepBest("loss", n))
    ranked = sorted((c.metrics["loss"], c.step) for c in checkpoints if not math.isnan(c.metrics.get("loss", math.nan)))
    assert best == (sorted(step for _, step in ranked[:n]) if ranked else steps)
    every = kept(checkpoints, KeepEvery(steps=period))
    assert len({step // period for step in every}) == len(every)
    assert {step // period for step in steps if step >= period or step == 0} == {step // period for step in every}
    timed = kept(checkpoints, KeepEvery(seconds=period))
    assert timed[:1] == steps[:1]
