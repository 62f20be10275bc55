"""What is in a folder of a local disk, as a listing of keys."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

from ckptflow.errors import StorageError, StorageUnavailableError
from ckptflow.storage.faults import from_os_error
from ckptflow.storage.local_calls import RESERVED, linked, opened_folder
from ckptflow.storage.store import Entry, check_key

LEFTOVER_NAME = RESERVED + "leftover"  # listed for a folder that holds no object, so that it can be deleted
_Found = TypeVar("_Found")
_DECIDES = re.compile(r"\d{12,19}-i\d{4,19}(-r\d+)?|lineage|pins")  # names in a root on which something depends


def walk(root: str, prefix: str, refused: dict[str, StorageError] | None = None) -> Iterator[Entry]:
    """Every file in a root below `prefix`, no link followed, whatever vanishes meanwhile left out.

    A folder that cannot be listed raises; with `refused`, if it is below `prefix`, its key goes there, with why.
    """
    pending = [start := prefix]
    while pending:
        prefix = pending.pop()
        path = os.path.join(root, prefix)
        try:
            found = _if_there(path, partial(_scan, root, prefix))
        except OSError as error:
            if refused is None or prefix == start:
                raise
            why = error if isinstance(error, StorageError) else from_os_error(error, "list", error.filename or path)
            refused[prefix[:-1]] = why
            continue
        is_leftover = bool(prefix) and found is not None
        for name, mode, size_bytes, version in found or ():
            key = prefix + name
            if name.startswith(RESERVED) or not _is_key(key) or key == "lost+found":
                continue
            if not prefix and stat.S_ISLNK(mode):
                check_no_link(os.path.join(root, name))
            is_leftover = False
            if stat.S_ISDIR(mode):
                pending.append(key + "/")
            if stat.S_ISREG(mode):
                yield Entry(key, size_bytes, version)
            elif prefix and (not stat.S_ISDIR(mode) or is_record(name)):
                yield Entry(key, 0)  # in the place of a file: that is damaged, and not absent
        if is_leftover:
            yield Entry(prefix + LEFTOVER_NAME, 0)


def version_of(status: os.stat_result) -> str:
    """What tells a file from another that was put in its place, and from itself before it was written to. A hard link
    has that of the file."""
    return f"{status.st_ino:x}-{status.st_size}-{status.st_mtime_ns:x}"


def _scan(root: str, prefix: str) -> list[tuple[str, int, int, str | None]]:
    """What is in a folder: each name, what kind of thing is behind it, a link being one, a file's size and version."""
    with opened_folder(root, prefix[:-1], to_list=True) as folder:
        # C's library takes ENOENT for the end of a list: an empty one is believed if it is told twice.
        entries = _entries(folder) or _entries(folder)
        looks = (_if_there(os.path.join(root, prefix, entry.name), partial(_look, entry, folder)) for entry in entries)
        return [found for found in looks if found is not None]


def _entries(folder: int) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def _look(entry: os.DirEntry[str], folder: int) -> tuple[str, int, int, str | None]:
    if entry.is_dir(follow_symlinks=False):  # known by the listing alone
        return entry.name, stat.S_IFDIR, 0, None
    status = os.stat(entry.name, dir_fd=folder, follow_symlinks=False)
    return entry.name, status.st_mode, status.st_size, version_of(status)


def _if_there(path: str, look: Callable[[], _Found]) -> _Found | None:
    """What `look` finds at `path`; None for what is not there. What is there after all is looked at again.

    Raises where that fails, too: left out of a listing, it would be taken for absent.
    """
    for _ in range(3):
        try:
            return look()
        except OSError as error:
            # ESTALE: of a share, where another host has removed it.
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
                error.filename = path
                raise
        if _is_gone(path):
            return None
    raise StorageUnavailableError(f"{path}: cannot list: it exists, but the system reported that it does not")


def _is_gone(path: str) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    return False


def is_record(name: str) -> bool:
    """Whether a folder of this name stands where a file is looked for by name, and so must not pass for "not there"."""
    return name.endswith(".json")


def check_no_link(path: str) -> None:
    """Raises where a link has the name of a folder that decides something: passed over, an older one would count."""
    if os.path.islink(path) and _DECIDES.fullmatch(os.path.basename(path)):
        raise StorageError(linked(path, "list"))


def _is_key(key: str) -> bool:
    try:
        check_key(key)
    except ValueError:
        return False  # not written by any store of ours, and no verb would take it
    return True
