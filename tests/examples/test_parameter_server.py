"""examples/parameter_server.py: a chief, a worker and servers on loopback."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.examples.lives import WITHOUT_END, Example, finished_after, resumed_after


def test_the_job_is_killed_and_goes_on_with_another_number_of_servers(tmp_path: Path) -> None:
    tasks = ("chief", "worker", "ps", "ps")
    example = Example("parameter_server.py", tmp_path / "logs", args=["--save-every", "50"], tasks=tasks)
    run = tmp_path / "run"
    killed_at = example.be_killed(run, "--steps", WITHOUT_END)

    last = killed_at + 60
    (resumed,) = replace(example, tasks=("chief", "worker", "ps")).run(run, args=["--steps", str(last)])
    assert resumed_after(resumed) == killed_at
    assert finished_after(resumed) == example.steps(run)[-1] == last
