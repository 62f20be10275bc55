"""System calls on files and folders, a few at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets

RESERVED = ".ckptflow-"  # names that are ours, not objects: temporary files and locks


def remove(path: str) -> None:
    """Deletes a file of ours, if that can be."""
    with contextlib.suppress(OSError):  # gone already, or debris that the deletion of its folder takes
        os.unlink(path)


def clear_direct(descriptor: int) -> None:
    """From here on the page cache is used."""
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_DIRECT)


def fsync_path(folder: str) -> None:
    """Makes the names in a folder durable, where its file system can."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system whose folders cannot be fsynced
            raise
    finally:
        os.close(descriptor)


def change(folder: str) -> None:
    """Makes and removes a name, so that a network client lists the folder anew."""
    path = os.path.join(folder, f"{RESERVED}tmp-{secrets.token_hex(12)}")
    with contextlib.suppress(OSError):  # not there yet, read-only or full: then there is only the list as it is
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        finally:
            os.unlink(path)


def drop_cached(path: str) -> None:
    """Lets go of what the page cache holds of a file, so that it is read from the disk or the share again."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
