"""The `Store` protocol: five verbs on keys under one root. Knows nothing of checkpoints.

What the commit protocol needs of a storage, and every implementation promises (the contract suite in
`ckptflow.testing` checks it, behind the store's back):

1. **put** and **create** are atomic and durable: when they return, the whole object is there for every reader and
   survives a crash of the writer and, on a local disk, a loss of power. No reader ever sees a part of an object.
2. **create** is exclusive: of any number of racing creators of one key at most one returns.
3. **list** shows every object whose write had returned before the list was called, each under its exact key and size.
4. **get** returns bytes of one version of the object, never a mixture.

Errors are those of `ckptflow.errors`; a transient failure has been retried below this interface before it is raised
as `StorageUnavailableError`. A lost reply makes `create` raise `ObjectExistsError` for the caller's own write, or
`StorageUnavailableError` with the object in place: who must know reads back and compares a random id.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ckptflow.events import Tell, tell_nobody
from ckptflow.storage.redaction import redact

# What a key may be: relative, "/"-separated, no empty, "." or ".." part, no control character or backslash.
MAX_KEY_BYTES = 900
_BAD_CHARACTER = re.compile(r"[\x00-\x1f\x7f\\]")
_PROBED_BYTES = 2**20  # what is longer is first asked whether it is too long
# A URL that would become a folder on this disk, of which nobody would hear before it is needed.
_SLASHLESS = re.compile(
    r"(?i)(s3a?|gc?s|file|local|memory|az|abfss?|wasbs?|adl|hdfs|webhdfs|sftp|ssh|ftps?|smb|webdavs?|dbfs|hf|https?"
    r"|r2|oss|oci):/?(?!/)"
)
_SCHEMELESS = re.compile(r"(?://)?[^/:@]+:[^/]*@")  # user:password@host


@dataclass(frozen=True, slots=True)
class Entry:
    """One listed object: its key, relative to the root, and its size in bytes."""

    key: str
    size_bytes: int


class Store(Protocol):
    """Five verbs on the keys under one root. Thread-safe; every method is synchronous.

    A store that keeps connections or a cache may have `renew(key)` as well: it lets go of them, so that what is asked
    of `key` next comes from the storage itself. It is called before a wrong answer is asked again.
    """

    @property
    def url(self) -> str:
        """Where the root is, in messages, without credentials or a trailing slash."""

    @property
    def is_create_only(self) -> bool:
        """Whether `create` is exclusive here. Where it is not, the manager says so once, at start."""

    @property
    def is_object_store(self) -> bool:
        """Whether requests cost round trips (many parallel writes pay) rather than seeks (few large ones do)."""

    def put(self, key: str, data: memoryview) -> None:
        """Writes `data` under `key`, whole and durable, replacing what was there.

        `data` is one contiguous byte buffer, not used any more once the call has returned or raised. Where its memory
        is page-aligned (a pooled staging buffer), a local disk is written past the page cache.
        """

    def create(self, key: str, data: memoryview) -> None:
        """Writes `data` under `key`, whole and durable, only if nothing is there; else raises `ObjectExistsError`."""

    def get(self, key: str, into: memoryview, start: int = 0) -> int:
        """Reads from byte `start` on into `into`; returns the count, below `len(into)` only at the object's end.

        Raises `ObjectNotFoundError` where there is no such object. Memory is the caller's, so no object, however
        large, makes this process allocate.
        """

    def list(self, prefix: str = "") -> list[Entry]:
        """Every object whose key starts with `prefix`, in no particular order, uncached.

        `prefix` is "" or ends with "/", so that `…-i0007/` never lists `…-i0007-r2/`. Nothing there is an empty list,
        a root that does not exist as well; a bucket that does not exist or a refusal raises.
        """

    def delete(self, keys: Sequence[str]) -> None:
        """Deletes `keys`; one that is not there is no error. Not atomic: an error says which could not be deleted."""

    def close(self) -> None:
        """Gives back threads and connections. Calls after this raise."""


def check_key(key: str) -> str:
    """Returns `key` if it is one that cannot leave the root or confuse a storage; else raises ValueError."""
    if not key or len(key.encode("utf-8", "surrogatepass")) > MAX_KEY_BYTES or _BAD_CHARACTER.search(key):
        raise ValueError(f"not a storage key: {key!r}")
    if any(part in ("", ".", "..") for part in key.split("/")):
        raise ValueError(f"not a storage key: {key!r} (an empty, '.' or '..' part)")
    return key


def check_prefix(prefix: str) -> str:
    """Returns `prefix` if it is "" or a key followed by "/"; else raises ValueError."""
    if prefix:
        if not prefix.endswith("/"):
            raise ValueError(f"not a prefix: {prefix!r} must end with '/'")
        check_key(prefix[:-1])
    return prefix


_LONGEST_STEP_BYTES = 16 * 2**20  # else the last one of a manifest of 96 MiB would take 256 MiB


def read_small(store: Store, key: str, max_bytes: int) -> bytes:
    """The whole object at `key`, read in steps so that memory follows the bytes that really come, up to `max_bytes`.

    Raises `ObjectNotFoundError`, or ValueError where the object is longer than `max_bytes`.
    """
    parts: list[bytes] = []
    total, step = 0, 64 * 1024
    while total <= max_bytes:
        buffer = bytearray(min(step, max_bytes + 1 - total))
        count = store.get(key, memoryview(buffer), total)
        parts.append(bytes(memoryview(buffer)[:count]))
        total += count
        if count < len(buffer):
            return b"".join(parts)
        if total > _PROBED_BYTES and store.get(key, memoryview(bytearray(1)), max_bytes):
            break  # before all of it is read in vain
        step = min(8 * step, _LONGEST_STEP_BYTES)
    raise ValueError(f"{store.url}/{key} is longer than {max_bytes:,} bytes")


def local_path(url: str) -> str | None:
    """The path on this disk that `url` (a path, or `file://`) stands for; None for a URL of another scheme.

    Raises ValueError for an empty URL, or one that has lost a slash (as in `pathlib.Path("s3://bucket")`) or its
    scheme (`user:password@host`).
    """
    scheme, separator, path = url.partition("://")
    if not url:
        raise ValueError("the URL is empty; for the current folder, say '.'")
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


def open_store(url: str, storage_options: dict[str, Any] | None = None, tell: Tell = tell_nobody) -> Store:
    """The store for `url`: a local folder for a path or `file://`, any fsspec file system for another scheme.

    `storage_options` go to the file system (or to obstore, where the extra `fast` is installed) as they are, except for
    `client` ("fsspec" or "obstore") and `stall_timeout_s`: a request to a remote storage in which no byte moves for so
    long (30 s; None for no limit) is given up and tried again. Raises ValueError if one of these is wrong, for a scheme
    that nothing here knows, naming the schemes that would work, and for an empty URL or one that has lost a slash (as
    in `pathlib.Path("s3://bucket")`). Nothing is read or written yet. `tell` hears of each request that is made again.
    """
    from ckptflow.storage.local import LocalStore
    from ckptflow.storage.remote import open_remote_store

    path = local_path(url)
    return open_remote_store(url, storage_options or {}, tell) if path is None else LocalStore(path)
