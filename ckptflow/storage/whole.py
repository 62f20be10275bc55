"""What moving whole files has in common, wherever they go: names, order, room, and a few threads."""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

from ckptflow.errors import ObjectExistsError, ObjectNotFoundError, StorageFullError, UsageError
from ckptflow.storage.redaction import redact_url

# What makes the files around it readable: a TensorFlow checkpoint, a folder of such, a SavedModel.
LAST = ("*.index", "checkpoint", "saved_model.pb", "saved_model.pbtxt")
THREADS = 4
FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_GROUP = re.compile(r"\.(index|data-\d{5}-of-\d{5})")
_Result = TypeVar("_Result")


def is_in_group(name: str, base: str) -> bool:
    """Whether a file called `name` belongs to the prefix group `base`: `base.index`, `base.data-00000-of-00001`."""
    return name.startswith(base) and _GROUP.fullmatch(name[len(base) :]) is not None


def in_steps(keys: Iterable[str], last: Sequence[str]) -> list[list[str]]:
    """The keys in the order to write them: first all that match no pattern of `last`, then each pattern's, in turn."""
    steps: list[list[str]] = [[] for _ in range(len(last) + 1)]
    for key in keys:
        name = key.rpartition("/")[2]
        matching = (number for number, pattern in enumerate(last, 1) if fnmatch.fnmatchcase(name, pattern))
        steps[next(matching, 0)].append(key)
    return steps


def in_threads(jobs: Iterable[Callable[[], _Result]]) -> list[_Result]:
    """What the jobs return, done by a few threads. The first error keeps the rest from beginning, and is raised."""
    with ThreadPoolExecutor(THREADS) as threads:
        try:
            futures = [threads.submit(job) for job in jobs]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            return [future.result() for future in futures if future in done]
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def check_room(url: str, size_bytes: int, max_bytes: int, folder: str) -> None:
    """Raises `UsageError` where this is more than `max_bytes`, `StorageFullError` where `folder` has no room for it."""
    if size_bytes > max_bytes:
        raise UsageError(f"{url} has {size_bytes:,} bytes or more; at most {max_bytes:,} are fetched")
    free_bytes = shutil.disk_usage(folder).free
    if size_bytes > free_bytes:
        raise StorageFullError(
            f"{url} has {size_bytes:,} bytes, and {folder} has room for {free_bytes:,}: make room, or let TMPDIR name "
            "a folder that has it"
        )


def ensure_room(folder: str, size_bytes: int) -> None:
    """Raises `StorageFullError` where no file of that size can be written in `folder`: by making one, and removing it.

    For writers that do not live through a full disk (libhdf5 crashes the process).
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, max(size_bytes, 1))
        except OSError as error:
            if error.errno in FULL_ERRNOS:
                raise StorageFullError(
                    f"{folder} has no room for {size_bytes:,} bytes ({error.strerror}): make room, or raise the quota "
                    "or the file-size limit; nothing was written"
                ) from error


def not_found(url: str) -> ObjectNotFoundError:
    """What is raised where nothing is at `url`."""
    return ObjectNotFoundError(
        f"{redact_url(url)}: nothing is there: no file, no folder, and no files that begin with this name and go on "
        "'.index', '.data-…'; check the name"
    )


def exists(url: str) -> ObjectExistsError:
    """What is raised where something is at `url` that must not be replaced."""
    return ObjectExistsError(
        f"{redact_url(url)}: something is there already and was left as it is; name another place, or replace it "
        "with overwrite=True (--overwrite)"
    )
