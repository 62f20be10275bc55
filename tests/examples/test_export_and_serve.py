"""examples/export_and_serve.py and examples/serve.py."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from tests.examples.lives import EXAMPLES, WITHOUT_END, Example, finished_after, resumed_after
from tests.processes import environment, zygote

STEPS_PER_EPOCH = 57  # 1,797 digits in batches of 32


def test_it_is_killed_goes_on_and_its_export_is_served(tmp_path: Path) -> None:
    served = tmp_path / "served"
    example = Example("export_and_serve.py", tmp_path / "logs", args=["--save-every", "60", "--served", str(served)])
    run = tmp_path / "run"
    killed_at = example.be_killed(run, "--epochs", WITHOUT_END)
    epochs = killed_at // STEPS_PER_EPOCH + 3
    (resumed,) = example.run(run, args=["--epochs", str(epochs)])
    last = epochs * STEPS_PER_EPOCH
    assert resumed_after(resumed) == killed_at
    assert finished_after(resumed) == example.steps(run)[-1] == last
    assert f"version {last} answers as the model does" in resumed
    assert [version.name for version in served.iterdir()] == [str(last)]
    _ask_ourselves(served, example, run, last)


def _ask_ourselves(served: Path, example: Example, run: Path, step: int) -> None:
    """A server that we start answers as NumPy does with the checkpoint's weights; nonsense is refused."""
    from sklearn.datasets import load_digits  # it takes long: not where tests are collected

    command = [str(zygote().stand_ins / "python"), str(EXAMPLES / "serve.py"), str(served), "--port", "0"]
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, env=environment({}), stdout=pipe, stderr=nowhere, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[-1] + "/v1/models/digits:predict"
            digits = load_digits()
            inputs = {"images": digits.images[:50].astype(int).tolist()}
            body = json.dumps({"signature_name": "classify", "inputs": inputs}).encode()
            with urllib.request.urlopen(address, body) as reply:
                outputs = json.load(reply)["outputs"]
            with pytest.raises(urllib.error.HTTPError, match="400"):
                urllib.request.urlopen(address, b'{"signature_name": "classify", "inputs": {"images": "a cat"}}')
        finally:
            server.kill()
    tensors = example.tensors(run, step)
    hidden = digits.data[:50] / 16 @ tensors["model/dense/kernel"] + tensors["model/dense/bias"]
    logits = np.maximum(hidden, 0) @ tensors["model/dense_1/kernel"] + tensors["model/dense_1/bias"]
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = exponents.max(axis=1) / exponents.sum(axis=1)
    np.testing.assert_allclose(outputs["probability"], expected, atol=1e-5)
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert outputs["name"] == [names[number] for number in logits.argmax(axis=1)]
