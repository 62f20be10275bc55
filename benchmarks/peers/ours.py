"""ckptflow, with its defaults unless a point says otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.peers.base import Point
from benchmarks.peers.tensorflow import OnVariables
from ckptflow.events import Tell, tell_nobody
from ckptflow.storage.opening import open_store
from ckptflow.storage.store import Store
from ckptflow.testing import CountingStore


class Counted(CountingStore):
    """Counts requests, and the bytes that they carry there and back."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.sent: list[int] = []  # lists, as threads append to them safely
        self.read: list[int] = []

    def put(self, key: str, data: memoryview) -> str | None:
        version = super().put(key, data)
        self.sent.append(len(data))
        return version

    def create(self, key: str, data: memoryview) -> None:
        super().create(key, data)
        self.sent.append(len(data))

    def get(self, key: str, into: memoryview, start: int = 0) -> int:
        read_bytes = super().get(key, into, start)
        self.read.append(read_bytes)
        return read_bytes

    def clear(self) -> None:
        for noted in (self.calls, self.sent, self.read):
            noted.clear()


def count_calls() -> list[Counted]:
    """The stores that managers open from here on, each counted: requests are counted where a manager makes them."""
    from ckptflow.job import session

    stores: list[Counted] = []

    def open_counted(url: str, storage_options: dict[str, Any] | None = None, tell: Tell = tell_nobody) -> Store:
        stores.append(Counted(open_store(url, storage_options, tell)))
        return stores[-1]

    vars(session)["open_store"] = open_counted
    return stores


class Ckptflow(OnVariables):
    """A CheckpointManager that keeps one checkpoint: fsynced on a disk, crc32c of every byte written and checked."""

    note = "durable and checksummed; the checkpoint before is pruned after the save is acknowledged"
    client: str | None = None

    def __init__(self, point: Point) -> None:
        import ckptflow

        super().__init__(point)
        stores = count_calls()
        options = {**point.options, **({"client": self.client} if self.client else {})}
        self._manager = ckptflow.CheckpointManager(
            f"{point.url}/run",
            {"m": self.variables.module},
            keep=ckptflow.KeepLast(1),
            storage_options=options or None,
            **point.settings,
        )
        self._store = stores[0]
        self._pending: Any = None
        self._saved: Sequence[int] = (0, 0)
        self._manager.restore_latest()

    def save(self, round_number: int) -> None:
        self._store.clear()
        self._pending = self._manager.save(round_number)

    def finish(self) -> None:
        self._pending.result()

    def tidy(self) -> None:
        self._manager.wait()
        self._saved = (len(self._store.calls), sum(self._store.sent))

    def restore(self) -> None:
        self._store.clear()
        self._manager.restore_latest()

    def counters(self) -> dict[str, float]:
        requests, sent_bytes = self._saved
        return {
            "save_requests": requests,
            "save_sent_bytes": sent_bytes,
            "restore_requests": len(self._store.calls),
            "restore_read_bytes": sum(self._store.read),
        }

    def close(self) -> None:
        self._manager.close()


class CkptflowFast(Ckptflow):
    """Objects through obstore (the extra `fast`)."""

    client = "obstore"


class CkptflowFsspec(Ckptflow):
    """Objects through s3fs or gcsfs."""

    client = "fsspec"
