"""Looks fall on the same check of every worker, whatever their clocks and speeds; about one a second."""

from __future__ import annotations

import itertools

import hypothesis
from hypothesis import strategies as st

from ckptflow.preemption.pace import Pace

# A run of a program: (how many checks, by how much the step rises at each, the seconds that each takes on each worker).
seconds = st.floats(0, 30) | st.sampled_from([0.0, 1e-7, 0.001, 0.01, 0.1, 1.0, 5.0])
phases = st.lists(
    st.tuples(st.integers(1, 60), st.sampled_from([0, 1, 1, 4, -7]), st.lists(seconds, min_size=3, max_size=3)),
    min_size=1,
    max_size=6,
)


def looks_of(phases: list[tuple[int, int, list[float]]], clocks: list[float], jitter: list[float]) -> list[int]:
    """Runs a Pace for each worker in lockstep; the checks (by number) at which all of them looked."""
    paces = [Pace() for _ in clocks]
    now = list(clocks)
    step, number, looks = 100, 0, []
    for count, rise, took_s in phases:
        for _ in range(count):
            number, step = number + 1, step + rise
            for worker in range(len(clocks)):
                now[worker] += took_s[worker] * (1 + jitter[(number + worker) % len(jitter)])
            due = {pace.is_due(step, now[worker]) for worker, pace in enumerate(paces)}
            assert len(due) == 1, f"check {number}: some workers look and some do not"
            if due == {True}:
                looks.append(number)
                everyone = [pace.news() for pace in paces]
                for worker, pace in enumerate(paces):
                    now[worker] += 0.008
                    pace.looked(everyone, now[worker])
    return looks


@hypothesis.given(phases, st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3), st.lists(st.floats(0, 9), min_size=1))
def test_looks_coincide(phases: list[tuple[int, int, list[float]]], clocks: list[float], jitter: list[float]) -> None:
    looks = looks_of(phases, clocks, jitter)
    assert looks[0] == 1
    assert all(later - earlier <= 128 for earlier, later in itertools.pairwise(looks))


def looks(*phases: tuple[int, int, list[float]]) -> list[int]:
    return looks_of(list(phases), [0.0, 500.0], [0.0])


def test_short_steps_are_looked_at_once_a_second() -> None:
    found = looks((2000, 1, [0.010, 0.012]))  # 24 s on the slower worker
    assert [later - earlier for earlier, later in itertools.pairwise(found)][10:] == [84] * len(found[11:])
    assert len(found) < 24 + 8


def test_long_steps_are_all_looked_at() -> None:
    assert looks((20, 1, [0.001, 1.5])) == list(range(1, 21))


def test_an_evaluation_is_looked_into_early_though_steps_were_short() -> None:
    found = looks((1000, 1, [0.010, 0.010]), (30, 0, [2.0, 0.1]), (1000, 1, [0.010, 0.010]), (30, 0, [2.0, 0.1]))
    first, second = (set(found) & set(range(start, start + 31)) for start in (1001, 2031))
    assert {1001, 1002, 1003} <= first
    assert len(first) >= 30
    assert len(second) >= 29  # within the first batches again, and then each


def test_the_ends_of_epochs_do_not_hide_a_slow_evaluation() -> None:
    epochs = [phase for _ in range(20) for phase in ((100, 1, [0.010, 0.010]), (1, 0, [0.0, 0.0]))]
    found = looks(*epochs, (100, 1, [0.010, 0.010]), (30, 0, [2.0, 2.0]))
    start = 20 * 101 + 100
    assert min(look for look in found if look > start) <= start + 8  # not after a hundred
    assert len(set(found) & set(range(start + 8, start + 31))) >= 22


def test_however_short_the_steps_not_too_many_go_by() -> None:
    found = looks((3000, 1, [1e-4, 1e-4]))
    assert max(later - earlier for earlier, later in itertools.pairwise(found)) == 128


def test_a_shared_step_that_takes_long_once_costs_few_looks() -> None:
    assert len(looks((1000, 1, [0.010, 0.010]), (1, 1, [60.0, 60.0]), (1000, 1, [0.010, 0.010]))) < 45


def test_the_end_of_each_epoch_costs_little() -> None:
    epochs = [phase for _ in range(20) for phase in ((100, 1, [0.010, 0.010]), (1, 0, [0.0, 0.0]))]
    assert len(looks(*epochs)) <= 20 * 6  # 20 s of training
