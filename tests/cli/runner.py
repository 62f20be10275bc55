"""Runs the command: in this process, or in one of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ckptflow.cli import main
from tests.processes import run_python


@dataclass(frozen=True)
class Ran:
    """What a run of the command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.out, self
        return json.loads(self.out)


class Runner:
    """`runner("ls", url)` runs `ckptflow ls URL` in this process, where `memory://` and patches can be seen."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def __call__(self, *args: str) -> Ran:
        self._capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main(args)
        captured = self._capfd.readouterr()
        code = left.value.code
        return Ran(code if isinstance(code, int) else 0, captured.out, captured.err)


def run_alone(*args: str, script: str = "from ckptflow.cli import main; main()", fresh: bool = True, **env: str) -> Ran:
    """Runs `script` with `args` as its command line in a process of its own, empty or with TensorFlow loaded."""
    done = run_python("-c", script, *args, env=env, cwd=Path.cwd(), fresh=fresh)
    return Ran(done.returncode, done.stdout, done.stderr)
