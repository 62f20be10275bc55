"""A folder of its own for a measurement, on any storage, and nothing left of it."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from typing import Any

from ckptflow.storage.faults import redact
from ckptflow.storage.store import Store, local_path, open_store

FOLDER_PREFIX = "ckptflow-bench-"
_log = logging.getLogger("ckptflow.bench")


@contextlib.contextmanager
def bench_folder(url: str, storage_options: dict[str, Any]) -> Iterator[Store]:
    """A store on a new folder in `url`; the folder, and whatever is in it, is gone afterwards.

    Where it cannot be removed, a warning names it; what went wrong before that is raised all the same.
    """
    path = local_path(url)
    name = FOLDER_PREFIX + secrets.token_hex(6)
    made = _missing_folders(path) if path is not None else []
    store = open_store(f"{url.rstrip('/')}/{name}" if path is None else os.path.join(path, name), storage_options)
    try:
        yield store
    finally:
        try:
            if path is None:
                store.delete([entry.key for entry in store.list()])
            elif os.path.exists(os.path.join(path, name)):
                shutil.rmtree(os.path.join(path, name))
        except Exception as error:
            _log.warning("%s could not be removed, delete it: %s", store.url, redact(str(error)))
        store.close()
        for folder in made:
            with contextlib.suppress(OSError):
                os.rmdir(folder)


def free_bytes(url: str) -> int | None:
    """The free space of the disk that `url` is on; None for what is no disk of this machine."""
    path = local_path(url)
    if path is None:
        return None
    missing = _missing_folders(path)
    return shutil.disk_usage(os.path.dirname(missing[-1]) if missing else path).free


def _missing_folders(path: str) -> list[str]:
    """`path` and those above it that are not there, deepest first."""
    missing = []
    path = os.path.abspath(path)
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    return missing
