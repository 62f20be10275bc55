"""What imports and exports of foreign files open for writing, start and connect to: nothing but what is allowed.

Allowed (docs/security.md says the same): files below the root or the export's destination and below TMPDIR, and
`/dev/null`; one program, Python, for the process that reads a file first. What packages do as that process imports
them, before it comes to the file, is theirs: `uname`, a semaphore in `/dev/shm`, a free port on loopback to see whether
there is IPv6. A thread that gives itself a name opens `/proc/self/task/…/comm`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.interop.outside import EXPORTS, PARTS
from tests.processes import environment
from tests.waiting import HANG_S

CALLS = (
    "open,openat,openat2,creat,mkdir,mkdirat,mknod,mknodat,rename,renameat,renameat2,unlink,unlinkat,rmdir,link,linkat,"
    "symlink,symlinkat,truncate,chmod,fchmodat,execve,execveat,connect,bind,sendto,sendmsg,access,faccessat,faccessat2,"
    "landlock_create_ruleset"
)
STRACE = ["strace", "-f", "--seccomp-bpf", "-y", "-qq", "-s", "4096", "-e", "signal=none", "-e",
          "trace=" + ",".join(f"?{name}" for name in CALLS.split(","))]  # fmt: skip
LINE = re.compile(r"\d+ +(\w+)\((.*)")
PATH = re.compile(r'(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"((?:[^"\\]|\\.)*)"')
TO_WRITE = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND")
ON_LOOPBACK = re.compile(r"htons\(0\).*(::1|127\.0\.0\.1)")
ASKS = {"access", "faccessat", "faccessat2"}
NAME_OF_THREAD = re.compile(r"/proc/(self|\d+)/task/\d+/comm")
OF_IMPORTS = re.compile(r"/dev/shm/(sem\.|__KMP_|psm_).*|.*/uname")


class Done(NamedTuple):
    """The run: its folder, what it has printed, and the trace of its system calls, or why there is none."""

    folder: Path
    said: dict[str, Any]
    trace: list[str]
    why_no_trace: str


def why_no_trace(folder: Path) -> str:
    if shutil.which("strace") is None:
        return "there is no strace here"
    tried = subprocess.run([*STRACE, "-o", folder / "tried", "true"], capture_output=True, text=True, check=False)
    return f"strace cannot trace here: {tried.stderr[:200]}" if tried.returncode else ""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = Path(os.path.realpath(tmp_path_factory.mktemp("outside")))
    for name in ("run", "tmp", "cwd"):
        (folder / name).mkdir()
    why = why_no_trace(folder)
    tracer = [] if why else [*STRACE, "-o", str(folder / "trace")]
    env = environment({"TMPDIR": str(folder / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"})
    command = [*tracer, sys.executable, "-m", "tests.interop.outside", str(folder)]
    ran = subprocess.run(
        command, env=env, cwd=folder / "cwd", capture_output=True, text=True, timeout=2 * HANG_S, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    trace = [] if why else (folder / "trace").read_text(errors="replace").splitlines()
    return Done(folder, json.loads(ran.stdout.splitlines()[-1]), trace, why)


def is_allowed(path: str, folder: Path) -> bool:
    own = (f"{folder}/run/", f"{folder}/tmp/")
    return os.path.normpath(path).startswith(own) or path == "/dev/null"


def test_what_became_of_the_files(done: Done) -> None:
    outcomes = done.said["outcomes"]
    for name in (
        "keras .keras",
        "tf_keras .h5",
        "tf-checkpoint",
        "saved-model",
        "hub",
        "safetensors",
        "with a process",
    ):
        assert outcomes[name] == "done"
    assert all(outcomes[f"export {name}"] == "done" for name in EXPORTS)
    assert outcomes["constants"] == outcomes["lying bundle"] == "CorruptCheckpointError"
    refused = [name for name, outcome in outcomes.items() if outcome == "UsageError"]
    assert len(refused) > 20
    assert not done.said["was_marked"]


def test_what_python_is_asked_for(done: Done) -> None:
    started = 0
    for event, what in done.said["quiet"]:
        if event == "subprocess.Popen":
            assert what[:3] == [sys.executable, "-P", "-c"]
            assert "ckptflow.interop" in what[3]
            started += 1
        else:
            assert event == "open" or event.startswith("os."), (event, what)
            assert event not in ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork")
            # A name alone is in a folder that is open, which the other test sees; the current one stays empty.
            assert os.sep not in what or is_allowed(what, done.folder), (event, what)
    assert 2 <= started <= 6
    assert not list((done.folder / "cwd").iterdir())
    assert not list((done.folder / "tmp").iterdir())
    assert ["open", str(done.folder / "mark")] in done.said["loud"]  # it would have been heard


def calls_in(trace: list[str], part: str, end: str) -> Iterator[tuple[str, str, bool]]:
    """Each call of a part, its arguments, and whether it is of a process that has not come to the file yet."""
    places = [number for number, line in enumerate(trace) if f'"/{part}"' in line or f'"/{end}"' in line]
    is_starting = False
    for line in trace[places[0] : places[1]]:
        found = LINE.match(line)
        if found is None:
            continue
        name, arguments = found.groups()
        is_starting = is_starting or (name == "execve" and paths_of(name, arguments) == [sys.executable])
        if name == "landlock_create_ruleset":
            is_starting = False
        elif name not in ASKS:
            yield name, arguments, is_starting


def paths_of(name: str, arguments: str) -> list[str]:
    found = [os.path.join(folder, path) for folder, path in PATH.findall(arguments)]
    return found[:1] if name.startswith("exec") else found


def is_outside(name: str, arguments: str, folder: Path) -> bool:
    if name.startswith("open") and not TO_WRITE.search(arguments):
        return False
    if name in ("connect", "bind", "sendto", "sendmsg") or name.startswith("exec"):
        return True
    return not all(is_allowed(path, folder) for path in paths_of(name, arguments))


def test_what_the_kernel_is_asked_for(done: Done) -> None:
    """Also by code in C++, and by the processes that read a file first."""
    if done.why_no_trace:
        pytest.skip(done.why_no_trace)
    count = 0
    for name, arguments, is_starting in calls_in(done.trace, *PARTS[:2]):
        count += 1
        if not is_outside(name, arguments, done.folder):
            continue
        paths = paths_of(name, arguments)
        is_of_imports = bool(ON_LOOPBACK.search(arguments)) if name == "bind" else all(map(OF_IMPORTS.fullmatch, paths))
        is_program = name == "execve" and paths == [sys.executable]
        is_name_of_thread = name.startswith("open") and all(map(NAME_OF_THREAD.fullmatch, paths))
        assert is_program or is_name_of_thread or (is_starting and is_of_imports), (name, arguments)
    assert count > 500
    mark = str(done.folder / "mark")
    loud = calls_in(done.trace, *PARTS[1:])
    outside = [arguments for name, arguments, _ in loud if is_outside(name, arguments, done.folder)]
    assert len([arguments for arguments in outside if mark in arguments]) == 2  # by the lambda, and by the graph
