"""One of three workers stands still, at any moment: the others say who, end, and lose nothing."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chaos.conftest import Note
from tests.chaos.standstill import Trial

SHORT = (4, 6, 9)  # worker 0, through which all messages go, worker 2, which is stopped, and worker 1
LONG = 200
AT_ONCE = 3  # they wait most of the time


def run_all(folder: Path, numbers: Iterable[int]) -> tuple[float, list[str]]:
    """How long the slowest worker took to end, and what was broken."""
    trials = [Trial(folder / str(number), number) for number in numbers]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(Trial.run, trials))
    return max(trial.slowest_s for trial in trials), [text for trial in trials for text in trial.broken]


def test_a_worker_stands_still(tmp_path: Path) -> None:
    _, broken = run_all(tmp_path, SHORT)
    assert not broken, "\n".join(broken)


@pytest.mark.chaos
@pytest.mark.timeout(7200)
def test_a_worker_stands_still_at_any_moment(tmp_path: Path, note: Note) -> None:
    slowest_s, broken = run_all(tmp_path, range(LONG))
    note(
        "a worker of three stands still",
        LONG,
        f"{len(broken)} broken promises; the slowest ended after {slowest_s:.0f} s",
    )
    assert not broken, "\n".join(broken)
