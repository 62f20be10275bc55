"""`make demo`, with a smaller model: it checks itself, and says so by how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from examples.demo import run, workers
from tests.forked import ROOT
from tests.ports import free_ports
from tests.processes import environment, start_python
from tests.waiting import HANG_S, until

ARGUMENTS = ["--width", "256", "--url"]


def forked(command: Sequence[str], *, env: Mapping[str, str], cwd: str, stderr: IO[bytes], **_: Any) -> Any:
    """What the demo uses of `subprocess.Popen`, for a process that is forked: stdout is a pipe, stdin nothing."""
    assert command[0] == sys.executable
    own = {name: value for name, value in env.items() if os.environ.get(name) != value}
    readable, writable = os.pipe()
    with open(writable, "wb") as out:
        process: Any = start_python(command[1:], own, out, stderr, cwd=Path(cwd))
    process.stdout = open(readable)  # noqa: SIM115 - the demo closes it
    return process


def stands_still(_: int, pid: int, __: int) -> None:
    """What the demo uses of `os.waitid`, which is for a process's parent."""

    def is_so() -> bool:
        try:
            return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    until(is_so, HANG_S)


def test_the_demo_ends_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Its workers are forked; `make chaos` starts them as a user does."""
    monkeypatch.setattr(workers, "subprocess", types.SimpleNamespace(**{**vars(subprocess), "Popen": forked}))
    monkeypatch.setattr(workers, "os", types.SimpleNamespace(**{**vars(os), "waitid": stands_still}))
    monkeypatch.setattr(workers, "free_ports", free_ports)
    monkeypatch.setattr(run, "STEPS", 300)  # it is to be killed before it is through
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest's own stay
    monkeypatch.setattr(sys, "argv", ["make demo", *ARGUMENTS, str(tmp_path)])
    code = run.main()
    check(code, *capfd.readouterr(), tmp_path)


@pytest.mark.chaos
def test_it_ends_well_where_each_worker_begins_with_an_empty_interpreter(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.demo.run", *ARGUMENTS, str(tmp_path)]
    env = environment({"COLUMNS": "120"})
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500, check=False)
    check(done.returncode, done.stdout, done.stderr, tmp_path)


def check(code: int, out: str, err: str, folder: Path) -> None:
    assert code == 0, out[-3000:] + err[-3000:]
    assert "killed" in out
    assert out.count("kill -9") == 3  # at each, and in the end
    assert list(folder.iterdir()) == []  # it removes what it made
