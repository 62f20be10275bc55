"""ckptflow, with its defaults unless a point says otherwise."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.base import Point
from benchmarks.peers.tensorflow import OnVariables


class Ckptflow(OnVariables):
    """A CheckpointManager that keeps one checkpoint: fsynced on a disk, crc32c of every byte written and checked."""

    note = "durable and checksummed; the checkpoint before is pruned after the save is acknowledged"
    client: str | None = None

    def __init__(self, point: Point) -> None:
        import ckptflow
        from ckptflow import manager
        from ckptflow.storage.store import open_store
        from ckptflow.testing import CountingStore

        super().__init__(point)
        stores: list[Any] = []

        def open_counted(url: str, storage_options: dict[str, Any] | None = None) -> Any:
            stores.append(CountingStore(open_store(url, storage_options)))
            return stores[-1]

        vars(manager)["open_store"] = open_counted  # requests are counted where the manager makes them
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
        self._manager.restore_latest()

    def save(self, round_number: int) -> None:
        self._store.calls.clear()
        self._pending = self._manager.save(round_number)

    def finish(self) -> None:
        self._pending.result()

    def tidy(self) -> None:
        self._manager.wait()
        self._saved = self._count()

    def restore(self) -> None:
        self._store.calls.clear()
        self._manager.restore_latest()

    def counters(self) -> dict[str, float]:
        return {"save_requests": self._saved, "restore_requests": self._count()}

    def close(self) -> None:
        self._manager.close()

    def _count(self) -> int:
        return len(self._store.calls)


class CkptflowFast(Ckptflow):
    """Objects through obstore (the extra `fast`)."""

    client = "obstore"


class CkptflowFsspec(Ckptflow):
    """Objects through s3fs or gcsfs."""

    client = "fsspec"
