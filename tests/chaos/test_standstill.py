"""One of three workers stands still, at any moment: the others are told, end, and lose nothing."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chaos.conftest import Note
from tests.chaos.standstill import PEER_TIMEOUT_S, Trial

SHORT = (4, 42, 83)  # soon: worker 0, through which all messages go, worker 2, which is stopped, and worker 1
LONG = 200
AT_ONCE = 3  # they wait most of the time


def run_all(folder: Path, numbers: Iterable[int], peer_timeout_s: float) -> list[Trial]:
    """The trials of these numbers, each run."""
    trials = [Trial(folder / str(number), number, peer_timeout_s) for number in numbers]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(Trial.run, trials))
    return trials


def test_a_worker_stands_still(tmp_path: Path) -> None:
    """The others end, with an error that names it, and nothing is lost. The limit is longer than a busy machine may
    keep one that is well from running."""
    broken = [text for trial in run_all(tmp_path, SHORT, 2 * PEER_TIMEOUT_S) for text in trial.broken + trial.misnamed]
    assert not broken, "\n".join(broken)


@pytest.mark.chaos
@pytest.mark.timeout(7200)
def test_a_worker_stands_still_at_any_moment(tmp_path: Path, note: Note) -> None:
    trials = run_all(tmp_path, range(LONG), PEER_TIMEOUT_S)
    slowest_s = max(trial.slowest_s for trial in trials)
    broken = [text for trial in trials for text in trial.broken]
    misnamed = [text for trial in trials for text in trial.misnamed]
    result = f"{len(broken)} broken promises, {len(misnamed)} told of another; slowest after {slowest_s:.0f} s"
    note("a worker of three stands still", LONG, result)
    assert not broken + misnamed, "\n".join(broken + misnamed)
