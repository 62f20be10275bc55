"""A foreign file as it is at one moment: what was looked over is what is loaded, whoever may write to the original."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from ckptflow.errors import CorruptCheckpointError, UsageError
from ckptflow.places.room import ensure_room
from ckptflow.places.shown_as import shown_as
from ckptflow.storage.faults import os_errors

_COPY_BYTES = 2**20


@contextmanager
def private_copy(path: str) -> Iterator[str]:
    """The path of a copy of a file, in a folder of this user's alone, which goes when the block is left.

    Errors that leave the block, and what is logged in it, name the file, not the copy. Raises `UsageError` for
    what is no file, `StorageFullError` where TMPDIR has no room for it, else a `StorageError`.
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
    """Raises `CorruptCheckpointError` for a pipe, a device, a socket or a folder where a file is read: opening one can
    take for ever. What is not there is left to whoever reads it."""
    for path in paths:
        try:
            mode = os.stat(path).st_mode
        except OSError:
            continue
        if not stat.S_ISREG(mode):
            raise CorruptCheckpointError(f"{path} is not a file")


def open_regular(path: str, folder: int | None = None) -> BinaryIO:
    """A file of somebody else's, to be read: opened as it is looked at, so that nothing takes for ever.

    Links are followed; but not where `folder` is given, the descriptor of the one that it lies in. Raises
    `CorruptCheckpointError` for what is no file, else OSError.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    name = path
    if folder is not None:
        name, flags = os.path.basename(path), flags | os.O_NOFOLLOW
    file = open(os.open(name, flags, dir_fd=folder), "rb")  # noqa: SIM115 - the caller's
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise CorruptCheckpointError(f"{path} is not a file")
    return file


def _copy(path: str, copy: str) -> None:
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as source:
        found = os.fstat(source.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise UsageError(f"{path} is not a file")
        ensure_room(os.path.dirname(copy), found.st_size)
        with open(copy, "xb") as target:
            shutil.copyfileobj(source, target, _COPY_BYTES)
