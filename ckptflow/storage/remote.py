"""The six verbs on a remote storage, around a client's calls: keys are checked, errors are ours and tell no secret."""

from __future__ import annotations

import logging
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ckptflow.errors import (
    LEAVING,
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageError,
    StorageUnavailableError,
    UsageError,
)
from ckptflow.storage import faults, redaction
from ckptflow.storage.credentials import may_be_chained, option_names, secrets_of
from ckptflow.storage.raw import RawClient
from ckptflow.storage.replies import as_version
from ckptflow.storage.stalls import STALL_TIMEOUT_S, StalledError
from ckptflow.storage.store import Entry, check_key, check_prefix
from ckptflow.threads import at_once

_log = logging.getLogger("ckptflow.storage")

_DELETE_BATCH = 1000  # what one S3 DeleteObjects may hold


_REFUSED_FOLDERS = 3  # whose every copy is refused: no accident


class RemoteCalls:
    """Calls of one client to one URL, whose errors become ours and show no secret.

    Not usable in a forked child: threads and connections do not survive a fork; open another one there.
    """

    def __init__(self, url: str, storage_options: dict[str, Any], stall_timeout_s: float | None) -> None:
        self._stall_timeout_s = stall_timeout_s
        self._url = redaction.redact_url(url).rstrip("/")
        self._secrets = list(secrets_of(url, storage_options))
        self._options = frozenset(option_names(storage_options))
        self._has_got_through = False  # which proves, of a store, that the bucket exists
        self._is_closed = False
        self._process = os.getpid()

    @property
    def url(self) -> str:
        return self._url

    def close(self) -> None:
        self._is_closed = True

    def _check_usable(self) -> None:
        if self._is_closed:
            raise faults.closed_error(self._url)
        if self._process != os.getpid():
            raise UsageError(f"{self._url}: opened before a fork; open another store in the forked process")

    def _sends_checksum_to(self, doing: str) -> bool | None:
        """Whether such requests have checksum headers; None if no setting has a say in that."""
        return None

    @contextmanager
    def _mapped(self, doing: str, key: str = "") -> Iterator[None]:
        """Runs one client call with its errors mapped."""
        self._check_usable()
        where = f"{self._url}/{key}" if key else self._url
        with faults.client_call():
            try:
                yield
            except (StorageError, UsageError, *LEAVING):
                raise
            except BaseException as error:  # a panic of obstore is no Exception
                shown, limit_s = error, self._stall_timeout_s
                if limit_s is not None and faults.is_stall(error):
                    text = faults.text_of(error, self._secrets)
                    shown = StalledError(f"no byte was sent or received for {limit_s:g} s, so it was given up ({text})")
                mapped = faults.from_client_error(
                    shown,
                    doing,
                    where,
                    self._secrets,
                    sends_checksum=self._sends_checksum_to(doing),
                    options=self._options,
                )
                # The client's own error helps, unless it shows what must not be seen.
                raise mapped from (error if may_be_chained(error, self._secrets) else None)
        self._has_got_through = True


