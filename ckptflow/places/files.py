"""Whole files and folders between this disk and any storage: `fetched` or `opened` to read, `staged` to write."""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit

from ckptflow.errors import CkptflowError, UsageError
from ckptflow.places.local import LocalPlace
from ckptflow.places.names import exists, is_in_group
from ckptflow.places.remote import RemotePlace, temporary_folder
from ckptflow.places.room import FULL_ERRNOS
from ckptflow.places.shown_as import shown_as
from ckptflow.storage.faults import from_os_error, os_errors
from ckptflow.storage.opening import local_path
from ckptflow.storage.redaction import HTTP_SCHEMES, redact_url
from ckptflow.storage.store import check_key

MAX_FETCH_BYTES = 2**40
_CHECKPOINT = re.compile(r"\d{12,19}-i\d{4,19}(-r\d+)?")  # a checkpoint's folder
_OURS = re.compile(r"(.*/)?(manifest\.json|lineage/.*)", re.DOTALL)  # in a checkpoint's folder, in a run's root


@contextmanager
def fetched(
    url: str, storage_options: dict[str, Any] | None = None, *, max_bytes: int = MAX_FETCH_BYTES
) -> Iterator[str]:
    """The path on this disk of what is at `url`, for as long as the block lasts.

    A local path is given as it is, without a copy. From elsewhere comes a file, a folder (every object below `url/`),
    or a prefix group (`url.index`, `url.data-00000-of-00001`, of which the path is what their names begin with) into a
    private temporary folder, which is removed when the block is left, however that is. From `http://` and `https://`
    come files only; a query stays out of the file's name, but with `tf-hub-format=compressed` that ends `.tar.gz`.

    `storage_options` are those for a run on that storage; it is always read by fsspec. Raises `ObjectNotFoundError`,
    naming `url`; `UsageError` where it is longer than `max_bytes`, `StorageFullError` where TMPDIR has no room for it;
    `CorruptCheckpointError` for names that no folder can hold; else a `StorageError`.
    """
    path = local_path(url)
    if path is not None:
        yield LocalPlace(path).find()
        return
    with temporary_folder() as folder:
        if url.partition("://")[0] in HTTP_SCHEMES:
            target = os.path.join(folder, _http_name(url))
            from ckptflow.places.http import HttpFile  # aiohttp takes its time

            HttpFile(url, storage_options or {}).download(target, max_bytes)
        else:
            with contextlib.closing(RemotePlace(url, storage_options or {})) as place:
                target = place.download(folder, max_bytes)
        with shown_as(target, redact_url(url)):
            yield target


@contextmanager
def opened(url: str, storage_options: dict[str, Any] | None = None) -> Iterator[BinaryIO]:
    """The file at `url`, seekable. No more of it is read than is asked for; from a web server it comes whole.

    Raises `ObjectNotFoundError` if there is no file, or a folder; else as `fetched`.
    """
    path = local_path(url)
    if path is None and url.partition("://")[0] not in HTTP_SCHEMES:
        with contextlib.closing(RemotePlace(url, storage_options or {})) as place:
            with place.open() as file:
                yield file
        return
    with fetched(url, storage_options) as local:
        with os_errors("read", local):
            opened_file = open(local, "rb")  # noqa: SIM115 - what the block raises is not ours to map
        with opened_file:
            yield opened_file


