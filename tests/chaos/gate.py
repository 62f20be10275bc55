"""System calls that fail for real: the kernel asks this process about each call of another one, before it is made.

A seccomp filter in the process under test hands the listed calls to a listener (`SECCOMP_RET_USER_NOTIF`); whoever
holds the listener lets a call go on, answers it with an error or a short count, or kills the process just there. No
tracer, no root, 20 microseconds a call. For x86-64 and Linux 5.0 or newer.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import struct
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

# By name: its number, and which of its arguments is a path or a descriptor ("p1": a path, after a folder's descriptor).
CALLS = {
    "linkat": (265, "p1"), "renameat": (264, "p1"),
    "openat": (257, "p1"), "newfstatat": (262, "p1"), "unlinkat": (263, "p1"), "mkdirat": (258, "p1"),
    "stat": (4, "p0"), "lstat": (6, "p0"), "link": (86, "p0"), "rename": (82, "p0"), "unlink": (87, "p0"),
    "mkdir": (83, "p0"), "rmdir": (84, "p0"), "readlink": (89, "p0"), "fstat": (5, "d0"), "fsync": (74, "d0"),
    "pwrite64": (18, "d0"), "preadv": (295, "d0"), "preadv2": (327, "d0"), "getdents64": (217, "d0"),
    "fcntl": (72, "d0"), "fadvise64": (221, "d0"), "close": (3, "d0"),
}  # fmt: skip
READS = ("preadv", "preadv2")
_NAMES = {number: (name, where) for name, (number, where) in CALLS.items()}
_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, _PR_SET_NO_NEW_PRIVS, _PR_SET_PTRACER = 317, 1, 8, 38, 0x59616D61
_RECEIVE, _SEND, _GO_ON, _AT_FDCWD = 0xC0502100, 0xC0182101, 1, 0xFFFFFF9C


def install() -> int:
    """In the process under test, before it has threads: a listener that whoever gets it must serve from now on."""
    if platform.machine() != "x86_64":
        raise OSError(errno.ENOSYS, "the numbers of system calls are those of x86-64")
    numbers = [number for number, _ in CALLS.values()]
    program = [struct.pack("HBBI", 0x20, 0, 0, 0)]  # load the number of the call; each match jumps to the last line
    program += [struct.pack("HBBI", 0x15, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    program += [struct.pack("HBBI", 6, 0, 0, 0x7FFF0000), struct.pack("HBBI", 6, 0, 0, 0x7FC00000)]
    code = ctypes.create_string_buffer(b"".join(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)  # so that its memory can be read where Yama would refuse
    listener: int = libc.syscall(_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, header)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp's user notifications are refused here")
    return listener


@dataclass(frozen=True)
class Call:
    """One call that is about to be made on something below the root."""

    name: str
    path: str
    arguments: tuple[int, ...]


# What becomes of a call: None lets it go on; a number is the errno that it fails with; or one of the words below.
Answer = int | str | None
SHORT, AT_END, KILL = "short", "at end", "kill"


class Gate:
    """Serves one process's calls while it does what it is asked for."""

    def __init__(self, process: ForkServerProcess, connection: Connection, listener: int) -> None:
        assert process.pid is not None
        self.process, self._connection, self._listener = process, connection, listener
        self._pid = process.pid
        self._memory = os.open(f"/proc/{self._pid}/mem", os.O_RDWR)

    def ask(
        self, order: Any, root: str, decide: Callable[[Call], Answer] = lambda call: None, *, timeout_s: float
    ) -> Any:
        """The reply; None where the process has ended. Raises TimeoutError where it does nothing for so long."""
        self._connection.send(order)
        poll = select.poll()
        poll.register(self._connection.fileno(), select.POLLIN)
        poll.register(self._listener, select.POLLIN)
        while True:
            ready = dict(poll.poll(timeout_s * 1000))
            if not ready:
                os.kill(self._pid, signal.SIGUSR1)  # it prints its stacks
                self.process.join(1)
                raise TimeoutError(f"no call and no reply within {timeout_s:g} s")
            if ready.get(self._listener, 0) & select.POLLIN:
                self._serve(root, decide)
            elif self._connection.fileno() in ready:
                try:
                    return self._connection.recv()
                except (EOFError, ConnectionResetError):
                    return None

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        os.close(self._memory)
        os.close(self._listener)
        self._connection.close()

    def _serve(self, root: str, decide: Callable[[Call], Answer]) -> None:
        notice = bytearray(80)
        try:
            fcntl.ioctl(self._listener, _RECEIVE, notice)
        except OSError:
            return  # its thread is gone
        number, _, _, name, _, _, *arguments = struct.unpack("QIIiIQ6Q", notice)
        call = self._call(name, tuple(arguments))
        answer = decide(call) if call is not None and call.path.startswith(root) else None
        if answer == KILL:
            os.kill(self._pid, signal.SIGKILL)
            return
        count = self._short(call, answer) if call is not None and isinstance(answer, str) else None
        error = -answer if isinstance(answer, int) else 0
        goes_on = _GO_ON if count is None and not error else 0
        with contextlib.suppress(OSError):  # its thread is gone
            _reply(self._listener, struct.pack("QqiI", number, count or 0, error, goes_on))

    def _call(self, number: int, arguments: tuple[int, ...]) -> Call | None:
        name, where = _NAMES[number]
        position = int(where[1])
        try:
            if where[0] == "d":
                path = os.readlink(f"/proc/{self._pid}/fd/{arguments[position]}")
            else:
                path = os.pread(self._memory, 4096, arguments[position]).partition(b"\0")[0].decode(errors="replace")
                folder = arguments[0] & 0xFFFFFFFF
                if where == "p1" and not path.startswith("/") and folder != _AT_FDCWD:
                    path = os.path.join(os.readlink(f"/proc/{self._pid}/fd/{folder}"), path)
        except OSError:
            return None  # a descriptor that is closed, memory that cannot be read
        return Call(name, path, arguments)

    def _short(self, call: Call, answer: str) -> int | None:
        """Does half of a read or a write for the process and returns the count; None where there is no half."""
        if call.name in READS and answer == AT_END:
            return 0
        if call.name not in ("pwrite64", *READS) or answer != SHORT:
            return None
        address, size = call.arguments[1:3]
        if call.name in READS:
            address, size = struct.unpack("QQ", os.pread(self._memory, 16, address))
        descriptor = os.open(
            f"/proc/{self._pid}/fd/{call.arguments[0]}", os.O_RDONLY if call.name in READS else os.O_WRONLY
        )
        try:
            if call.name in READS:
                data = os.pread(descriptor, size // 2, call.arguments[3])
                return os.pwrite(self._memory, data, address) if data else None
            return (
                os.pwrite(descriptor, os.pread(self._memory, size // 2, address), call.arguments[3])
                if size > 1
                else None
            )
        finally:
            os.close(descriptor)


def _reply(listener: int, answer: bytes) -> None:
    while True:
        try:
            fcntl.ioctl(listener, _SEND, answer)
            return
        except InterruptedError:
            continue  # by a signal of ours: who waits for the answer would wait for ever
