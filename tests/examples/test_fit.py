"""examples/fit.py"""

from __future__ import annotations

from pathlib import Path

from tests.examples.lives import WITHOUT_END, Example, finished_after, resumed_after

STEPS_PER_EPOCH = 47  # 1,500 digits in batches of 32


def test_it_is_killed_and_goes_on_at_the_next_batch(tmp_path: Path) -> None:
    example = Example("fit.py", tmp_path / "logs", args=["--save-every", "60"])
    run, reference = tmp_path / "run", tmp_path / "reference"
    killed_at = example.be_killed(run, "--epochs", WITHOUT_END)
    epochs = str(killed_at // STEPS_PER_EPOCH + 2)
    last = int(epochs) * STEPS_PER_EPOCH

    resumed, uninterrupted = example.run(run, reference, args=["--epochs", epochs])
    assert (resumed_after(resumed), resumed_after(uninterrupted)) == (killed_at, 0)
    assert finished_after(resumed) == example.steps(run)[-1] == last
    example.assert_same(run, reference, last)
