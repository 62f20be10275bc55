"""A cluster whose workers are threads of this process, and whose messages meet at a barrier."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

WORKERS = 3
TIMEOUT_S = 60.0  # a worker that skips an exchange breaks the barrier: the test fails, and does not hang


class Exchange:
    """Messages that meet at a barrier."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.messages: list[bytes] = [b""] * world_size
        self.barrier = threading.Barrier(world_size)


class Member:
    """One worker of a cluster of threads."""

    def __init__(self, exchange: Exchange, worker: int) -> None:
        self._exchange, self.worker = exchange, worker

    @property
    def world_size(self) -> int:
        return self._exchange.world_size

    is_lost = False
    carries_much = True

    @property
    def is_chief(self) -> bool:
        return self.worker == 0

    def exchange(self, message: bytes, call: str) -> list[bytes]:
        self._exchange.messages[self.worker] = message
        self._exchange.barrier.wait(TIMEOUT_S)
        messages = list(self._exchange.messages)
        self._exchange.barrier.wait(TIMEOUT_S)
        return messages

    def part(self) -> None: ...

    def leave(self, call: str, error: BaseException) -> None:
        self._exchange.barrier.abort()

    def working(self, doing: str) -> AbstractContextManager[None]:
        return nullcontext()


def together(work: Callable[[Member], object], world_size: int = WORKERS) -> list[object]:
    """Every worker's result, or what it raised."""
    exchange = Exchange(world_size)

    def run(worker: int) -> object:
        try:
            return work(Member(exchange, worker))
        except BaseException as error:
            return error

    with ThreadPoolExecutor(world_size) as threads:
        return list(threads.map(run, range(world_size)))
