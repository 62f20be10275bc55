"""The `Store` protocol: six verbs on keys under one root. Knows nothing of checkpoints.

What the commit protocol needs of a storage, and every implementation promises (the contract suite in
`ckptflow.testing` checks it, behind the store's back):

1. **put** and **create** are atomic and durable: when they return, the whole object is there for every reader and
   survives a crash of the writer and, on a local disk, a loss of power. No reader ever sees a part of an object.
2. **create** is exclusive: of any number of racing creators of one key at most one returns.
3. **list** shows every object whose write had returned before the list was called, each under its exact key and size.
4. **get** returns bytes of one version of the object, never a mixture.
5. **copy**, where `can_copy`, is as atomic and durable as put, and makes exactly the bytes of the version it was told,
   or nothing. What was copied does not depend on its source any more: that may be deleted, or replaced by a put.

Errors are those of `ckptflow.errors`; a transient failure has been retried below this interface before it is raised
as `StorageUnavailableError`. A lost reply makes `create` raise `ObjectExistsError` for the caller's own write, or
`StorageUnavailableError` with the object in place: who must know reads back and compares a random id.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

# What a key may be: relative, "/"-separated, no empty, "." or ".." part, no control character or backslash.
MAX_KEY_BYTES = 900
_BAD_CHARACTER = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True, slots=True)
class Entry:
    """One listed object: its key, relative to the root, and its size in bytes.

    `version` is what `put` or `copy` returned for it, where a listing shows that without a further request: on a disk.
    Two keys of one version are one file there, whose bytes are stored once.
    """

    key: str
    size_bytes: int
    version: str | None = field(default=None, compare=False)


class Store(Protocol):
    """Six verbs on the keys under one root. Thread-safe; every method is synchronous.

    A store that keeps connections or a cache may have `renew(key)` as well: it lets go of them, so that what is asked
    of `key` next comes from the storage itself. It is called before a wrong answer is asked again.

    With `list_partly()` it lists what it can, and says which folders below the root it cannot list.

    With `filled_bytes(key)` it says how much of an object was ever written, where there may be holes in it.

    With `raw()` it gives the client below it, for measurements (`RawClient` in `ckptflow.storage.raw`).
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

    @property
    def can_copy(self) -> bool:
        """Whether `copy` may work here. False if the storage has no such thing, and once it has refused it."""

    def put(self, key: str, data: memoryview) -> str | None:
        """Writes `data` under `key`, whole and durable, replacing what was there.

        Returns the version of what was written, which a copy of it is conditioned on; None if the storage does not
        tell.

        `data` is one contiguous byte buffer, not used any more once the call has returned or raised. Where its memory
        is page-aligned (a pooled staging buffer), a local disk is written past the page cache.
        """

    def copy(self, source_key: str, key: str, version: str) -> str | None:
        """Makes `key`, whole and durable, of the bytes of `source_key` in that `version`, inside the storage.

        Replaces what was there, and returns the new object's version. Raises `ObjectNotFoundError` if there is no
        source, `ObjectChangedError` where it is not that version, and other errors as `put` does: whoever asks can
        write the bytes anew, so there are fewer tries. Not called where `can_copy` is False.
        """

    def create(self, key: str, data: memoryview) -> None:
        """Writes `data` under `key`, complete and durable, only if there is none; else raises `ObjectExistsError`."""

    def get(self, key: str, into: memoryview, start: int = 0) -> int:
        """Reads from byte `start` on into `into`; returns the count, below `len(into)` only at the object's end.

        Raises `ObjectNotFoundError` if there is no such object. Memory is the caller's, so no object, however
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
