"""A foreign file as it is at one moment: what was looked over is what is loaded, whoever may write to the original."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ckptflow.errors import CorruptCheckpointError, UsageError
from ckptflow.interop.untrusted.budget import MEMORY_VARIABLE
from ckptflow.interop.untrusted.zips import bound_of
from ckptflow.places.room import ensure_room
from ckptflow.places.shown_as import shown_as
from ckptflow.storage.faults import os_errors

_COPY_BYTES = 2**20
_HEAD_BYTES = 64


@contextmanager
def private_copy(path: str) -> Iterator[str]:
    """The path of a copy of a file, in a folder of this user's alone, which goes when the block is left.

    Errors that leave the block, and what is logged in it, name the file, not the copy. Raises as `open_regular`,
    `StorageFullError` where TMPDIR has no room for it, else a `StorageError`.
    """
    above = os.path.dirname(path)
    with (
        tempfile.TemporaryDirectory(prefix="ckptflow-copy-") as folder,
        shown_as(os.path.join(folder, ""), os.path.join(above, "")),  # a name may be told as its repr
    ):
        copy = os.path.join(folder, os.path.basename(path))
        with os_errors("copy", path):
            _copy(path, copy)
        yield copy


def check_regular(paths: Iterable[str]) -> None:
    """Raises `CorruptCheckpointError` as `open_regular` does. What is not there is left to whoever reads it."""
    for path in paths:
        try:
            mode = os.stat(path).st_mode
        except OSError:
            continue
        if not stat.S_ISREG(mode):
            raise CorruptCheckpointError(f"{path} is not a file")
        with contextlib.suppress(OSError), open_regular(path):
            pass


def open_regular(path: str, folder: int | None = None) -> io.BufferedReader:
    """A file of somebody else's, to be read: opened as it is looked at, so that nothing takes for ever.

    Links are followed; but not where `folder` is given, the descriptor of the one that it lies in. Raises
    `CorruptCheckpointError` for a pipe, a device, a socket or a folder, and for a file that is nearly all holes; else
    OSError. `UsageError` for what merely stands in for the file: a pointer of Git LFS, a web page.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    name = path
    if folder is not None:
        name, flags = os.path.basename(path), flags | os.O_NOFOLLOW
    file = open(os.open(name, flags, dir_fd=folder), "rb")  # noqa: SIM115 - the caller's
    try:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise CorruptCheckpointError(f"{path} is not a file")
        _check_filled(file.fileno(), path)
        _check_is_itself(file.peek(_HEAD_BYTES)[:_HEAD_BYTES], path)
    except BaseException:
        file.close()
        raise
    return file


def _check_is_itself(head: bytes, path: str) -> None:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        raise UsageError(f"{path} is a pointer of Git LFS, not the file itself: fetch that with `git lfs pull`")
    if text.startswith((b"<!doctype html", b"<html")):
        raise UsageError(
            f"{path} is a web page, as a server sends it in place of a file for a login or an error: download it anew"
        )


def _check_filled(descriptor: int, path: str) -> None:
    """Raises unless what is on the disk of a file goes with its length: holes are packed zeros, and copied at full
    length."""
    size_bytes = os.fstat(descriptor).st_size
    filled_bytes = at = 0
    while bound_of(filled_bytes, size_bytes) < size_bytes:
        try:
            begin = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:  # none behind that
            raise CorruptCheckpointError(
                f"{path} has {size_bytes:,} bytes, of which all but {filled_bytes:,} were never written (holes): has "
                f"its download not ended? If it is what it should be, {MEMORY_VARIABLE} in the environment allows more "
                "bytes"
            ) from None
        at = os.lseek(descriptor, begin, os.SEEK_HOLE)
        filled_bytes += at - begin
    os.lseek(descriptor, 0, os.SEEK_SET)


def _copy(path: str, copy: str) -> None:
    with open_regular(path) as source:
        ensure_room(os.path.dirname(copy), os.fstat(source.fileno()).st_size)
        with open(copy, "xb") as target:
            shutil.copyfileobj(source, target, _COPY_BYTES)
