"""examples/preemption.py, run as its first lines say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import ckptflow

ROOT = Path(__file__).resolve().parent.parent.parent
TIMEOUT_S = 120.0


def start(url: Path, steps: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "examples.preemption", str(url), "--steps", str(steps), "--save-every", "1000000"]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    return subprocess.Popen(command, env=environment, cwd=ROOT, text=True, stdout=-1, stderr=subprocess.STDOUT)


def read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    read = ""
    for line in process.stdout:
        read += line
        if text in line:
            return line
    raise AssertionError(f"no {text!r} in\n{read}")


def test_it_is_told_to_leave_and_goes_on(tmp_path: Path) -> None:
    first = start(tmp_path / "spot", 10_000_000)
    try:
        read_until(first, "step 250: loss")
        first.send_signal(signal.SIGTERM)
        assert "leaving with exit code 75" in read_until(first, "committed after")
        assert first.wait(TIMEOUT_S) == 75
    finally:
        first.kill()
        first.communicate()
    (saved,) = ckptflow.list_checkpoints(tmp_path / "spot")
    assert saved.step >= 250
    again = start(tmp_path / "spot", saved.step + 20)
    try:
        read_until(again, f"begins with step {saved.step + 1}")
        read_until(again, "finished")
        assert again.wait(TIMEOUT_S) == 0
    finally:
        again.kill()
        again.communicate()
