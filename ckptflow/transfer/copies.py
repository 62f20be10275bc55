"""A shard that is made of an older one, inside the storage: no byte of it passes through this process."""

from __future__ import annotations

import logging

from ckptflow.errors import StorageError
from ckptflow.storage.store import Store

logger = logging.getLogger("ckptflow")


def copy_shard(store: Store, source_key: str, key: str, version: str) -> str | None:
    """Makes `key` of the bytes that `source_key` has in that version; returns the version of what was made.

    None: there is no copy to rely on, and the shard is to be written anew. That is so whatever the storage says, since
    a copy must never fail a save; what else goes wrong is raised, as that the store was closed. A copy that was not
    answered may still land once the shard was written anew: it brings the same bytes.
    """
    try:
        copied = store.copy(source_key, key, version)
    except StorageError as error:
        logger.debug("%s/%s is written anew: %s", store.url, key, str(error))
        return None
    if copied is None:
        logger.debug("%s/%s is written anew: the storage does not say which version it is", store.url, key)
    return copied
