"""The client below a store, with nothing of ours between: the raw baseline of measurements. For nothing else.

No retries, no checksums of ours, and on a disk no names moved and no folders made durable.
"""

from __future__ import annotations

from typing import Protocol

from ckptflow.errors import UsageError
from ckptflow.storage.store import Store


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
    """What `store.raw()` gives. Raises `UsageError` for a store that has no such method."""
    raw = getattr(store, "raw", None)
    if raw is None:
        raise UsageError(f"{store.url}: nothing is known of what is below this store")
    client: RawClient = raw()
    return client
