"""examples/multi_worker.py: two processes on loopback."""

from __future__ import annotations

from pathlib import Path

from tests.examples.lives import IS_FENCED, WITHOUT_END, Example, finished_after, resumed_after
from tests.waiting import HANG_S, until


def test_one_worker_is_killed_and_all_go_on(tmp_path: Path) -> None:
    """Worker 1 is killed and worker 0 leaves; both are started again and end as if nothing had been."""
    tasks, cadence = ("worker", "worker"), ["--save-every", "40"]
    example = Example("multi_worker.py", tmp_path / "logs", args=cadence, tasks=tasks, trainers=2)
    run, reference = tmp_path / "run", tmp_path / "reference"
    killed_at = example.be_killed(run, "--steps", WITHOUT_END, victims=[1])
    assert killed_at % 40 == 0

    last = killed_at + 50
    resumed, uninterrupted = example.run(run, reference, args=["--steps", str(last)])
    assert (resumed_after(resumed), resumed_after(uninterrupted)) == (killed_at, 0)
    assert finished_after(resumed) == example.steps(run)[-1] == last
    example.assert_same(run, reference, last)


def test_of_two_jobs_on_one_root_the_older_leaves_with_a_code_of_its_own(tmp_path: Path) -> None:
    """So that no supervisor starts it again. One worker each, without TF_CONFIG."""
    example = Example("multi_worker.py", tmp_path / "logs", args=["--save-every", "40"])
    run = tmp_path / "run"
    with example.start(run, ["--steps", WITHOUT_END]) as [older]:
        until(lambda: example.steps(run) or older.process.poll() is not None, HANG_S)
        with example.start(run, ["--steps", WITHOUT_END]) as [newer]:
            assert older.wait(HANG_S) == IS_FENCED, older.output()
            assert newer.process.poll() is None, newer.output()
