"""Ports of 127.0.0.1 for servers that have not started yet, never the same for two tests that run at once.

A port is looked at here and taken by a process that starts later. Meanwhile no other test may be given it: each process
of tests holds a lock for every port that it has given out, whichever clone it runs from. All are below 32768, where
Linux takes the ports of connections from.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import os
import random
import socket
import tempfile
from collections.abc import Iterator
from typing import IO

_FIRST, _END = 10_240, 32_768


@functools.cache
def _locks() -> IO[bytes]:
    """A file of which byte n stands for port n; a lock ends with the process that took it."""
    return open(os.path.join(tempfile.gettempdir(), f"ckptflow-test-ports-{os.getuid()}"), "ab")


@functools.cache
def _candidates() -> Iterator[int]:
    """All, from a place of this process's own on: ports of those that ran before may still be waiting to be free."""
    start = random.SystemRandom().randrange(_FIRST, _END)
    return itertools.cycle([*range(start, _END), *range(_FIRST, start)])


def free_ports(count: int, also: int = 0) -> list[int]:
    """Different free ports; with `also`, for each one the port that is so much higher is free and its own as well."""
    found: list[int] = []
    while len(found) < count:
        port = next(_candidates())
        if port + also < _END and all(_take(each) for each in {port, port + also}):
            found.append(port)
    return found


def _take(port: int) -> bool:
    with contextlib.suppress(OSError):
        fcntl.lockf(_locks(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return True
    return False
