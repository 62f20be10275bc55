"""What is in a folder of a local disk, as a listing of keys."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from ckptflow.errors import StorageError, StorageUnavailableError
from ckptflow.storage.local_calls import RESERVED
from ckptflow.storage.store import Entry, check_key

LEFTOVER_NAME = RESERVED + "leftover"  # listed for a folder that holds no object, so that it can be deleted
_DECIDES = re.compile(r"\d{12,19}-i\d{4,19}(-r\d+)?|lineage|pins")  # names in a root on which something depends


def walk(folder: str, prefix: str) -> Iterator[Entry]:
    """Every file below `folder`, links to folders not followed, whatever vanishes meanwhile left out."""
    pending = [(folder, prefix)]
    while pending:
        folder, prefix = pending.pop()
        is_leftover = bool(prefix)
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    key = prefix + entry.name
                    if entry.name.startswith(RESERVED) or not _is_key(key) or key == "lost+found":
                        continue
                    if not prefix and entry.is_symlink():
                        check_no_link(entry.path)
                    is_leftover = False
                    try:
                        if entry.is_dir(follow_symlinks=False):
                            pending.append((entry.path, key + "/"))
                        if entry.is_file():
                            yield Entry(key, entry.stat().st_size)
                        elif prefix and (not entry.is_dir() or is_record(entry.name)):
                            yield Entry(key, 0)  # in the place of a file: that is damaged, and not absent
                    except FileNotFoundError:
                        _check_gone(entry.path)
        except (FileNotFoundError, NotADirectoryError):
            _check_gone(folder)
            continue
        if is_leftover:
            yield Entry(prefix + LEFTOVER_NAME, 0)


def is_record(name: str) -> bool:
    """Whether a folder of this name stands where a file is looked for by name, and so must not pass for "not there"."""
    return name.endswith(".json")


def _check_gone(path: str) -> None:
    """Raises where a name is there that was said not to be: left out of a listing, it would be taken for absent."""
    if os.path.isdir(path) or os.path.isfile(path):
        raise StorageUnavailableError(f"{path}: cannot list: it is there, and the system said that it is not")


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
