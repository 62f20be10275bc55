"""Whether there is room for a file, asked before it is written."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile

from ckptflow.errors import StorageFullError, UsageError

FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_room(url: str, size_bytes: int, max_bytes: int, folder: str) -> None:
    """Raises `UsageError` where this is more than `max_bytes`, `StorageFullError` where `folder` has no room for it."""
    if size_bytes > max_bytes:
        raise UsageError(f"{url} has {size_bytes:,} bytes or more; at most {max_bytes:,} are fetched")
    free_bytes = shutil.disk_usage(folder).free
    if size_bytes > free_bytes:
        raise StorageFullError(
            f"{url} has {size_bytes:,} bytes, and {folder} has room for {free_bytes:,}: make room, or let TMPDIR name "
            "a folder that has it"
        )


def ensure_room(folder: str, size_bytes: int) -> None:
    """Raises `StorageFullError` where no file of that size can be written in `folder`: by making one, and removing it.

    For writers that do not live through a full disk (libhdf5 crashes the process).
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, max(size_bytes, 1))
        except OSError as error:
            if error.errno in FULL_ERRNOS:
                raise StorageFullError(
                    f"{folder} has no room for {size_bytes:,} bytes ({error.strerror}): make room, or raise the quota "
                    "or the file-size limit; nothing was written"
                ) from error
