"""The real claim, restore, commit and prune code holds I1 to I5 in every interleaving of every scenario."""

from __future__ import annotations

import pytest

from tests.protocol.lives import deterministic
from tests.protocol.scenarios import LARGE, SMALL, Scenario, explore


def holds(name: str, scenario: Scenario) -> int:
    with deterministic():
        report = explore(scenario)
    print(f"{name}: {report.states:,} states, {report.steps:,} steps, {report.seconds:.1f} s")
    assert not report.broken, "\n    ".join([f"{name}: {report.broken}", *report.trace])
    assert report.is_complete, f"{name}: {report.states:,} states are not all of them"
    return report.states


@pytest.mark.parametrize("name", SMALL)
def test_holds(name: str) -> None:
    assert holds(name, SMALL[name]) > 500


@pytest.mark.chaos
@pytest.mark.parametrize("name", LARGE)
def test_holds_in_larger_scenarios(name: str) -> None:
    assert holds(name, LARGE[name]) > 5_000