@contextmanager
def staged(url: str, *, overwrite: bool, storage_options: dict[str, Any] | None = None) -> Iterator[str]:
    """A private path on this disk to write a file, a folder or a prefix group to; leaving the block publishes it.

    The path ends with the last part of `url`, and does not exist yet. A block that is left by an exception publishes
    nothing and leaves nothing. What is published is durable when this returns.

    On this disk the staging folder is a hidden sibling of the destination, and one rename publishes a file or a folder:
    at every moment the old or the new is there. (Where the file system cannot exchange folders, and for a group of
    files, the old is moved aside first.) A process that is killed leaves at most `.ckptflow-staging-…` or
    `.ckptflow-replaced-…`. On remote storage a file appears whole; of several files those that match `last` (patterns
    of names) come last, in that order, and what was uploaded is deleted after an error.

    `overwrite` replaces what is there. Without it that raises `ObjectExistsError`: at once, and at the end if it came
    meanwhile. Raises `UsageError` for a destination that is or holds a run, or lies in a checkpoint's folder;
    `StorageFullError` also where what the block raised says so; else a `StorageError`.
    """
    path = local_path(url)
    where = redact_url(url) if path is None else path
    if url.partition("://")[0] in HTTP_SCHEMES:
        raise UsageError(f"{where}: cannot write to a web server; give a path or the URL of an object storage")
    with contextlib.closing(LocalPlace(path) if path is not None else RemotePlace(url, storage_options or {})) as place:
        if not place.name:
            raise UsageError(f"{where} does not name a file or folder; add a name")
        _refuse(where, place, overwrite)
        with place.staging() as folder, _full_disk_named(folder, where):
            path = os.path.join(folder, place.name)
            with shown_as(path, where):
                yield path
            produced = _produced(folder, place.name, where)
            place.publish(folder, produced, overwrite=overwrite)


def _http_name(url: str) -> str:
    """A file name for what is at `url`."""
    parts = urlsplit(url)
    name = unquote(posixpath.basename(parts.path.rstrip("/")))
    try:
        if "/" in check_key(name):
            raise ValueError(name)
    except ValueError:
        name = "file"
    is_packed = parse_qs(parts.query).get("tf-hub-format") == ["compressed"]
    return name + ".tar.gz" if is_packed and not name.endswith((".tar.gz", ".tgz")) else name


def _refuse(where: str, place: LocalPlace | RemotePlace, overwrite: bool) -> None:
    """Raises unless the destination may be written."""
    if any(map(_CHECKPOINT.fullmatch, place.parts)):
        raise UsageError(
            f"{where} is, or lies in, a checkpoint's folder, which must contain nothing else; name another place"
        )
    here = place.all()
    if here and not overwrite:
        raise exists(where)
    ours = next(filter(_OURS.fullmatch, here), None)
    if ours is not None:
        raise UsageError(
            f"{where} contains a run or a checkpoint ({ours}), which is never replaced by an export; name another "
            "place, "
            "or delete it yourself"
        )


def _produced(folder: str, name: str, where: str) -> dict[str, int]:
    """Every file that was written, by its path in the staging folder, with its size."""
    found: dict[str, int] = {}
    for above, folders, files in os.walk(folder):
        if above == folder:
            other = [entry for entry in (*folders, *files) if entry != name and not is_in_group(entry, name)]
            if other:
                raise UsageError(f"{where}: {other[0]!r} was written in addition to {name!r}, so nothing was published")
        for entry in (*folders, *files):
            path = os.path.join(above, entry)
            mode = os.lstat(path)
            if stat.S_ISREG(mode.st_mode):
                found[os.path.relpath(path, folder)] = mode.st_size
            elif not stat.S_ISDIR(mode.st_mode):
                raise UsageError(f"{where}: {path} is neither a file nor a folder, and nothing was published")
    if not found:
        raise UsageError(f"{where}: no file was written, so there is nothing to publish")
    return found


@contextmanager
def _full_disk_named(folder: str, where: str) -> Iterator[None]:
    """Whichever library wrote, a full disk is a full disk: TensorFlow and HDF5 say so in words."""
    try:
        yield
    except Exception as error:
        codes = [
            code for code in FULL_ERRNOS if code == getattr(error, "errno", None) or os.strerror(code) in str(error)
        ]
        if isinstance(error, CkptflowError) or not codes:
            raise
        raise from_os_error(OSError(codes[0], os.strerror(codes[0])), "write", f"{folder}, to be {where}") from error
