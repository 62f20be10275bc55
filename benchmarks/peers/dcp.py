"""PyTorch's `torch.distributed.checkpoint` on the CPU, as one process."""

from __future__ import annotations

from typing import Any

from benchmarks.meters import fsync_all
from benchmarks.peers.base import Digests, Peer, Places, Point


class DistributedCheckpoint(Peer):
    """`async_save` and `load`; its writer fsyncs its files itself."""

    note = "PyTorch tensors on the CPU, one process in a gloo group; host memory for the copy is taken once"

    def __init__(self, point: Point) -> None:
        import torch
        import torch.distributed as dist
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        store = dist.HashStore()
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        self._torch, self._dist, self._dcp = torch, dist, dcp
        self._point, self._places = point, Places(point.url)
        self._stager = DefaultStager(StagingOptions(False, False, False, False))  # what is not for an accelerator
        self._state = {f"v{i}": torch.randn(point.element_count) for i in range(point.variable_count)}
        self._digests = Digests(lambda: list(self._state.values()))
        self._future: Any = None

    def change(self) -> None:
        for value in self._state.values():
            value.mul_(1.5).add_(1.0)
        self._digests.remember()

    def save(self, round_number: int) -> None:
        place = self._places.next()
        self._future = self._dcp.async_save(self._state, checkpoint_id=place, async_stager=self._stager)

    def finish(self) -> None:
        self._future.result()
        fsync_all(self._point.url)

    def tidy(self) -> None:
        self._places.remove_old()

    def spoil(self) -> None:
        for value in self._state.values():
            value.zero_()

    def restore(self) -> None:
        self._dcp.load(self._state, checkpoint_id=self._places.now)

    def check(self) -> None:
        self._digests.compare()

    def close(self) -> None:
        self._dist.destroy_process_group()
