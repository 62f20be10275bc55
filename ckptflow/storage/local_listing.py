"""What is in a folder of a local disk, as a listing of keys."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

from ckptflow.errors import StorageError, StorageUnavailableError
from ckptflow.storage.local_calls import RESERVED
from ckptflow.storage.store import Entry, check_key

LEFTOVER_NAME = RESERVED + "leftover"  # listed for a folder that holds no object, so that it can be deleted
_Found = TypeVar("_Found")
_DECIDES = re.compile(r"\d{12,19}-i\d{4,19}(-r\d+)?|lineage|pins")  # names in a root on which something depends


def walk(folder: str, prefix: str) -> Iterator[Entry]:
    """Every file below `folder`, links to folders not followed, whatever vanishes meanwhile left out."""
    pending = [(folder, prefix)]
    while pending:
        folder, prefix = pending.pop()
        found = _if_there(folder, _scan)
        is_leftover = bool(prefix) and found is not None
        for entry in found or ():
            key = prefix + entry.name
            if entry.name.startswith(RESERVED) or not _is_key(key) or key == "lost+found":
                continue
            if not prefix and entry.is_symlink():
                check_no_link(entry.path)
            is_leftover = False
            if entry.is_dir(follow_symlinks=False):
                pending.append((entry.path, key + "/"))
            if entry.is_file():
                size_bytes = _if_there(entry.path, os.path.getsize)
                if size_bytes is not None:
                    yield Entry(key, size_bytes)
            elif prefix and (not entry.is_dir() or is_record(entry.name)):
                yield Entry(key, 0)  # in the place of a file: that is damaged, and not absent
        if is_leftover:
            yield Entry(prefix + LEFTOVER_NAME, 0)


def _scan(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def _if_there(path: str, look: Callable[[str], _Found]) -> _Found | None:
    """What `look` finds; None for what is not there. What is there after all is looked at again.

    Raises where that fails, too: left out of a listing, it would be taken for absent.
    """
    for _ in range(3):
        try:
            return look(path)
        except (FileNotFoundError, NotADirectoryError):
            if not os.path.exists(path):
                return None
    raise StorageUnavailableError(f"{path}: cannot list: it is there, and the system said that it is not")


def is_record(name: str) -> bool:
    """Whether a folder of this name stands where a file is looked for by name, and so must not pass for "not there"."""
    return name.endswith(".json")


def check_no_link(path: str) -> None:
    """Raises where a link has the name of a folder that decides something: passed over, an older one would count.

    Links to folders are not followed, since what is deleted in them would be deleted elsewhere.
    """
    if os.path.islink(path) and _DECIDES.fullmatch(os.path.basename(path)):
        raise StorageError(
            f"{path}: cannot list: it is a symbolic link to {os.readlink(path)}; links to folders are not followed. "
            "Move the folder itself here, mount it here, or rename the link if it is not part of this run"
        )


def _is_key(key: str) -> bool:
    try:
        check_key(key)
    except ValueError:
        return False  # not written by any store of ours, and no verb would take it
    return True
