"""examples/dtensor.py: one client, then two under another mesh."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.examples.lives import WITHOUT_END, Example, finished_after, resumed_after


def test_it_is_killed_and_goes_on_and_two_clients_go_on_with_another_mesh(tmp_path: Path) -> None:
    one = Example("dtensor.py", tmp_path / "logs", args=["--save-every", "40"])
    run, reference = tmp_path / "run", tmp_path / "reference"
    killed_at = one.be_killed(run, "--steps", WITHOUT_END)

    last = killed_at + 50
    resumed, uninterrupted = one.run(run, reference, args=["--steps", str(last)])
    assert (resumed_after(resumed), resumed_after(uninterrupted)) == (killed_at, 0)
    assert finished_after(resumed) == one.steps(run)[-1] == last
    one.assert_same(run, reference, last)

    two = replace(one, tasks=("worker", "worker"), trainers=2)
    (moved,) = two.run(run, args=["--steps", str(last + 10), "--mesh", "4x1"])
    assert resumed_after(moved) == last
    assert two.steps(run)[-1] == last + 10
