"""Bars in a real terminal, and none where there is none."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.runner import Runner
from tests.waiting import HANG_S


def run_in_a_terminal(*args: str) -> str:
    """Runs the command with a terminal of its own as stderr, and returns what was shown there."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "from ckptflow.cli import main; main()", *args]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=theirs, env=env)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # how Linux says that the other end is closed
        pass
    finally:
        os.close(ours)
    assert process.wait(timeout=HANG_S) == 0
    return shown.decode()


def test_an_export_and_an_import_show_how_far_they_are(root: str, tmp_path: Path) -> None:
    file = str(tmp_path / "model.safetensors")
    exported = run_in_a_terminal("export", root, file)
    assert "exporting" in exported
    assert "/s" in exported  # the rate
    imported = run_in_a_terminal("import", file, str(tmp_path / "again"))
    assert "importing" in imported


@pytest.mark.parametrize("args", [("export", "{root}", "{file}"), ("verify", "{root}"), ("ls", "{root}")])
def test_without_a_terminal_there_is_none(args: tuple[str, ...], runner: Runner, root: str, tmp_path: Path) -> None:
    ran = runner(*(arg.format(root=root, file=tmp_path / "m.safetensors") for arg in args))
    assert (ran.code, ran.err) == (0, "")
