"""What an import may leave is decided by names alone: tables of cases, and what holds for any names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptflow.interop.decisions import (
    all_of_the_state,
    is_of_optimizer,
    of_optimizers,
    optimizers_as_a_whole,
    without_optimizers,
)
from ckptflow.state.assign import Comparison, Verdict

OURS, THEIRS = ["model/optimizer", "opt"], ["model/optimizer", "adam"]
NAMES = st.sampled_from(
    ["model/kernel", "model/bias", "model/optimizer/m", "opt/m", "adam/m", "optimizer/v", "a/optimizer", "step"]
)
COMPARISONS = st.builds(
    lambda matched, missing, unexpected: compared(matched, missing, unexpected),
    st.dictionaries(NAMES, NAMES),
    st.sets(NAMES),
    st.sets(NAMES),
)


def compared(matched: dict[str, str], missing: set[str], unexpected: set[str]) -> Comparison:
    return Comparison(matched, dict.fromkeys(missing, "not there"), dict.fromkeys(unexpected, "no place"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("opt/m", True), ("optimizer/m", True), ("a/optimizer/b/c", True), ("a/optimizer", False), ("optics", False)],
)
def test_whose_a_tensor_is(name: str, expected: bool) -> None:
    assert is_of_optimizer(name, ["opt"]) is expected


@pytest.mark.parametrize(
    ("missing", "unexpected", "refused", "left"),
    [
        (set(), set(), set(), set()),
        ({"model/kernel"}, set(), {"model/kernel"}, set()),
        ({"seed"}, set(), set(), set()),  # what it may lack
        ({"model/optimizer/m"}, set(), set(), {"model/optimizer/m", "model/optimizer/v"}),
        (set(), {"adam/m"}, set(), {"adam/m", "model/optimizer/v"}),
        ({"opt/m"}, {"old"}, {"opt/m", "old"}, set()),  # all differences are told of
        (set(), {"opt/m"}, {"opt/m"}, set()),  # there it is no optimizer
    ],
)
def test_an_optimizer_comes_as_a_whole_or_not_at_all(
    missing: set[str], unexpected: set[str], refused: set[str], left: set[str]
) -> None:
    found = compared({"model/bias": "model/bias", "model/optimizer/v": "model/optimizer/v"}, missing, unexpected)
    verdict = optimizers_as_a_whole(found, OURS, THEIRS, may_lack={"seed"})
    assert (set(verdict.refused), set(verdict.passed_over)) == (refused, left)
    assert bool(verdict.said) == bool(left)
    if left:
        (text,) = verdict.said
        (first,) = missing or unexpected
        assert "it starts fresh: " + first in text


@given(COMPARISONS)
def test_optimizers_are_left_only_where_nothing_else_differs(found: Comparison) -> None:
    verdict = optimizers_as_a_whole(found, OURS, THEIRS)
    differing = {*found.missing, *found.unexpected}
    assert not verdict.refused or verdict == Verdict(frozenset(differing))
    assert verdict.refused or differing <= verdict.passed_over


@given(COMPARISONS, st.booleans())
def test_without_optimizers_nothing_of_them_is_taken_or_refused(found: Comparison, partial: bool) -> None:
    verdict = without_optimizers(found, OURS, THEIRS, partial=partial)
    assert not any(is_of_optimizer(name, []) for name in verdict.refused)
    kept = {name: own for name, own in found.matched.items() if not is_of_optimizer(own, OURS)}
    apart = kept.keys() - {*found.unexpected, *found.missing, *found.matched.values()}
    assert not apart & verdict.passed_over  # a source may call what it likes an optimizer's
    assert all(is_of_optimizer(name, OURS + THEIRS) or name in found.matched for name in verdict.passed_over)
    assert not verdict.refused & verdict.passed_over
    assert partial <= (not verdict.refused)
    if not partial:
        assert {*found.missing, *found.unexpected} == (verdict.refused | verdict.passed_over) & (
            {*found.missing, *found.unexpected}
        )


@given(COMPARISONS, st.sets(NAMES))
def test_what_has_to_be_there_of_a_state(found: Comparison, may_lack: set[str]) -> None:
    verdict = all_of_the_state(found, may_lack=may_lack)
    assert verdict.refused == found.missing.keys() - may_lack
    assert not verdict.passed_over
    assert len(verdict.said) == bool(found.missing.keys() & may_lack)


@given(COMPARISONS)
def test_of_optimizers_alone_nothing_is_refused(found: Comparison) -> None:
    alone = of_optimizers(found, OURS, THEIRS)
    assert not optimizers_as_a_whole(alone, OURS, THEIRS).refused
    assert alone.matched == found.matched


def test_another_optimizer_is_not_taken_though_all_of_it_fits() -> None:
    found = compared({"model/bias": "model/bias", "model/optimizer/v": "model/optimizer/v"}, set(), set())
    verdict = optimizers_as_a_whole(found, OURS, THEIRS, other="it is that of Adam")
    assert verdict.passed_over == {"model/optimizer/v"}
    assert "it starts fresh: it is that of Adam" in verdict.said[0]
    assert not optimizers_as_a_whole(found, OURS, THEIRS).passed_over
