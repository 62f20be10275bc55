"""Shards that are made of older ones, inside the storage: no byte of them passes through this process."""

from __future__ import annotations

import logging
import threading

from ckptflow.errors import StorageError, StorageUnavailableError
from ckptflow.storage.store import Store
from ckptflow.storage.wrappers import can_copy

logger = logging.getLogger("ckptflow")

_FAILURES = 4  # that more of the last copies may fail than succeed before no other is asked for


class Copies:
    """The copies of one save. Thread-safe.

    A storage that takes writes and no copies, or few, as one that throttles them, is not asked for each of them.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._balance = _FAILURES  # no more copies below zero

    def copy(self, source_key: str, key: str, version: str) -> str | None:
        """Makes `key` of the bytes that `source_key` has in that version; returns the version of what was made.

        None: there is no copy to rely on, and the shard is to be written anew. That is so whatever the storage says,
        since a copy must never fail a save; what else goes wrong is raised, as that the store was closed. A copy that
        was not answered may still land once the shard was written anew: it brings the same bytes.
        """
        store = self._store
        if self._balance < 0 or not can_copy(store):
            return None
        try:
            copied = store.copy(source_key, key, version)
        except StorageError as error:
            logger.debug("%s/%s is written again: %s", store.url, key, str(error))
            # On a disk a refusal takes no time, and says nothing of the next file: each has an age of its own.
            self._count(-(store.is_object_store or isinstance(error, StorageUnavailableError)))
            return None
        if copied is None:
            logger.debug("%s/%s is written again: the storage does not return its version", store.url, key)
        self._count(1 if copied is not None else -1)
        return copied

    def _count(self, change: int) -> None:
        with self._lock:
            self._balance = min(_FAILURES, self._balance + change)