class RemoteStore(RemoteCalls, ABC):
    """A `Store` by whichever client: a subclass says how that reads, sends, finds and removes.

    A name of the client's begins with the bucket, or with the root of a file system without buckets: `_path(key)`.
    """

    is_object_store = True
    is_create_only = False
    can_copy = False
    _impossible_version = ""  # that no object has; of a store that copies

    def __init__(
        self, url: str, root: str, storage_options: dict[str, Any], stall_timeout_s: float | None = STALL_TIMEOUT_S
    ) -> None:
        super().__init__(url, storage_options, stall_timeout_s)
        # What has folders and no buckets has absolute paths: others are below whatever folder the login begins in.
        self._lead = "/" if root.startswith("/") else ""
        root = root.strip("/")
        self._base = f"{root}/" if root else ""  # "bucket/run-7/", or "" for the root of a file system without buckets
        self._has_bulk_delete = False
        self._copying, self._trial = threading.Lock(), threading.Lock()
        self._keeps_condition = False  # of copies, as a trial has shown
        self._has_copied = False
        self._refused_in: set[str] = set()  # folders from which copies were refused, until one is made

    # ---- the verbs

    def put(self, key: str, data: memoryview) -> str | None:
        return self._write(key, data, is_new=False)

    def copy(self, source_key: str, key: str, version: str) -> str | None:
        check_key(source_key)
        check_key(key)
        if as_version(version) != version:  # whoever has said so
            raise ObjectChangedError(self._changed(source_key, key, version))
        self._try_condition(source_key, key)
        try:
            copied = self._copy_version(source_key, key, version)
        except ObjectChangedError:
            self._doubt_copies(source_key)
            raise
        self._has_copied = True
        return copied

    def create(self, key: str, data: memoryview) -> None:
        self._write(key, data, is_new=True)

    def get(self, key: str, into: memoryview, start: int = 0) -> int:
        path = self._path(key)
        if not into.nbytes:
            return 0
        try:
            with self._mapped("read", key):
                try:
                    return self._read(path, into.cast("B"), start)
                except Exception as error:
                    if not faults.is_past_end(error):
                        raise
                    return 0
        except ObjectNotFoundError:
            if not self._has_got_through:  # is it the bucket that is missing? At most one request, once
                self.list(key + "/")
            raise

    def list(self, prefix: str = "") -> list[Entry]:
        start = self._base + check_prefix(prefix)
        with self._bucket_missed("list"), self._mapped("list", prefix):
            found = self._find(start)
        return [
            Entry(name[len(self._base) :], size_bytes)
            for name, size_bytes in found
            if name.startswith(start) and not name.endswith("/")  # else a folder's marker
        ]

    def delete(self, keys: Sequence[str]) -> None:
        pairs = [(key, self._path(key)) for key in keys]
        self._check_usable()
        for first in range(0, len(pairs), _DELETE_BATCH):
            batch = pairs[first : first + _DELETE_BATCH]
            if not self._delete_in_bulk([path for _, path in batch]):
                at_once(8, lambda pair: self._delete_one(*pair), batch)

    def raw(self) -> RawClient:
        """The client alone, for measurements."""
        return _RawRemote(self)

    def _write(self, key: str, data: memoryview, *, is_new: bool) -> str | None:
        path = self._path(key)
        doing = "create" if is_new else "write"
        with self._bucket_missed(doing), self._mapped(doing, key):
            return self._send(path, data, is_new=is_new)

    def _delete_in_bulk(self, paths: Sequence[str]) -> bool:
        if self._has_bulk_delete:
            with self._mapped("delete"):
                self._has_bulk_delete = self._remove_all(paths)
        return self._has_bulk_delete

    def _delete_one(self, key: str, path: str) -> None:
        for _ in range(2):  # that it is not there is asked again: one answer is no proof
            with suppress(ObjectNotFoundError), self._mapped("delete", key):
                self._remove(path)
                return

    def _try_condition(self, source_key: str, key: str) -> None:
        """Raises unless the storage keeps to the condition of a copy: one of a version that no object has is refused.

        That is asked once, by the first copy. Others wait for it, no longer than for a request.
        """
        if self._keeps_condition:
            return
        cannot = f"{self._url}/{source_key}: cannot copy to {key}"
        if not self._trial.acquire(timeout=-1 if self._stall_timeout_s is None else self._stall_timeout_s):
            raise StorageUnavailableError(f"{cannot}: the first copy here has not been answered yet")
        try:
            if self._keeps_condition:
                return
            if not self.can_copy:
                raise StorageError(f"{cannot}: this storage has refused to copy")
            try:
                self._copy_version(source_key, key, self._impossible_version)
            except ObjectChangedError:
                self._keeps_condition = True
                return
            self._stop_copying("it ignores the condition of a copy and copies whatever exists")
            raise StorageError(f"{cannot}: the storage ignores the condition of a copy and copies whatever exists")
        finally:
            self._trial.release()

    def _copy_version(self, source_key: str, key: str, version: str) -> str | None:
        try:
            with self._mapped(f"copy to {key}", source_key):
                try:
                    return self._copy_inside(self._path(source_key), self._path(key), version)
                except Exception as error:
                    if faults.is_refused_copy(error):
                        self._stop_copying(faults.text_of(error, self._secrets))
                    raise
        except (ObjectChangedError, ObjectExistsError) as error:  # "exists" is how any condition fails
            raise ObjectChangedError(self._changed(source_key, key, version)) from error

    def _doubt_copies(self, source_key: str) -> None:
        """Stops copying where the storage refuses every version: one folder may have been replaced, not all of them."""
        if self._has_copied:
            return
        self._refused_in.add(source_key.rpartition("/")[0])
        if len(self._refused_in) >= _REFUSED_FOLDERS:
            self._stop_copying(f"it has refused every copy, from {_REFUSED_FOLDERS} folders, as of a replaced object")

    def _changed(self, source_key: str, key: str, version: str) -> str:
        return f"{self._url}/{source_key}: cannot copy to {key}: it is not, or no longer, version {version!r}"

    def _stop_copying(self, why: str) -> None:
        with self._copying:
            could, self.can_copy = self.can_copy, False
        if could:
            _log.info("%s: from now on shards are written, not copied inside the storage: %s", self._url, why)

    def _path(self, key: str) -> str:
        return self._lead + self._base + check_key(key)

    @contextmanager
    def _bucket_missed(self, doing: str) -> Iterator[None]:
        """Where not even a write or a listing finds anything, it is the bucket that is missing."""
        try:
            yield
        except ObjectNotFoundError as error:
            raise StorageError(
                f"{self._url}: cannot {doing}: no such bucket or container; make it, or check the URL"
            ) from error

    # ---- what a client does; errors are its own

    @abstractmethod
    def _read(self, path: str, into: memoryview, start: int) -> int:
        """Reads from byte `start` on; returns the count. 0, or the service's error, where the object ends before."""

    @abstractmethod
    def _send(self, path: str, data: memoryview, *, is_new: bool) -> str | None:
        """Writes one object; with `is_new`, FileExistsError or the service's own error where something is there.

        Returns the version that the service tells of what was written.
        """

    @abstractmethod
    def _copy_inside(self, source: str, path: str, version: str) -> str | None:
        """Copies one object, if it is that version; the service's error for a condition that fails where it is not.

        Returns the new one's version.
        """

    @abstractmethod
    def _find(self, prefix: str) -> Iterable[tuple[str, int]]:
        """The full name and the size of each object whose name begins with `prefix`."""

    @abstractmethod
    def _remove(self, path: str) -> None:
        """Deletes one object. Any error if it does not exist."""

    @abstractmethod
    def _remove_all(self, paths: Sequence[str]) -> bool:
        """Deletes up to a thousand in one request; False if the server takes no such request."""

    @property
    @abstractmethod
    def _client_name(self) -> str:
        """For people."""

    @abstractmethod
    def _put_raw(self, path: str, data: memoryview) -> None:
        """The client's own way to write whole objects, as a measurement takes it."""

    @abstractmethod
    def _get_raw(self, path: str, length: int) -> Any:
        """The same for reading: the bytes."""


class _RawRemote:
    """No retries and no checksums of ours; errors are mapped, so that no message shows a secret."""

    def __init__(self, store: RemoteStore) -> None:
        self._store = store

    @property
    def name(self) -> str:
        return self._store._client_name

    def put(self, key: str, data: memoryview) -> None:
        with self._store._mapped("write", key):
            self._store._put_raw(self._store._path(key), data)

    def get(self, key: str, into: memoryview) -> None:
        with self._store._mapped("read", key):
            found = self._store._get_raw(self._store._path(key), len(into))
        if len(found) != len(into):
            raise OSError(f"{key}: a short read")
