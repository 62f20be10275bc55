"""System calls on files and folders, a few at a time. Below a root no link is followed, whoever puts one there when."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from typing import TypeVar

from ckptflow.errors import StorageError

RESERVED = ".ckptflow-"  # names that are ours, not objects: temporary files and locks
_CANNOT_TELL = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # where data and holes are
_Result = TypeVar("_Result")
_RENAME_NOREPLACE = 1
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PASS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


@contextlib.contextmanager
def opened_folder(root: str, below: str = "", *, to_list: bool = False) -> Iterator[int]:
    """A descriptor of the folder `below` a root, to name files in, or `to_list` (or fsync) it too.

    The root itself may be a link, and what is above it; nothing below it: that raises `StorageError`.
    """
    flags = _LIST if to_list else _PASS
    parts = below.split("/") if below else []
    path = os.path.join(root, *parts[:1])
    descriptor = _open_folder(path, path, flags | os.O_NOFOLLOW if parts else flags, None)
    try:
        for part in parts[1:]:
            path = os.path.join(path, part)
            inner = _open_folder(part, path, flags | os.O_NOFOLLOW, descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _open_folder(name: str, path: str, flags: int, above: int | None) -> int:
    try:
        return os.open(name, flags, dir_fd=above)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP) and flags & os.O_NOFOLLOW and os.path.islink(path):
            raise StorageError(linked(path, "use")) from error
        error.filename = path
        raise


def looked_up_anew(call: Callable[[], _Result]) -> _Result:
    """What `call` returns; called again where a network share has lost what a name stood for.

    Another host has removed or replaced it: looked up once more it is another one, or not there.
    """
    try:
        return call()
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return call()


def linked(path: str, doing: str) -> str:
    """What is said of a link in the place of a folder. Followed, what is written and deleted would be elsewhere."""
    return (
        f"{path}: cannot {doing}: it is a symbolic link to {os.readlink(path)}; links to folders are not followed. "
        "Move the folder itself here, mount it here, or rename the link if it is not part of this run"
    )


def remove(name: str, folder: int) -> None:
    """Deletes a file of ours, if that can be."""
    with contextlib.suppress(OSError):  # gone already, or debris that the deletion of its folder takes
        os.unlink(name, dir_fd=folder)


def is_there(name: str, folder: int) -> bool:
    """Whether a folder has this name, whatever is behind it."""
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def rename_to_new(old: str, new: str, folder: int) -> bool:
    """Renames in a folder; False if something has the new name, if the file system can tell."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is not None:
        if rename(folder, os.fsencode(old), folder, os.fsencode(new), _RENAME_NOREPLACE) == 0:
            return True
        if ctypes.get_errno() == errno.EEXIST:
            return False
    os.rename(old, new, src_dir_fd=folder, dst_dir_fd=folder)  # raises any other error as well
    return True


def clear_direct(descriptor: int) -> None:
    """From here on the page cache is used."""
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_DIRECT)


def fsync_path(folder: str) -> None:
    """Makes the names in a folder durable, where its file system can."""
    with opened_folder(folder, to_list=True) as descriptor:
        fsync_folder(descriptor)


def fsync_folder(descriptor: int) -> None:
    """The same, for one that is open."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system whose folders cannot be fsynced
            raise


def change(folder: int) -> bool:
    """Makes and removes a name, so that a network client lists the folder anew, and an fsync has something to write.
    False if it could not: it is read-only, or full."""
    name = f"{RESERVED}tmp-{secrets.token_hex(12)}"
    try:
        try:
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=folder))
        finally:
            os.unlink(name, dir_fd=folder)
    except OSError:
        return False
    return True


def filled_bytes(descriptor: int) -> int:
    """How much of a file was ever written; all of it where its file system cannot tell. Moves its position."""
    size_bytes = os.fstat(descriptor).st_size
    filled = end = 0
    try:
        while end < size_bytes:
            begin = os.lseek(descriptor, end, os.SEEK_DATA)
            end = os.lseek(descriptor, begin, os.SEEK_HOLE)
            filled += end - begin
    except OSError as error:
        if error.errno in _CANNOT_TELL:
            return size_bytes
        if error.errno != errno.ENXIO:  # which is: no more was written
            raise
    return filled


def drop_cached(name: str, folder: int) -> None:
    """Lets go of what the page cache holds of a file, so that it is read from the disk or the share again."""
    with contextlib.suppress(OSError):
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
        descriptor = os.open(name, flags, dir_fd=folder)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
