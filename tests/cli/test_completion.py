"""The shell completes verbs, options, steps and formats: real shells, asked as a user's Tab asks them."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cli.runner import run_alone
from tests.roots import make_root
from tests.waiting import HANG_S

BIN = str(Path(sys.executable).parent)
# The function that bash calls, with the words of a line as bash gives them.
_ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_ckptflow_completion ckptflow
printf '%s\\n' "${COMPREPLY[@]}"
"""


def shell_env(home: Path) -> dict[str, str]:
    return {
        **os.environ,
        "HOME": str(home),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "TERM": "dumb",
        "ZDOTDIR": str(home),
    }


def needs(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed here")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a root of two committed checkpoints in it, and what a third save left."""
    make_root(str(tmp_path / "run"), (100, 1500))
    (tmp_path / "run" / "000000002000-i0001").mkdir()
    return tmp_path


def install(shell: str, home: Path) -> None:
    """`ckptflow --install-completion` from that shell: not as its last command, which it would become itself."""
    line = "ckptflow --install-completion; true"
    done = subprocess.run(
        [shell, "-c", line], env=shell_env(home), cwd=home, capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert f"{shell} completion installed" in done.stdout, done.stdout + done.stderr


def offered(home: Path, *words: str) -> list[str]:
    """What bash is given for the last of `words`."""
    (script,) = (home / ".bash_completions").glob("ckptflow*")
    done = subprocess.run(
        ["bash", "-c", _ASK, "bash", str(script), *words],
        env=shell_env(home),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def typed(shell: list[str], keys: str, wanted: str, env: Mapping[str, str], home: Path) -> str:
    """What an interactive shell shows after `keys` are typed into its terminal, once `wanted` is there."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(home)
        os.execvpe(shell[0], shell, env)
    shown = b""
    try:
        deadline = time.monotonic() + HANG_S
        is_typed = False
        while wanted not in _as_seen(shown) and time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.2)[0]:
                shown += os.read(terminal, 4096)
            if b"READY> " in shown and not is_typed:
                os.write(terminal, keys.encode())
                is_typed = True
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)
    return _as_seen(shown)


def _as_seen(shown: bytes) -> str:
    """Without bells and what moves or colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x07", "", shown.decode(errors="replace"))


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_tab_in_a_terminal_completes_the_verb(shell: str, home: Path) -> None:
    needs(shell)
    install(shell, home)
    rc = home / (".bashrc" if shell == "bash" else ".zshrc")
    rc.write_text(rc.read_text() + "\nPS1='READY> '\n")
    tabs = {"bash": "\t", "zsh": "\t\t"}[
        shell
    ]  # zsh's first one in a session loads the completion, and only the next asks it
    shown = typed([shell, "-i"], f"ckptflow veri{tabs}", "ckptflow verify ", shell_env(home), home)
    assert "ckptflow verify " in shown, shown


def test_fish_completes_verbs_and_values(home: Path) -> None:
    needs("fish")
    install("fish", home)
    for line, wanted in (("ckptflow veri", "verify"), ("ckptflow show run --step 1", "1500")):
        done = subprocess.run(
            ["fish", "-c", f"complete -C '{line}'"],
            env=shell_env(home),
            cwd=home,
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )
        assert wanted in [entry.split("\t")[0] for entry in done.stdout.splitlines()], done.stdout + done.stderr


def test_bash_completes_verbs_options_and_values(home: Path) -> None:
    install("bash", home)
    assert offered(home, "ckptflow", "ver") == ["verify"]
    assert "--no-tensors" in offered(home, "ckptflow", "show", "run", "--no")
    assert offered(home, "ckptflow", "show", "run", "--step", "") == ["1500", "100"]
    assert offered(home, "ckptflow", "diff", "run", "--other-step", "15") == ["1500"]
    assert offered(home, "ckptflow", "pin", "run", "--step", "1") == ["1500", "100"]
    assert offered(home, "ckptflow", "export", "run", "there", "--format", "sa") == ["saved-model", "safetensors"]
    assert offered(home, "ckptflow", "import", "there", "run", "--format", "tf") == ["tf-checkpoint"]


def test_what_is_not_here_is_not_completed(home: Path) -> None:
    """No request to a storage at Tab, and no error in the user's terminal."""
    install("bash", home)
    for url in ("nothing", "s3://bucket/run", "run/000000000100-i0001/manifest.json"):
        assert offered(home, "ckptflow", "show", url, "--step", "") == []


@pytest.mark.parametrize("line", ["ckptflow show run --step ", "ckptflow export run there --format ", "ckptflow "])
def test_a_completion_loads_no_tensorflow(line: str, home: Path) -> None:
    script = """
import sys
from ckptflow.cli import main
try:
    main([])
finally:
    assert not {"tensorflow", "keras", "numpy", "fsspec"} & set(sys.modules)
"""
    words = line.replace(" run ", f" {home / 'run'} ")
    ran = run_alone(
        script=script, _CKPTFLOW_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(words.count(" "))
    )
    assert ran.code == 0, ran.err
    assert {"100", "saved-model", "verify"} & set(ran.out.split())
