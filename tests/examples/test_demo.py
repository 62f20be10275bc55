"""`make demo`, with a smaller model: it checks itself, and says so by how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_demo_ends_well(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.demo.run", "--url", str(tmp_path), "--width", "256"]
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "COLUMNS": "120"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "killed" in done.stdout
    assert list(tmp_path.iterdir()) == []  # it removes what it made
