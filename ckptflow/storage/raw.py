"""The client below a store, with nothing of ours between: what a measurement takes as the limit. For nothing else.

No retries, no checksums of ours, and on a disk no names moved and no folders made durable.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

from ckptflow.errors import UsageError
from ckptflow.storage.local import LocalStore
from ckptflow.storage.local_calls import opened_folder
from ckptflow.storage.positional import read_at, write_at
from ckptflow.storage.remote import RemoteStore
from ckptflow.storage.store import Store
from ckptflow.storage.wrappers import StoreWrapper


class RawClient(Protocol):
    """Whole objects there and back. `data` and `into` are page-aligned and whole pages long."""

    @property
    def name(self) -> str:
        """Known for certain once something has been written."""

    def put(self, key: str, data: memoryview) -> None:
        """Writes one object, new or in another's place, and on a disk makes its bytes durable."""

    def get(self, key: str, into: memoryview) -> None:
        """Reads one object of that length."""


def raw_client(store: Store) -> RawClient:
    """The client that `store` uses. Raises `UsageError` for a store that is none of ours."""
    while isinstance(store, StoreWrapper):
        store = store.store
    if isinstance(store, LocalStore):
        return _Disk(store)
    if isinstance(store, RemoteStore):
        return _Obstore(store) if hasattr(store, "_client") else _Fsspec(store)
    raise UsageError(f"{store.url}: nothing is known of what is below this store")


class _Disk:
    """Direct writes and fsync; through the page cache where the file system refuses direct ones."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store

    @property
    def name(self) -> str:
        return f"{'direct' if self._store._has_direct else 'buffered'} writes + fsync"

    def put(self, key: str, data: memoryview) -> None:
        descriptor = self._open(key, os.O_WRONLY | os.O_CREAT)
        try:
            write_at(descriptor, data, 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def get(self, key: str, into: memoryview) -> None:
        descriptor = self._open(key, os.O_RDONLY)
        try:
            if read_at(descriptor, into, 0) != len(into):
                raise OSError(f"{key}: a short read")
        finally:
            os.close(descriptor)

    def _open(self, key: str, flags: int) -> int:
        above, _, name = key.rpartition("/")
        with opened_folder(self._store.url, above) as folder:
            return self._store._open(name, folder, flags, direct=True)


class _Obstore:
    name = "obstore"

    def __init__(self, store: Any) -> None:
        self._store = store

    def put(self, key: str, data: memoryview) -> None:
        import obstore

        with self._store._mapped("write", key):
            obstore.put(self._store._client, self._store._name(key), data, use_multipart=False)

    def get(self, key: str, into: memoryview) -> None:
        import obstore

        with self._store._mapped("read", key):
            found = obstore.get_range(self._store._client, self._store._name(key), start=0, length=len(into))
        if len(found) != len(into):
            raise OSError(f"{key}: a short read")


class _Fsspec:
    def __init__(self, store: Any) -> None:
        self._store = store
        self.name = type(store._fs).__module__.partition(".")[0]

    def put(self, key: str, data: memoryview) -> None:
        chunks = {"chunksize": 5 * 2**30} if self.name in ("s3fs", "gcsfs") else {}
        with self._store._mapped("write", key):
            self._store._fs.pipe_file(self._store._path(key), bytes(data), **chunks)

    def get(self, key: str, into: memoryview) -> None:
        with self._store._mapped("read", key):
            found = self._store._fs.cat_file(self._store._path(key), start=0, end=len(into))
        if len(found) != len(into):
            raise OSError(f"{key}: a short read")
