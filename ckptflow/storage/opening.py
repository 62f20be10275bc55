"""From a URL to its store: which client speaks to which storage, with retries around it."""

from __future__ import annotations

import re
from typing import Any

from ckptflow.events import Tell, tell_nobody
from ckptflow.storage.local import LocalStore
from ckptflow.storage.redaction import redact
from ckptflow.storage.store import Store

# A URL that would become a folder on this disk, of which nobody would hear before it is needed.
_SLASHLESS = re.compile(
    r"(?i)(s3a?|gc?s|file|local|memory|az|abfss?|wasbs?|adl|hdfs|webhdfs|sftp|ssh|ftps?|smb|webdavs?|dbfs|hf|https?"
    r"|r2|oss|oci):/?(?!/)"
)
_SCHEMELESS = re.compile(r"(?://)?[^/:@]+:[^/]*@")  # user:password@host


def open_store(url: str, storage_options: dict[str, Any] | None = None, tell: Tell = tell_nobody) -> Store:
    """The store for `url`: a local folder for a path or `file://`, any fsspec file system for another scheme.

    `storage_options` go to the file system (or to obstore, where the extra `fast` is installed) as they are, except for
    `client` ("fsspec" or "obstore") and `stall_timeout_s`: a request to a remote storage in which no byte moves for so
    long (30 s; None for no limit) is given up and tried again. Raises ValueError if one of these is wrong, for a scheme
    that nothing here knows, naming the schemes that would work, and for an empty URL or one that has lost a slash (as
    in `pathlib.Path("s3://bucket")`). Nothing is read or written yet. `tell` hears of each request that is made again.
    """
    path = local_path(url)
    return LocalStore(path) if path is not None else _open_remote(url, storage_options or {}, tell)


def _open_remote(url: str, storage_options: dict[str, Any], tell: Tell) -> Store:
    """By obstore where it is installed and understands every option given, else by fsspec; retried where that may help.

    Raises ImportError, naming the package that is missing.
    """
    # fsspec takes 0.1 s, for which a command on a local disk need not wait.
    from ckptflow.storage.by_fsspec import FsspecStore
    from ckptflow.storage.by_obstore import open_by_obstore
    from ckptflow.storage.clients import check_url, split_options
    from ckptflow.storage.retry import RetryingStore
    from ckptflow.storage.stalls import retry_time_s

    check_url(url)
    options, client, stall_timeout_s = split_options(storage_options)
    store: Store | None = None
    if client != "fsspec":
        store = open_by_obstore(url, options, stall_timeout_s, is_required=client == "obstore")
    store = store or FsspecStore(url, options, stall_timeout_s)
    return RetryingStore(store, max_wait_s=retry_time_s(stall_timeout_s), tell=tell)


def local_path(url: str) -> str | None:
    """The path on this disk that `url` (a path, or `file://`) stands for; None for a URL of another scheme.

    Raises ValueError for an empty URL, or one that has lost a slash (as in `pathlib.Path("s3://bucket")`) or its
    scheme (`user:password@host`).
    """
    scheme, separator, path = url.partition("://")
    if not url:
        raise ValueError("the URL is empty; for the current folder, say '.'")
    if "\0" in url:
        raise ValueError(f"no path has a NUL character in it: {redact(url)!r}")
    if not separator and (slashless := _SLASHLESS.match(url)):
        raise ValueError(
            f"{slashless[0]}… lacks a slash: write {slashless[1]}://… (pathlib.Path takes one away: hand over a str), "
            f"or, for a folder of that name, ./{slashless[0]}…"
        )
    if not separator and _SCHEMELESS.match(url):
        raise ValueError(
            f"{redact(url)} lacks a scheme, such as https://; for a folder of that name, begin with ./ or /"
        )
    if not separator or scheme in ("file", "local"):
        return path if separator else url
    return None
