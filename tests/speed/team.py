"""Several workers of one job as threads of this process: real managers, whose one exchange is a barrier."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
import tensorflow as tf

import ckptflow.job.session
from ckptflow.events import Tell, tell_nobody
from ckptflow.peers.cluster import Cluster
from ckptflow.storage.opening import open_store
from ckptflow.storage.store import Store
from tests.speed.stores import MeasuredStore
from tests.waiting import HANG_S

_T = TypeVar("_T")


class _Meeting:
    """A worker that skips an exchange breaks the barrier after a while: the test fails, and does not hang."""

    def __init__(self, world_size: int) -> None:
        self.messages: list[bytes] = [b""] * world_size
        self.barrier = threading.Barrier(world_size)


@dataclass(frozen=True)
class _Member(Cluster):
    meeting: Any = None
    carries_much = True

    def exchange(self, message: bytes, call: str) -> list[bytes]:
        self.meeting.messages[self.worker] = message
        self.meeting.barrier.wait(HANG_S)
        messages = list(self.meeting.messages)
        self.meeting.barrier.wait(HANG_S)
        return messages

    def storage_goes_on(self) -> None: ...

    def begin_wait(self) -> Callable[[Sequence[int]], dict[int, str]]:
        return lambda workers: {}

    def part(self) -> None: ...

    def leave(self, call: str, error: BaseException) -> None:
        self.meeting.barrier.abort()


class Team:
    """Workers that run one program together; every manager that they make works on a store that is measured."""

    def __init__(self, patch: pytest.MonkeyPatch, storage: Callable[[str], Store] | None = None) -> None:
        """`storage` opens what the managers' URLs stand for; default: what they say."""
        self.stores: dict[int, MeasuredStore] = {}  # each worker's newest
        self._member = threading.local()
        self._storage = storage
        patch.setattr(ckptflow.job.session, "open_store", self._open)
        patch.setattr(ckptflow.job.session, "find_cluster", lambda *_, **__: self._member.now)

    def run(self, world_size: int, work: Callable[[int], _T]) -> list[_T]:
        """What `work(worker)` returns on each worker; raises what one of them raised."""
        meeting = _Meeting(world_size)
        self.stores.clear()

        def run_one(worker: int) -> _T:
            strategy = tf.distribute.get_strategy()
            self._member.now = _Member(worker, world_size, strategy, meeting=meeting)
            try:
                return work(worker)
            except BaseException:
                meeting.barrier.abort()
                raise

        with ThreadPoolExecutor(world_size) as threads:
            running = [threads.submit(run_one, worker) for worker in range(world_size)]
        errors = [error for future in running if (error := future.exception()) is not None]
        errors.sort(key=lambda error: isinstance(error, threading.BrokenBarrierError))
        if errors:
            raise errors[0]
        return [future.result() for future in running]

    def forget(self) -> None:
        """Counts from here on; call it while no worker saves or restores."""
        for store in self.stores.values():
            store.forget()

    def _open(self, url: str, storage_options: dict[str, Any] | None = None, tell: Tell = tell_nobody) -> Store:
        store = MeasuredStore(self._storage(url) if self._storage else open_store(url, storage_options, tell))
        self.stores[self._member.now.worker] = store
        return store
