"""A store that counts bytes as well as requests."""

from __future__ import annotations

import threading
from collections import Counter

from ckptflow.format.layout import MANIFEST_NAME, parse_claim_key, parse_folder, parse_receipt_name, parse_shard_name
from ckptflow.storage.store import Store
from ckptflow.testing import CountingStore


class MeasuredStore(CountingStore):
    """`store` with the bytes noted that each key was read and written with."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.read_bytes: Counter[str] = Counter()
        self.written_bytes: Counter[str] = Counter()
        self._guard = threading.Lock()

    def put(self, key: str, data: memoryview) -> str | None:
        version = super().put(key, data)
        with self._guard:
            self.written_bytes[key] += data.nbytes
        return version

    def get(self, key: str, into: memoryview, start: int = 0) -> int:
        count = super().get(key, into, start)
        with self._guard:
            self.read_bytes[key] += count
        return count

    def kinds(self, verb: str) -> Counter[str]:
        """How many calls of `verb` there were by what they were for: shard, receipt, manifest, else the key."""
        return Counter(kind_of(key) for key in self.keys(verb))

    def shard_bytes_read(self) -> int:
        """The bytes that were asked of shards."""
        return sum(count for key, count in self.read_bytes.items() if kind_of(key) == "shard")

    def forget(self) -> None:
        """Counts from here on."""
        self.calls.clear()
        self.read_bytes.clear()
        self.written_bytes.clear()


def kind_of(key: str) -> str:
    """What an object is, by its name; "folder" for a prefix that is one checkpoint's."""
    name = key.rpartition("/")[2]
    if key.endswith("/") and parse_folder(key[:-1]):
        return "folder"
    if parse_shard_name(name):
        return "shard"
    if parse_receipt_name(name):
        return "receipt"
    if parse_claim_key(key):
        return "claim"
    return "manifest" if name == MANIFEST_NAME else key
