"""The real claim, restore, commit and prune code holds I1 to I5 in every interleaving of every scenario."""

from __future__ import annotations

import pytest

from tests.protocol.explorer import Report
from tests.protocol.lives import deterministic
from tests.protocol.process import Process
from tests.protocol.scenarios import (
    LARGE,
    LARGE_STATES,
    LIMITS,
    LONG,
    MAX_STATES,
    SLICE_STATES,
    SMALL,
    Scenario,
    explore,
)


def holds(name: str, scenario: Scenario, max_states: int = MAX_STATES) -> Report:
    with deterministic():
        report = explore(scenario, max_states=max_states)
    whole = "" if report.is_complete else ", not all of them"
    print(f"{name}: {report.states:,} states{whole}, {report.steps:,} steps, {report.seconds:.1f} s")
    assert not report.broken, "\n    ".join([f"{name}: {report.broken}", *report.trace])
    return report


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.chaos if name in LONG else ()) for name in SMALL]
)
def test_holds(name: str) -> None:
    report = holds(name, SMALL[name])
    assert report.is_complete
    assert report.states > 500


@pytest.mark.parametrize("name", [*LONG, "takeover by two"])
def test_a_slice_holds(name: str) -> None:
    assert holds(name, (SMALL | LARGE)[name], SLICE_STATES).states >= SLICE_STATES


@pytest.mark.parametrize("name", LIMITS)
def test_what_cannot_be_prevented_is_no_more_than_is_said(name: str) -> None:
    """Once it holds, docs and explorer can say so."""
    with deterministic():
        report = explore(LIMITS[name])
    print("\n    ".join([f"{name}: {report.broken}", *report.trace]))
    assert report.broken.startswith("I2:")


@pytest.mark.chaos
@pytest.mark.parametrize("name", LARGE)
def test_holds_in_larger_scenarios(name: str) -> None:
    assert holds(name, LARGE[name], LARGE_STATES).states > 5_000


def test_merging_histories_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without the reduction: more states, the same verdict."""
    merged = holds("rollback", SMALL["rollback"])
    monkeypatch.setattr(Process, "merge", lambda *_: None)
    apart = holds("rollback, no histories merged", SMALL["rollback"])
    assert apart.is_complete
    assert apart.states > merged.states
