"""One of three workers that restore together does something else: right values on the others, or they are told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chaos.conftest import Note
from tests.chaos.lying import ENDS, LIES, WORKERS, Case
from tests.processes import start_workers
from tests.waiting import HANG_S

LONG_LIES, LONG_ENDS = 240, 60
AT_ONCE = 40  # restores of one job
JOBS_AT_ONCE = 2


def run_lies(root: Path, numbers: Sequence[int]) -> None:
    """Each ends with right values on all workers, also on the one that gives wrong ones."""
    env = {"ROOT": str(root), "CASES": json.dumps(list(numbers))}
    with start_workers("tests.chaos.lying:lies", WORKERS, env=env) as workers:
        for worker in workers:
            assert worker.wait(HANG_S) == 0, worker.output()
            assert worker.output().count("right ") == len(numbers), worker.output()


def run_end(root: Path, number: int) -> int:
    """How many of the others were told of it; the rest has restored, as what has ended was not needed any more."""
    victim = Case.of(number, ENDS).victim
    with start_workers("tests.chaos.lying:ends", WORKERS, env={"ROOT": str(root), "CASE": str(number)}) as workers:
        others = [worker for worker in workers if worker.index != victim]
        for worker in others:
            assert worker.wait(HANG_S) == 0, worker.output()
            assert "well" in worker.output(), worker.output()
        return sum("told" in worker.output() for worker in others)


def run_ends(folder: Path, count: int) -> int:
    """Several at once: they wait most of the time."""
    with ThreadPoolExecutor(JOBS_AT_ONCE) as threads:
        return sum(threads.map(lambda number: run_end(folder / f"ends-{number}", number), range(count)))


def test_a_peer_that_lies_changes_no_value(tmp_path: Path) -> None:
    run_lies(tmp_path / "run", range(len(LIES)))


def test_a_peer_that_ends_is_told_of(tmp_path: Path) -> None:
    assert run_ends(tmp_path, len(ENDS)) > 0


@pytest.mark.chaos
@pytest.mark.timeout(14_400)
def test_a_peer_at_any_moment(tmp_path: Path, note: Note) -> None:
    for first in range(0, LONG_LIES, AT_ONCE):
        run_lies(tmp_path / "run", range(first, first + AT_ONCE))
    told = run_ends(tmp_path, LONG_ENDS)
    result = f"right values on all others; {told} of {LONG_ENDS * (WORKERS - 1)} told that it has ended"
    note("a worker that others restore with lies, is slow, killed or stopped", LONG_LIES + LONG_ENDS, result)
