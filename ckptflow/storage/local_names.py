"""How a file on a disk gets a name that must be new, where there are no hard links; and whether it is still the one."""

from __future__ import annotations

import errno
import functools
import os
import stat
import time

from ckptflow.errors import ObjectChangedError, ObjectExistsError, StorageError, StorageUnavailableError
from ckptflow.storage.local_calls import RESERVED, is_there, remove, rename_to_new
from ckptflow.storage.local_listing import version_of

# What a file system without hard links answers. One with them says EPERM of a file of another's that it protects, and
# EMLINK of one that has too many.
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_LOCK_WAIT_S = 2.0
# A link has the age of its file, and scratch disks delete what was not written for some weeks.
COPIED_DAYS = 7


def check_version(name: str, folder: int, version: str, path: str) -> os.stat_result:
    """What the system says of a file. Raises `ObjectChangedError` if it is another version, or there is a link, a
    pipe or the like in its place, and IsADirectoryError where there is a folder."""
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode) or version_of(status) != version:
        raise ObjectChangedError(f"{path}: cannot copy: it is not, or no longer, version {version}")
    return status


def check_age(status: os.stat_result, path: str) -> None:
    """Raises for a file, linked just now, that was written long ago: by the file system's own clock, as a link has set
    the time of its last change."""
    if status.st_ctime - status.st_mtime > COPIED_DAYS * 86_400:
        raise StorageError(
            f"{path}: cannot copy: it was written more than {COPIED_DAYS} days ago, and may be deleted because of "
            "its age"
        )


def rename_under_lock(folder: int, temporary: str, path: str) -> None:
    """Renames exclusively among all that take the lock of a name, which is there for microseconds."""
    where, name = os.path.split(path)
    lock = f"{RESERVED}lock-{name}"
    deadline = time.monotonic() + _LOCK_WAIT_S
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    take = functools.partial(os.open, flags=flags, mode=0o666, dir_fd=folder)
    held: list[int] = []
    try:
        while not held:
            try:
                held.extend(map(take, [lock]))  # one step of Python's: after Ctrl-C it is known whether it is ours
            except FileExistsError as error:
                if is_there(name, folder):
                    raise taken(path) from error
                if time.monotonic() > deadline:  # its holder needs microseconds: it is dead or on a stalled share
                    raise StorageUnavailableError(
                        f"{path}: cannot create: {where}/{lock} was left by a crash; remove it if no other process "
                        "writes here"
                    ) from error
                time.sleep(0.01)
        if is_there(name, folder) or not rename_to_new(temporary, name, folder):
            raise taken(path)  # the latter by one that creates by link, and takes no lock
    finally:
        for descriptor in held:
            remove(lock, folder)
            os.close(descriptor)


def taken(path: str) -> ObjectExistsError:
    return ObjectExistsError(f"{path}: cannot create: the name is taken")
