"""Several workers of one job as threads, that read one checkpoint together through real connections on loopback."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ckptflow.format.manifest import Manifest
from ckptflow.format.spec import Wanted
from ckptflow.peers import link, loans, pulls
from ckptflow.peers.exchange import Terms
from ckptflow.peers.pulls import Exchange, Phase
from ckptflow.peers.watch import Peer
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.reader import read_tensors
from ckptflow.transfer.sharing import Moved
from tests.transfer.helpers import FOLDER, ArrayTarget, DictStore
from tests.waiting import HANG_S


def be_patient(replace: Callable[[object, str, Any], None] = setattr) -> None:
    """A busy machine is no peer that does not come: what hangs shows in the test's own limit."""
    replace(link, "SILENT_S", HANG_S)
    replace(link, "CONNECT_S", HANG_S)
    replace(link, "LONGEST_WAIT_S", HANG_S)
    replace(pulls, "Loans", partial(loans.Loans, late_s=HANG_S, stuck_s=HANG_S))


@dataclass
class Reader:
    """One worker: its way to the storage, its memory, and what it got."""

    store: DictStore
    pool: BufferPool
    wanted: Sequence[Wanted]
    moved: Moved = field(default_factory=Moved)
    has_gone_on: bool = False  # said while something came of another worker
    target: ArrayTarget | None = None
    error: BaseException | None = None
    meanwhile: Callable[[Exchange, int | None], None] = lambda exchange, phase: None
    change: Callable[[Terms], Terms] = lambda terms: terms  # of what it tells the others


@dataclass
class Job:
    """Readers that begin each phase together."""

    manifest: Manifest
    readers: list[Reader]
    phases: Sequence[Phase | None] = (Phase.REST,)  # without one each reads by itself
    rounds: int = 1
    terms: list[Terms] = field(init=False)

    def __post_init__(self) -> None:
        self.terms = [Terms()] * len(self.readers)

    def run(self) -> list[Reader]:
        """Returns when all have ended; `error` is what one raised."""
        barrier = threading.Barrier(len(self.readers))
        with ThreadPoolExecutor(len(self.readers)) as threads:
            for running in [threads.submit(self.work, number, barrier) for number in range(len(self.readers))]:
                running.result()
        return self.readers

    def work(self, worker: int, barrier: threading.Barrier) -> None:
        """What one of them does, in the thread that calls it."""
        reader = self.readers[worker]
        peers = [Peer("", "127.0.0.1:1")] * len(self.readers)

        def goes_on() -> None:
            reader.has_gone_on = True

        with Exchange(worker, peers, reader.pool, goes_on) as exchange:
            for _ in range(self.rounds):
                wanted = reader.wanted
                self.terms[worker] = reader.change(exchange.terms(self.manifest, wanted, wanted))
                barrier.wait(HANG_S)
                exchange.share(self.manifest, self.terms)
                barrier.wait(HANG_S)
                for phase in self.phases:
                    reader.meanwhile(exchange, phase)
                    self._read(reader, exchange, phase)
                barrier.wait(HANG_S)

    def _read(self, reader: Reader, exchange: Exchange, phase: Phase | None) -> None:
        reader.target = ArrayTarget(self.manifest)
        try:
            with exchange.reading(phase) as sharing:
                moved = read_tensors(
                    reader.store, FOLDER, self.manifest, reader.wanted, reader.target, reader.pool, sharing=sharing
                )
            reader.moved = Moved(*(a + b for a, b in zip(reader.moved, moved, strict=True)))
        except BaseException as error:
            reader.error = error
