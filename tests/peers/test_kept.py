"""What is kept for workers that do not come leaves a worker enough to go on; who fails says so to those who wait."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from ckptflow.errors import CorruptCheckpointError
from ckptflow.job.live_state import LiveState
from ckptflow.job.loading import Loading
from ckptflow.peers import loans, pulls
from ckptflow.peers.cluster import Cluster
from ckptflow.peers.pulls import Exchange, Phase
from ckptflow.peers.watch import Peer
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.reader import read_tensors
from ckptflow.transfer.streams import streams_for
from tests.peers.readers import Job, Reader, be_patient
from tests.peers.test_pulls import Saved
from tests.transfer.helpers import FOLDER, ArrayTarget
from tests.transfer.test_buffers import all_free
from tests.waiting import HANG_S

LENGTHS = (16_000, 16_000)  # a range of each
PEERS = [Peer("", "127.0.0.1:1")] * 2


def refuse(address: object, timeout: float) -> socket.socket:
    raise ConnectionRefusedError("a firewall")


@pytest.mark.parametrize("buffers", [2, 4])
@pytest.mark.parametrize("own_ranges", [1, 2])
def test_who_never_comes_takes_no_buffer_for_ever(
    buffers: int, own_ranges: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept from the first phases is all of the pool when a later one, or a worker by itself, begins to read."""
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(pulls, "Loans", partial(loans.Loans, late_s=0.1))
    saved = Saved(LENGTHS * own_ranges)
    readers = [saved.reader(buffers=buffers) for _ in range(2)]
    Job(saved.manifest, readers, (Phase.EARLY, Phase.VERIFY, None, Phase.REST)).run()
    assert all(map(saved.is_right, readers))
    assert all(all_free(reader.pool) for reader in readers)


@pytest.fixture
def heeded() -> Iterator[None]:
    """SIGINT, which a shell's background jobs ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("phase", [Phase.REST, None])
def test_ctrl_c_ends_the_wait_for_a_buffer(phase: Phase | None, monkeypatch: pytest.MonkeyPatch) -> None:
    saved, is_waited = Saved(LENGTHS), threading.Event()
    reader, other = saved.reader(buffers=2), saved.reader(buffers=2)
    monkeypatch.setattr(pulls.Reading, "press", lambda reading: is_waited.set())
    held = [reader.pool.acquire() for _ in range(2)]

    def interrupt() -> None:
        if is_waited.wait(HANG_S):
            signal.pthread_kill(cast(int, threading.main_thread().ident), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with Exchange(0, PEERS, reader.pool) as exchange, Exchange(1, PEERS, other.pool) as unread:
        terms = [each.terms(saved.manifest, reader.wanted, reader.wanted) for each in (exchange, unread)]
        exchange.share(saved.manifest, terms)
        with pytest.raises(KeyboardInterrupt):
            read(reader, saved, exchange, phase)
    for buffer in held:
        reader.pool.release(buffer)
    assert all_free(reader.pool)


def read(reader: Reader, saved: Saved, exchange: Exchange, phase: Phase | None) -> int:
    """How many bytes came from storage."""
    with exchange.reading(phase) as sharing:
        target = ArrayTarget(saved.manifest)
        moved = read_tensors(reader.store, FOLDER, saved.manifest, reader.wanted, target, reader.pool, sharing=sharing)
    return moved.storage_bytes


class Stub(ArrayTarget):
    """A state that takes all there is, in one phase or in two; its rehearsal may fail."""

    missing: tuple[str, ...] = ()

    def __init__(self, saved: Saved, reader: Reader, rehearse: Callable[[], None]) -> None:
        super().__init__(saved.manifest)
        self.early = self.rest = self.wanted = reader.wanted
        self.rehearse = rehearse

    def shared(self) -> list[str]:
        return []


@contextmanager
def loading_of(saved: Saved, reader: Reader, rehearse: Callable[[], None] = lambda: None) -> Iterator[Loading]:
    """That of worker 0 of two."""
    live: Any = SimpleNamespace(match=lambda *_, **__: Stub(saved, reader, rehearse), attached=())
    loading = Loading(
        cast(LiveState, live),
        reader.store,
        reader.pool,
        streams_for(reader.store, reader.pool),
        partial=True,
        rename=None,
        look=lambda: None,
        readers=cast(Cluster, SimpleNamespace(worker=0, peers=PEERS, storage_goes_on=lambda: None)),
    )
    with loading.together():
        yield loading


def begin(loading: Loading, other: Exchange, saved: Saved, reader: Reader) -> None:
    terms = [loading.divide(saved.manifest), other.terms(saved.manifest, reader.wanted, reader.wanted)]
    loading.share(saved.manifest, terms)
    other.share(saved.manifest, terms)


@pytest.mark.parametrize("step", ["check", "load"])
def test_who_fails_before_it_reads_says_so_at_once(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of five minutes: one that waited for what never comes would not end."""
    be_patient(monkeypatch.setattr)
    saved = Saved(LENGTHS)
    reader, of_other = saved.reader(), saved.reader()

    def fail() -> None:
        raise RuntimeError("from the test")

    with loading_of(saved, reader, fail) as loading, Exchange(1, PEERS, of_other.pool) as other:
        begin(loading, other, saved, reader)
        if step == "check":
            monkeypatch.setattr(loading, "_read", lambda *_, **__: None)
            with pytest.raises(RuntimeError):
                loading.check(saved.manifest)
        else:
            reader.store.objects = {}
            with pytest.raises(CorruptCheckpointError):
                loading.load(FOLDER, saved.manifest, None)
        assert read(of_other, saved, other, Phase.EARLY) >= saved.size_bytes


@pytest.mark.parametrize("is_checked", [True, False])
def test_what_one_worker_checks_all_check(is_checked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has checked it before would have nothing for one that has met damage of its own, and checks it again."""
    saved = Saved(LENGTHS)
    reader, of_other = saved.reader(), saved.reader()
    phases: list[Phase] = []
    with loading_of(saved, reader) as loading, Exchange(1, PEERS, of_other.pool) as other:
        monkeypatch.setattr(loading, "_read", lambda *_, phase=None, **__: phases.append(phase))
        begin(loading, other, saved, reader)
        loading.check(saved.manifest)
        assert phases == [Phase.EARLY, Phase.VERIFY]
        own = loading.divide(saved.manifest)
        assert own.is_checked
        loading.share(saved.manifest, [own, replace(own, is_checked=is_checked)])
        loading.check(saved.manifest)
        assert len(phases) == (2 if is_checked else 4)


def test_a_checkpoint_is_looked_through_with_all_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the other worker, which has not come for it, nobody gets anything any more."""
    be_patient(monkeypatch.setattr)
    saved = Saved(LENGTHS[:1])  # worker 0 reads it, in both phases
    reader = saved.reader(buffers=2)
    with loading_of(saved, reader) as loading, Exchange(1, PEERS, BufferPool(2**17, 2**16)) as other:
        begin(loading, other, saved, reader)
        loading.check(saved.manifest)
        assert reader.pool.acquire_now() is None  # all are kept
        assert loading.find_damage(FOLDER, saved.manifest) == ""
    assert all_free(reader.pool)
