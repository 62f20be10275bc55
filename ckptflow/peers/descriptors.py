"""File descriptors: connections to other workers take none that the rest of a restore needs."""

from __future__ import annotations

import errno
import os
import resource
import sys

RESERVED = 200  # for connections to the storage, files, strangers, and what the program opens meanwhile


def limit() -> int:
    """How many this process may have, its soft limit: `ulimit -n`."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def has_room(count: int) -> bool:
    """Whether so many can be opened, and `RESERVED` besides, with what is open now. False where that is not known."""
    try:
        return len(os.listdir("/dev/fd")) + count + RESERVED <= limit()
    except OSError:
        return False


def are_out(error: BaseException | None) -> bool:
    """Whether it says that this process, or its machine, has none left."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
