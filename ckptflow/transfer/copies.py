"""A shard copied inside the storage, or not: what cannot be copied is written anew."""

from __future__ import annotations

import logging

from ckptflow.errors import StorageError
from ckptflow.storage.store import Store

logger = logging.getLogger("ckptflow.transfer")


def copy_shard(store: Store, source_key: str, key: str, version: str) -> str | None:
    """Copies `source_key` in that `version` to `key`, whole and durable; returns the version of the copy.

    None where it could not be copied, for whatever reason of the storage's: then it must be written.
    """
    try:
        return store.copy(source_key, key, version)
    except StorageError as error:
        logger.debug("%s/%s is written anew: it could not be copied from %s (%s)", store.url, key, source_key, error)
        return None
