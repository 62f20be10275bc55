"""Each rule of the protocol is needed: without it a named scenario turns red, by the invariant that the table names."""

from __future__ import annotations

import pytest

from tests.protocol.explorer import Report
from tests.protocol.lives import deterministic
from tests.protocol.mutations import CALL_MUTATIONS, MUTATIONS
from tests.protocol.scenarios import LARGE, LONG, SMALL, explore
from tests.protocol.two_calls import explore_two_calls


def show(name: str, where: str, report: Report) -> str:
    lines = [f"without {name} [{where}, {report.states:,} states]: {report.broken or 'holds'}", *report.trace]
    return "\n    ".join(lines)


@pytest.mark.parametrize("name", [name for name in MUTATIONS if MUTATIONS[name].breaks])
def test_turns_red(name: str) -> None:
    mutation = MUTATIONS[name]
    for where in mutation.scenarios:
        with deterministic() as patch:
            mutation.patch(patch)
            report = explore((SMALL | LARGE)[where], only=mutation.breaks)
        if report.broken:
            print(show(name, where, report))
            return
    pytest.fail(f"without {name} {mutation.breaks} holds in {mutation.scenarios}")


SECOND_LINES = [
    pytest.param(name, where, marks=[pytest.mark.chaos] if where in LONG else [])
    for name, mutation in MUTATIONS.items()
    for where in (() if mutation.breaks else mutation.scenarios)
]


@pytest.mark.parametrize(("name", "where"), SECOND_LINES)
def test_is_a_second_line(name: str, where: str) -> None:
    with deterministic() as patch:
        MUTATIONS[name].patch(patch)
        report = explore((SMALL | LARGE)[where])
    print(show(name, where, report))
    assert not report.broken
    assert report.is_complete


@pytest.mark.parametrize("name", CALL_MUTATIONS)
def test_one_folder_for_two_calls_mixes_them(name: str) -> None:
    with deterministic() as patch:
        CALL_MUTATIONS[name](patch)
        report = explore_two_calls()
    print(show(name, "two calls", report))
    assert report.broken.startswith("mixed:")


def test_a_folder_for_each_call_holds() -> None:
    with deterministic():
        report = explore_two_calls()
    print(show("nothing", "two calls", report))
    assert not report.broken
    assert report.is_complete
