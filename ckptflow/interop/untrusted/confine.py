"""What a process that parses a foreign file gives up before it does: memory, time, files, programs, the network.

The limits of memory, time and file size hold on every Unix. On Linux with Landlock (5.13) it makes no file outside of
one folder and starts no program, and opens no TCP connection (6.7). Where the kernel has none of it, it goes on
without.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import struct
import tempfile

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
_VERSION, _PATH_BENEATH = 1, 1
_SET_PARENT_DEATH_SIGNAL, _NO_NEW_PRIVS, _ARENA_MAX = 1, 38, -8
# Rights that are taken away, by bit: to execute, to write, to remove, make and link, to truncate. Reading stays.
_EXECUTE, _WRITE_FILE, _REFER, _TRUNCATE = 1 << 0, 1 << 1, 1 << 13, 1 << 14
_CHANGE_FOLDER = sum(1 << bit for bit in range(4, 13))
_TCP = 0b11  # bind, connect
_SCOPED = 0b11  # abstract sockets and signals stay among its own


def end_with_parent() -> None:
    """Once whoever started this process has ended, however that was, it is killed."""
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def allow_files(scratch: str | None) -> None:
    """From now on this thread, and those that it starts, make files below `scratch` alone, and start no program."""
    if scratch is not None:
        tempfile.tempdir = scratch
    with contextlib.suppress(OSError):  # no Landlock in this kernel, or a sandbox that does not let it be asked for
        _restrict(scratch)


def limit(memory_bytes: int, time_s: int, file_bytes: int) -> None:
    """From now on this process may take so much more memory and CPU time, and write files no longer than that."""
    with open("/proc/self/statm", encoding="ascii") as file:
        now_bytes = int(file.read().split()[0]) * resource.getpagesize()
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)  # each other one takes 64 MiB of address space
    used = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_AS, now_bytes + memory_bytes)
    _lower(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + time_s)
    _lower(resource.RLIMIT_FSIZE, file_bytes)
    _lower(resource.RLIMIT_CORE, 0)


def _lower(what: int, wanted: int) -> None:
    _, hard = resource.getrlimit(what)
    bound = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(what, (bound, hard))


def _restrict(scratch: str | None) -> None:
    version = _call(_CREATE_RULESET, None, 0, _VERSION)
    files = _EXECUTE | _WRITE_FILE | _CHANGE_FOLDER
    files |= (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    fields = [files, *([_TCP] if version >= 4 else []), *([_SCOPED] if version >= 6 else [])]
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    rules = _call(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        if scratch is not None:
            _allow(rules, scratch, files & ~_EXECUTE)
        _allow(rules, os.devnull, _WRITE_FILE)
        if ctypes.CDLL(None, use_errno=True).prctl(_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")
        _call(_RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        _call(_ADD_RULE, rules, _PATH_BENEATH, struct.pack("=Qi", rights, place), 0)
    finally:
        os.close(place)


def _call(number: int, *arguments: bytes | int | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    typed = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    found: int = libc.syscall(ctypes.c_long(number), *typed)
    if found < 0:
        raise OSError(ctypes.get_errno(), "Landlock")
    return found
