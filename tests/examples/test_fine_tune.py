"""examples/fine_tune.py: from a Hub module, killed and started again; and from a .keras file with the same weights."""

from __future__ import annotations

from pathlib import Path

from tests.examples.lives import WITHOUT_END, Example, finished_after, resumed_after

STEPS_PER_EPOCH = 28  # 896 digits are 5 to 9, in batches of 32


def test_the_trunk_comes_over_and_a_killed_run_goes_on(tmp_path: Path) -> None:
    example = Example("fine_tune.py", tmp_path / "logs", args=["--save-every", "60"])
    module, file = ["--source", str(tmp_path / "digits")], ["--source", str(tmp_path / "digits.keras")]
    run, reference = tmp_path / "run", tmp_path / "reference"
    killed_at = example.be_killed(run, *module, "--epochs", WITHOUT_END)
    assert (tmp_path / "digits" / "saved_model.pb").exists()
    pretrained = example.tensors(tmp_path / "digits-run", example.steps(tmp_path / "digits-run")[-1])
    warm = example.tensors(run, 0)
    trunk = [name for name in warm if name.startswith("model/trunk/")]
    assert len(trunk) == 8
    assert [name for name in trunk if warm[name].tobytes() != pretrained[name].tobytes()] == []
    assert {name for name in warm if name not in trunk} == {"model/five_to_nine/kernel", "model/five_to_nine/bias"}

    epochs = killed_at // STEPS_PER_EPOCH + 2
    last = epochs * STEPS_PER_EPOCH
    (resumed,) = example.run(run, args=[*module, "--epochs", str(epochs)])
    (uninterrupted,) = example.run(reference, args=[*file, "--epochs", str(epochs)])
    assert (resumed_after(resumed), resumed_after(uninterrupted)) == (killed_at, 0)
    assert "new in this model: ['model/five_to_nine/bias', 'model/five_to_nine/kernel']" in uninterrupted
    assert finished_after(resumed) == example.steps(run)[-1] == last
    example.assert_same(run, reference, last)
    assert example.steps(run)[0] == 0
