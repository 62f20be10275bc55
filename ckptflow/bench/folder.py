"""A folder of its own for a measurement, on any storage, and nothing left of it."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from ckptflow.errors import StorageError
from ckptflow.reading import url_below
from ckptflow.storage.opening import local_path, open_store
from ckptflow.storage.redaction import redact
from ckptflow.storage.store import Store

FOLDER_PREFIX = "ckptflow-bench-"
_log = logging.getLogger("ckptflow.bench")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class BenchFolder:
    """A new folder: the store on it, and its URL for other processes, which may hold a secret: not for messages."""

    store: Store
    url: str


@contextlib.contextmanager
def bench_folder(url: str, storage_options: dict[str, Any]) -> Iterator[BenchFolder]:
    """A new folder in `url`; the folder, and whatever is in it, is gone afterwards.

    Where it cannot be removed, a warning names it; what went wrong before that is raised all the same. Where nothing
    can be written at all, that is raised at once: there is nothing to remove then.
    """
    path = local_path(url)
    name = FOLDER_PREFIX + secrets.token_hex(6)
    made = _missing_folders(path) if path is not None else []
    place = url_below(url, name) if path is None else os.path.abspath(os.path.join(path, name))
    store = open_store(place, storage_options)
    is_refused = False
    try:
        try:
            finished(lambda: store.put("begin", memoryview(b"\n")))
        except StorageError:
            is_refused = True
            raise
        yield BenchFolder(store, place)
    finally:
        try:
            if path is not None:
                if os.path.lexists(os.path.join(path, name)):
                    shutil.rmtree(os.path.join(path, name))
            elif not is_refused:
                store.delete([entry.key for entry in store.list()])
        except BaseException as error:  # an interrupt as well
            why = redact(str(error)) or type(error).__name__
            _log.warning("%s could not be removed, delete it: %s", store.url, why)
            if not isinstance(error, Exception):
                raise
        finally:
            store.close()
            for folder in made:
                with contextlib.suppress(OSError):
                    os.rmdir(folder)


def finished(do: Callable[[], Result]) -> Result:
    """What `do` returns. An interrupt is raised once it has ended: fsspec's requests go on without who sent them, and
    what is written after the folder was removed would stay."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(do).result()


def free_bytes(url: str) -> int | None:
    """The free space of the disk that `url` is on; None for what is no disk of this machine."""
    path = local_path(url)
    if path is None:
        return None
    missing = _missing_folders(path)
    return shutil.disk_usage(os.path.dirname(missing[-1]) if missing else path).free


def free_memory_bytes() -> int | None:
    """What this process can still take without the machine, or the container, ending it; None if nobody says."""
    found = []
    with contextlib.suppress(OSError, StopIteration), open("/proc/meminfo") as lines:
        found.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError), open(path) as file:
            found.append(int(file.read()))  # or "max"
    return min(found, default=None)


def _missing_folders(path: str) -> list[str]:
    """`path` and those above it that are not there, deepest first."""
    missing = []
    path = os.path.abspath(path)
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    return missing
