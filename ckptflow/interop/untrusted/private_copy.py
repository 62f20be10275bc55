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
from typing import BinaryIO

from ckptflow.errors import CorruptCheckpointError, UsageError
from ckptflow.interop.untrusted.budget import MEMORY_VARIABLE
from ckptflow.interop.untrusted.zips import in_proportion
from ckptflow.places.room import ensure_room
from ckptflow.places.shown_as import shown_as
from ckptflow.storage.faults import os_errors
from ckptflow.storage.local_calls import filled_bytes

_COPY_BYTES = 2**20
_HEAD_BYTES = 64


@contextmanager
def private_copy(path: str) -> Iterator[str]:
    """The path of a copy of a file, in a folder of this user's alone, which goes when the block is left.

    Errors that leave the block, and what is logged in it, name the file, not the copy. Raises as `open_regular`
    and `check_filled`,
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


def check_regular(paths: Iterable[str], where: str) -> None:
    """Raises as `open_regular` does for each of the files that `where` consists of, and as `check_filled` for all of
    them together. What is not there is left to whoever reads it."""
    measured = []
    for path in paths:
        try:
            mode = os.stat(path).st_mode
        except OSError:
            continue
        if not stat.S_ISREG(mode):
            raise CorruptCheckpointError(f"{path} is not a file")
        with contextlib.suppress(OSError), open_regular(path) as file:
            measured.append(measured_bytes(file))
    check_filled(measured, where)


def open_regular(path: str, folder: int | None = None) -> io.BufferedReader:
    """A file of somebody else's, to be read: opened as it is looked at, so that nothing takes for ever.

    `folder` is the descriptor of the one that an asset lies in: then links are not followed, and any content will do.
    Raises `CorruptCheckpointError` for a pipe, a device, a socket or a folder; else OSError. `UsageError` for what
    merely stands in for the file: a pointer of Git LFS, a web page.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    name = path
    if folder is not None:
        name, flags = os.path.basename(path), flags | os.O_NOFOLLOW
    descriptor = os.open(name, flags, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CorruptCheckpointError(f"{path} is not a file")
        if folder is None:
            _check_is_itself(os.pread(descriptor, _HEAD_BYTES, 0), path)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def measured_bytes(file: BinaryIO) -> tuple[int, int]:
    """How long a file is, and how much of that was ever written; all of it where its file system cannot tell.

    The file is read from its beginning afterwards. Raises OSError.
    """
    found = os.fstat(file.fileno()).st_size, filled_bytes(file.fileno())
    file.seek(0)
    return found


def check_filled(measured: Iterable[tuple[int, int]], where: str) -> None:
    """Raises `CorruptCheckpointError` unless what was written of the files of a source, as `measured_bytes` says, goes
    with their length, both over all: holes are packed zeros, and copied at full length."""
    size_bytes, written_bytes = map(sum, zip((0, 0), *measured, strict=True))
    if in_proportion(written_bytes) < size_bytes:
        raise CorruptCheckpointError(
            f"{where} has {size_bytes:,} bytes, of which all but {written_bytes:,} were never written (holes): has its "
            f"download not ended? If it is what it should be, {MEMORY_VARIABLE} in the environment allows more bytes"
        )


def _check_is_itself(head: bytes, path: str) -> None:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        raise UsageError(f"{path} is a pointer of Git LFS, not the file itself: fetch that with `git lfs pull`")
    if text.startswith((b"<!doctype html", b"<html")):
        raise UsageError(
            f"{path} is a web page, as a server sends it in place of a file for a login or an error: download it anew"
        )


def _copy(path: str, copy: str) -> None:
    with open_regular(path) as source:
        check_filled([measured_bytes(source)], path)
        ensure_room(os.path.dirname(copy), os.fstat(source.fileno()).st_size)
        with open(copy, "xb") as target:
            shutil.copyfileobj(source, target, _COPY_BYTES)
