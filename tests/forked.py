"""Forked processes as a test sees them: the zygote's other end."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
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


KINDS = ("ckptflow", "stock", "probe")


class Zygote:
    """The process that the others are forked from; it ends with this one."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = read_at_start(env)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (it is read where the process has ended)
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in KINDS]
        self._controls = {kind: ours for kind, (ours, _) in zip(KINDS, pairs, strict=True)}
        self._folder = tempfile.TemporaryDirectory(prefix="ckptflow-zygote-")
        self.stand_ins = self._write_stand_ins()
        listeners = [self._listen(kind) for kind in ("ckptflow", "probe")]
        with contextlib.ExitStack() as stack:
            given = [stack.enter_context(each) for each in (*(theirs for _, theirs in pairs), *listeners)]
            numbers = [each.fileno() for each in given]
            command = [sys.executable, "-m", "tests.zygote", *map(str, numbers)]
            self._process = subprocess.Popen(
                command,
                env=env,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._log,
                pass_fds=numbers,
                start_new_session=True,  # Ctrl-C is for this process, which ends the others
            )
        atexit.register(self._end)

    def _listen(self, kind: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(f"{self._folder.name}/{kind}")
        listener.listen()
        return listener

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def fork(
        self, args: Sequence[str], env: Mapping[str, str], cwd: Path, streams: Sequence[int], kind: str = "ckptflow"
    ) -> Forked:
        """`streams`: its stdout and stderr, and its stdin, where it has one. `kind`: one of `KINDS`, by what the
        process has loaded when it begins."""
        status, theirs = os.pipe()
        request = json.dumps({"args": list(args), "env": dict(env), "cwd": str(cwd)})
        try:
            socket.send_fds(self._controls[kind], [request.encode()], [theirs, *streams])
        finally:
            os.close(theirs)
        try:
            return Forked(status)
        except ZygoteEndedError:
            raise ZygoteEndedError(self._said()) from None

    def _write_stand_ins(self) -> Path:
        """A folder for the front of PATH, with `python`, two commands, `probe` for `PROBE`: see `tests.stand_in`."""
        folder = Path(self._folder.name, "bin")
        folder.mkdir()
        commands = [(name, [str(Path(sys.executable).with_name(name))]) for name in ("ckptflow", "saved_model_cli")]
        for name, kind, begin in (
            ("python", "ckptflow", []),
            *((name, "ckptflow", begin) for name, begin in commands),
            ("probe", "probe", []),
        ):
            given = [sys.executable, f"{self._folder.name}/{kind}", self.env]
            program = (
                f"#!{sys.executable} -IS\nimport sys\nsys.path.append({str(ROOT)!r})\nfrom tests import stand_in\n"
                f"stand_in.main(*{given!r}, [*{begin!r}, *sys.argv[1:]])\n"
            )
            (folder / name).write_text(program)
            (folder / name).chmod(0o755)
        return folder

    def _end(self) -> None:
        for control in self._controls.values():
            control.close()
        self._process.wait()
        self._folder.cleanup()
