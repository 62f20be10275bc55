"""Forked processes as a test sees them: the zygote's other end."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.stand_in import STATUS, read_at_start

ROOT = Path(__file__).resolve().parent.parent


class ZygoteEndedError(Exception):
    """There is no process to fork from any more; the message is what it has said."""


class Forked:
    """A process that is the zygote's child: what is used of `subprocess.Popen`."""

    def __init__(self, status: int) -> None:
        weakref.finalize(self, os.close, status)
        self._status, self._lock = status, threading.Lock()
        self.pid, self.returncode = self._read(), None  # waits for the zygote, where that has just been started

    returncode: int | None

    def _read(self) -> int:
        found = os.read(self._status, STATUS.size)
        if not found:
            raise ZygoteEndedError
        return int(STATUS.unpack(found)[0])

    def poll(self) -> int | None:
        with self._lock:
            if self.returncode is None and self._has_ended(0):
                self.returncode = self._read()
        return self.returncode

    def _has_ended(self, timeout_s: float | None) -> bool:
        poll = select.poll()
        poll.register(self._status, select.POLLIN)
        return bool(poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000))

    def wait(self, timeout: float | None = None) -> int:
        self._has_ended(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired([f"forked process {self.pid}"], timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and the zygote has not yet said so
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


Process = subprocess.Popen[bytes] | Forked


KINDS = ("ckptflow", "stock", "probe", "tests")


def start_zygote(env: Mapping[str, str], tests: Sequence[str] = ()) -> Path:
    """Starts the process that the others are forked from, which ends with this one; its folder, for `Zygote`. `tests`:
    what a process of kind "tests" has imported, as pytest is told it."""
    folder = Path(tempfile.mkdtemp(prefix="ckptflow-zygote-"))
    (folder / "env").write_text(json.dumps(read_at_start(env)))
    ours, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.ExitStack() as stack:
        given = [stack.enter_context(each) for each in (control, *(_listen(folder / kind) for kind in KINDS))]
        numbers = [each.fileno() for each in given]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote", *map(str, numbers), *tests],
            env=env,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stack.enter_context((folder / "log").open("wb")),
            pass_fds=numbers,
            start_new_session=True,  # Ctrl-C is for this process, which ends the others
        )

    def end() -> None:
        ours.close()
        process.wait()
        shutil.rmtree(folder)

    atexit.register(end)
    return folder


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen()
    return listener


class Zygote:
    """What this process asks the zygote of that folder for. All that it asks for is killed when this process ends."""

    def __init__(self, folder: Path) -> None:
        self.env: dict[str, str] = json.loads((folder / "env").read_text())
        self.folder, self._lock = folder, threading.Lock()
        self._connections: dict[str, socket.socket] = {}

    def _connection(self, kind: str) -> socket.socket:
        with self._lock:
            if kind not in self._connections:
                connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                connection.connect(f"{self.folder}/{kind}")
                self._connections[kind] = connection
            return self._connections[kind]

    def fork(
        self, args: Sequence[str], env: Mapping[str, str], cwd: Path, streams: Sequence[int], kind: str = "ckptflow"
    ) -> Forked:
        """`streams`: its stdout and stderr, and its stdin, where it has one. `kind`: one of `KINDS`, by what the
        process has loaded when it begins."""
        status, theirs = os.pipe()
        request = json.dumps({"args": list(args), "env": dict(env), "cwd": str(cwd)})
        try:
            socket.send_fds(self._connection(kind), [request.encode()], [theirs, *streams])
        finally:
            os.close(theirs)
        try:
            return Forked(status)
        except ZygoteEndedError:
            raise ZygoteEndedError((self.folder / "log").read_text(errors="replace")) from None

    def stand_ins(self) -> Path:
        """A folder for the front of PATH, with `python`, two commands, `probe` for `PROBE`: see `tests.stand_in`."""
        folder = self.folder / "bin"
        with self._lock, (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                part = self.folder / "bin.part"
                part.mkdir()
                for name in ("ckptflow", "saved_model_cli"):
                    self._write(part / name, "ckptflow", self.env, [str(Path(sys.executable).with_name(name))])
                self._write(part / "python", "ckptflow", self.env)
                self._write(part / "probe", "probe", self.env)
                part.rename(folder)
        return folder

    def stand_in_for_pytest(self) -> Path:
        """What pytest-xdist starts in place of `python -u`, from this process, to have a process of kind "tests"."""
        path = self.folder / "pytest"
        self._write(path, "tests", read_at_start(os.environ), skipped=2)
        return path

    def _write(
        self, path: Path, kind: str, env: Mapping[str, str], begin: Sequence[str] = (), *, skipped: int = 1
    ) -> None:
        given = [sys.executable, f"{self.folder}/{kind}", env]
        path.write_text(
            f"#!{sys.executable} -IS\nimport sys\nsys.path.append({str(ROOT)!r})\nfrom tests import stand_in\n"
            f"stand_in.main(*{given!r}, [*{list(begin)!r}, *sys.argv[{skipped}:]])\n"
        )
        path.chmod(0o755)
