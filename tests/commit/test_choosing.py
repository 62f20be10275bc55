"""What is restored, by what is known of a root alone, and why."""

from __future__ import annotations

import pytest

from ckptflow.commit.catalog import Counting
from ckptflow.commit.choosing import Choice, Next, choose
from ckptflow.format.layout import Folder

A1, A2, A3 = Folder(10, 1), Folder(20, 1), Folder(30, 1)
B2 = Folder(20, 2)
ALL = Counting(1, "run", (A3, A2, A1))
ROLLED_BACK = Counting(2, "run", (B2, A1), (A3, A2), barrier=2)
OUTSIDE = Counting(1, "run", (), (A3, A2))


@pytest.mark.parametrize(
    ("counting", "damaged", "step", "is_last", "rest", "expected"),
    [
        (ALL, (), None, False, None, (Next.RESTORE, A3, False, False, "the newest current checkpoint")),
        (ALL, (A3,), None, False, None, (Next.RESTORE, A2, True, False, "newer current ones are damaged")),
        (ALL, (A3, A2), None, True, None, (Next.RESTORE, A1, True, False, "damaged")),
        (ALL, (A3, A2, A1), None, False, None, (Next.LIST_AGAIN, None, False, False, "may have landed")),
        (ALL, (A3, A2, A1), None, True, None, (Next.LOOK_OUTSIDE, None, False, False, "no current checkpoint")),
        (ALL, (A3, A2, A1), None, True, Counting(), (Next.ALL_DAMAGED, None, False, False, "was tried and is damaged")),
        (ALL, (), 30, False, None, (Next.RESTORE, A3, False, False, "step 30 was asked for")),
        (ALL, (), 10, False, None, (Next.RESTORE, A1, True, False, "step 10 was asked for")),
        (ALL, (), 11, False, None, (Next.NO_SUCH_STEP, None, False, False, "no checkpoint of step 11")),
        (ALL, (A1,), 10, False, None, (Next.NO_SUCH_STEP, None, False, False, "step 10")),
        (ROLLED_BACK, (), 20, False, None, (Next.RESTORE, B2, False, False, "asked for")),
        (ROLLED_BACK, (), 30, False, None, (Next.RESTORE, A3, True, True, "is superseded")),
        (ROLLED_BACK, (B2,), 20, False, None, (Next.RESTORE, A2, True, True, "is superseded")),
        (OUTSIDE, (), None, False, None, (Next.LIST_AGAIN, None, False, False, "landed")),
        (OUTSIDE, (), None, True, None, (Next.LOOK_OUTSIDE, None, False, False, "no current checkpoint")),
        (OUTSIDE, (), None, True, Counting(1, "run", (A3, A2)), (Next.RESTORE, A3, True, True, "newest superseded")),
        (
            OUTSIDE,
            (A3,),
            None,
            True,
            Counting(1, "run", (A3,), (A2,)),
            (Next.RESTORE, A2, True, True, "the newest superseded one"),
        ),
        (OUTSIDE, (), None, True, Counting(), (Next.ALL_DAMAGED, None, False, False, "superseded on purpose")),
        (Counting(), (), None, False, None, (Next.LOOK_OUTSIDE, None, False, False, "no current checkpoint")),
        (Counting(), (), None, False, Counting(), (Next.START, None, False, False, "holds no checkpoint")),
        (Counting(), (), 5, False, None, (Next.NO_SUCH_STEP, None, False, False, "step 5")),
    ],
)
def test_choices(
    counting: Counting,
    damaged: tuple[Folder, ...],
    step: int | None,
    is_last: bool,
    rest: Counting | None,
    expected: tuple[Next, Folder | None, bool, bool, str],
) -> None:
    choice = choose(counting, dict.fromkeys(damaged), step, is_last=is_last, rest=rest)
    next_, folder, save_again, is_outside, reason = expected
    assert reason in choice.reason
    assert choice == Choice(next_, choice.reason, folder, save_again, is_outside)
