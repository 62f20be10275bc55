"""What is released, built as a release is: the sdist from the work tree, and the wheel from that sdist."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.waiting import HANG_S

ROOT = Path(__file__).resolve().parent.parent
_PATIENT = {**os.environ, "PIP_RETRIES": "10", "PIP_DEFAULT_TIMEOUT": "60"}  # with the package index


@dataclass(frozen=True)
class Distributions:
    """The two files of a release."""

    sdist: Path
    wheel: Path


def shared(folder: Path) -> Distributions:
    """Both, built once for everyone who says the same folder, with the build backend in an environment of its own, as
    pip has it."""
    with (folder / "dist.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        dist = folder / "dist"
        if not dist.exists():
            _skip_without_an_index(folder / "index")
            made = folder / "dist.part"
            command = [sys.executable, "-m", "build", "--outdir", str(made), str(ROOT)]
            done = subprocess.run(command, env=_PATIENT, capture_output=True, text=True, timeout=HANG_S, check=False)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
            made.rename(dist)
    (sdist,) = dist.glob("*.tar.gz")
    (wheel,) = dist.glob("*.whl")
    return Distributions(sdist, wheel)


def _skip_without_an_index(folder: Path) -> None:
    """Skips on a machine that reaches no package index. CI has one, and fails there instead."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), "hatchling"]
    done = subprocess.run(command, env=_PATIENT, capture_output=True, text=True, timeout=HANG_S, check=False)
    if done.returncode != 0 and not os.environ.get("CI"):
        pytest.skip(f"no package index is reached from here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
