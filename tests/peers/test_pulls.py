"""Workers that read together: each byte once from storage, right values whatever a peer does, and nobody stuck."""

from __future__ import annotations

import contextlib
import gc
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptflow.errors import CorruptCheckpointError, StorageError
from ckptflow.format.manifest import Manifest
from ckptflow.format.spec import TensorSpec, Wanted
from ckptflow.peers import link, loans, pulls
from ckptflow.peers.exchange import Terms
from ckptflow.peers.link import LinkError, admit
from ckptflow.peers.pulls import Exchange, Phase
from ckptflow.transfer import buffers
from ckptflow.transfer.buffers import BufferPool
from tests.interrupts import interrupted
from tests.peers.readers import Job, Reader, be_patient
from tests.transfer.helpers import FOLDER, ArraySource, DictStore, arrays_for, same_bits, write_checkpoint
from tests.transfer.test_buffers import all_free
from tests.waiting import HANG_S, until

SHARD_BYTES = 2**16
LENGTHS = (40_000, 16_000, 16_000, 9_000, 9_000, 9_000, 5_000, 3_000, 100, 100, 1)


class SlowStore(DictStore):
    """The same objects for all; each request takes a time."""

    def __init__(self, objects: dict[str, bytes], delay_s: float = 0.0) -> None:
        super().__init__()
        self.objects = objects
        self.delay_s = delay_s

    def get(self, key: str, into: memoryview, start: int = 0) -> int:
        time.sleep(self.delay_s)
        return super().get(key, into, start)


class Saved:
    """A checkpoint of some tensors."""

    def __init__(self, lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> None:
        specs = [TensorSpec(f"t{i}", "float32", (length,)) for i, length in enumerate(lengths)]
        self.arrays = arrays_for(specs, seed)
        store = DictStore()
        self.manifest: Manifest = write_checkpoint(
            store, [ArraySource(specs, self.arrays)], shard_bytes=SHARD_BYTES, small_bytes=2**12
        )
        self.objects = store.objects
        self.size_bytes = sum(array.nbytes for array in self.arrays)

    def reader(self, *, buffers: int = 4, delay_s: float = 0.0, buffer_bytes: int = SHARD_BYTES) -> Reader:
        pool = BufferPool(buffers * buffer_bytes, buffer_bytes)
        return Reader(SlowStore(self.objects, delay_s), pool, [Wanted(i) for i in range(len(self.arrays))])

    def is_right(self, reader: Reader) -> bool:
        assert reader.error is None, reader.error
        assert reader.target is not None
        assert set(reader.target.arrays) == {self.manifest.tensors[each.tensor].name for each in reader.wanted}
        return all(
            same_bits(reader.target.arrays[f"t{each.tensor}"], self.arrays[each.tensor]) for each in reader.wanted
        )

    def storage_bytes(self, readers: list[Reader]) -> int:
        return sum(reader.moved.storage_bytes for reader in readers)


@pytest.fixture(scope="module")
def saved() -> Saved:
    return Saved()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no peer that does not come: what hangs shows in the test's own limit."""
    be_patient(monkeypatch.setattr)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_each_byte_is_read_once_and_all_have_all(saved: Saved, world_size: int) -> None:
    readers = [saved.reader() for _ in range(world_size)]
    Job(saved.manifest, readers, (Phase.EARLY, Phase.REST), rounds=2).run()
    assert all(map(saved.is_right, readers))
    read_bytes = saved.storage_bytes(readers)
    assert 4 * saved.size_bytes <= read_bytes <= 4 * 1.05 * saved.size_bytes
    peer_bytes = sum(reader.moved.peer_bytes for reader in readers)
    assert read_bytes + peer_bytes >= 4 * world_size * saved.size_bytes
    assert all(reader.has_gone_on for reader in readers if reader.moved.peer_bytes)
    assert all(all_free(reader.pool) for reader in readers)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ckptflow-")]


@pytest.mark.usefixtures("patient")
def test_what_one_alone_wants_it_reads_alone_and_slices_in_parts_come_together(saved: Saved) -> None:
    readers = [saved.reader(buffers=6, buffer_bytes=2**14) for _ in range(3)]  # slices of two to five buffers
    readers[0].wanted = [Wanted(0), Wanted(1), Wanted(7)]
    readers[1].wanted = [Wanted(1), Wanted(2)]
    readers[2].wanted = [Wanted(2), Wanted(3), Wanted(1)]
    assert all(map(saved.is_right, Job(saved.manifest, readers).run()))
    once = sum(saved.arrays[number].nbytes for number in (0, 1, 2, 3, 7))
    assert once <= saved.storage_bytes(readers) <= once + 40 * 4096


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_nobody_waits_for_ever_in_the_smallest_pools(data: st.DataObject) -> None:
    """Limits of five minutes: were there a circle of workers that wait for one another, this would not end."""
    world_size = data.draw(st.integers(2, 4))
    one = Saved(tuple(data.draw(st.lists(st.integers(0, 4_000), min_size=1, max_size=60))))
    readers = []
    for _ in range(world_size):
        buffers, delay_ms = data.draw(st.integers(2, 5)), data.draw(st.sampled_from([0, 1, 4]))
        readers.append(one.reader(buffers=buffers, delay_s=delay_ms / 1000, buffer_bytes=2**14))
    with pytest.MonkeyPatch.context() as patch:
        be_patient(patch.setattr)
        Job(one.manifest, readers, (Phase.EARLY, Phase.VERIFY, Phase.REST)).run()
    assert all(map(one.is_right, readers))
    assert one.storage_bytes(readers) <= 3 * (one.size_bytes + 2 * 4096 * len(one.arrays))


@pytest.mark.usefixtures("patient")
def test_ranges_are_read_in_their_order(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that has a number, and no buffer yet, must not be overtaken by one that has both: of the buffers none
    would be left, and what is in them is asked for only after what is not."""
    held = threading.Event()
    real = buffers.BufferShare.acquire

    def acquire(share: buffers.BufferShare) -> buffers.Buffer:
        if threading.current_thread().name == "ckptflow-transfer-0" and not held.is_set():
            held.wait(0.2)  # long enough to be overtaken
            held.set()
        return real(share)

    monkeypatch.setattr(buffers.BufferShare, "acquire", acquire)
    readers = Job(saved.manifest, [saved.reader(buffer_bytes=2**14, buffers=4) for _ in range(2)]).run()
    assert all(map(saved.is_right, readers))


# ---- peers that are not what they should be


def fake(serve: Callable[[socket.socket, bytes], None], job: Job, worker: int) -> Callable[[Terms], Terms]:
    """The terms of a worker whose place is taken by `serve(connection, token)`, which gets each connection."""

    def change(terms: Terms) -> Terms:
        listening = socket.create_server(("127.0.0.1", 0))

        def accept() -> None:
            with listening, contextlib.suppress(TimeoutError):  # nobody comes any more: the test may be over
                listening.settimeout(HANG_S)
                while True:
                    connection, _ = listening.accept()
                    if not token:
                        until(lambda: job.terms[0].token, HANG_S)
                        token.append(job.terms[0].token)
                    with connection, contextlib.suppress(OSError, LinkError):
                        serve(connection, token[0])

        token: list[bytes] = []
        threading.Thread(target=accept, daemon=True).start()
        return msgspec.structs.replace(terms, address="127.0.0.1", port=listening.getsockname()[1])

    return change


def requests(connection: socket.socket) -> Iterator[tuple[int, int, int, int]]:
    connection.settimeout(HANG_S)
    while data := connection.recv(28, socket.MSG_WAITALL):
        yield struct.unpack(">QIQQ", data)


def wrong_bytes(connection: socket.socket, token: bytes, objects: dict[str, bytes], manifest: Manifest) -> None:
    """Those of another checkpoint, which has the same tensors."""
    admit(connection, token, 1, 3)
    for _, shard, begin, end in requests(connection):
        data = objects[FOLDER.key(manifest.shards[shard].name)][begin:end]
        connection.sendall(struct.pack(">BQ", 1, len(data)) + data)


def truncated(connection: socket.socket, token: bytes) -> None:
    admit(connection, token, 1, 3)
    for _, _, begin, end in requests(connection):
        connection.sendall(struct.pack(">BQ", 1, end - begin) + bytes((end - begin) // 2))
        return


def too_long(connection: socket.socket, token: bytes) -> None:
    admit(connection, token, 1, 3)
    for _ in requests(connection):
        connection.sendall(struct.pack(">BQ", 1, 2**60))


def no_answer(connection: socket.socket, token: bytes) -> None:
    admit(connection, token, 1, 3)
    for _ in requests(connection):
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def another_token(connection: socket.socket, token: bytes) -> None:
    admit(connection, bytes(32), 1, 3)


def says_nothing(connection: socket.socket, token: bytes) -> None:
    time.sleep(HANG_S)


def says_wait_for_ever(connection: socket.socket, token: bytes) -> None:
    admit(connection, token, 1, 3)
    for _ in requests(connection):
        while True:
            connection.sendall(struct.pack(">BQ", 0, 0))
            time.sleep(0.05)


def drips(connection: socket.socket, token: bytes) -> None:
    """Some bytes now and then, never all."""
    admit(connection, token, 1, 3)
    for _, _, begin, end in requests(connection):
        connection.sendall(struct.pack(">BQ", 1, end - begin))
        while True:
            connection.sendall(b"x")
            time.sleep(0.05)


LIARS = {
    "too_long": too_long,
    "truncated": truncated,
    "no_answer": no_answer,
    "another_token": another_token,
    "says_nothing": says_nothing,
    "says_wait_for_ever": says_wait_for_ever,
    "drips": drips,
}


@pytest.mark.parametrize("kind", [*LIARS, "another_checkpoint", "parts of it", "refuses"])
def test_whatever_a_peer_sends_the_others_have_right_values(
    kind: str, saved: Saved, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line in the log of each of the others, and what that one would have given comes from storage."""
    monkeypatch.setattr(link, "SILENT_S", 0.5)
    monkeypatch.setattr(link, "LONGEST_WAIT_S", 0.5)
    monkeypatch.setattr(link, "WAIT_EVERY_S", 0.1)
    monkeypatch.setattr(link, "SLOWEST_BYTES_PER_S", 2**30)
    monkeypatch.setattr(pulls, "Loans", partial(loans.Loans, late_s=0.2))
    how = {"buffers": 6, "buffer_bytes": 2**14} if kind == "parts of it" else {}  # slices of two to five buffers
    job = Job(saved.manifest, [saved.reader(**how) for _ in range(3)])
    if kind == "refuses":
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        job.readers[1].change = lambda terms: msgspec.structs.replace(terms, port=port)
    else:
        other = Saved(seed=1)
        serve = LIARS.get(kind) or partial(wrong_bytes, objects=other.objects, manifest=other.manifest)
        job.readers[1].change = fake(serve, job, 1)
    with caplog.at_level(logging.WARNING, "ckptflow"):
        job.run()
    assert all(map(saved.is_right, job.readers))
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if line.startswith("worker 1 (127.0.0.1:1)")]) == 2, lines
    assert all(all_free(reader.pool) for reader in job.readers)


def test_without_any_way_between_workers_all_comes_from_storage_with_one_warning_each(
    saved: Saved, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(link, "CONNECT_S", 0.1)
    monkeypatch.setattr(pulls, "Loans", partial(loans.Loans, late_s=0.2))

    def cut(address: object, timeout: float) -> socket.socket:
        time.sleep(timeout)
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", cut)
    with caplog.at_level(logging.WARNING, "ckptflow"):
        readers = Job(saved.manifest, [saved.reader() for _ in range(4)], rounds=2).run()
    assert all(map(saved.is_right, readers))
    assert len(caplog.records) == 4
    assert "cannot be reached" in caplog.text
    assert 'restore_from="storage"' in caplog.text


def test_damage_is_what_storage_gives_and_is_found_by_all(saved: Saved) -> None:
    """The owner of what is damaged says so at once, and each of the others finds it by itself."""
    one = Saved()
    name = one.manifest.shards[0].name
    data = bytearray(one.objects[FOLDER.key(name)])
    data[-5] ^= 1
    one.objects[FOLDER.key(name)] = bytes(data)
    readers = Job(one.manifest, [one.reader() for _ in range(3)]).run()
    for reader in readers:
        assert isinstance(reader.error, CorruptCheckpointError)
        assert name in str(reader.error)
        assert all_free(reader.pool)


class Refusing(SlowStore):
    """Has no more for whoever asks after so many requests."""

    def __init__(self, objects: dict[str, bytes], requests: int) -> None:
        super().__init__(objects)
        self.left = requests

    def get(self, key: str, into: memoryview, start: int = 0) -> int:
        self.left -= 1
        if self.left < 0:
            raise StorageError("no more")
        return super().get(key, into, start)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is waited for for long who does not come for what is kept."""
    monkeypatch.setattr(pulls, "Loans", partial(loans.Loans, late_s=0.2))


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("requests", [0, 1])
def test_one_whose_storage_fails_fails_alone(saved: Saved, requests: int) -> None:
    readers = [saved.reader() for _ in range(3)]
    readers[1].store = Refusing(saved.objects, requests)
    Job(saved.manifest, readers).run()
    assert isinstance(readers[1].error, StorageError)
    assert saved.is_right(readers[0])
    assert saved.is_right(readers[2])
    assert all(all_free(reader.pool) for reader in readers)


@pytest.mark.usefixtures("hurried")
def test_one_that_leaves_holds_up_nobody(saved: Saved) -> None:
    """Closed in the middle, as by Ctrl-C: its connections end, and nothing listens any more."""
    readers = [saved.reader() for _ in range(3)]
    ports: list[int] = []

    class Leaving(SlowStore):
        def get(self, key: str, into: memoryview, start: int = 0) -> int:
            raise KeyboardInterrupt

    readers[2].store = Leaving(saved.objects)
    readers[2].change = lambda terms: ports.append(terms.port) or terms  # type: ignore[func-returns-value]
    readers[2].meanwhile = lambda exchange, phase: exchange.close()
    Job(saved.manifest, readers).run()
    assert saved.is_right(readers[0])
    assert saved.is_right(readers[1])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ports[0]))


@pytest.mark.usefixtures("hurried")
def test_an_interrupt_leaves_nothing_behind(saved: Saved) -> None:
    """Ctrl-C at some of the lines that a worker's main thread runs while it reads with another one."""

    def attempt(at: int | None) -> int:
        job = Job(saved.manifest, [saved.reader(), saved.reader()])
        barrier = threading.Barrier(2)

        def other() -> None:
            with contextlib.suppress(threading.BrokenBarrierError):
                job.work(1, barrier)

        thread = threading.Thread(target=other)
        thread.start()
        count = interrupted(lambda: job.work(0, barrier), at).line_count
        barrier.abort()
        thread.join()
        gc.collect()
        until(lambda: not [each for each in threading.enumerate() if each.name.startswith("ckptflow-")], HANG_S)
        assert all(all_free(reader.pool) for reader in job.readers)
        return count

    count = attempt(None)
    for at in range(count // 16, count, count // 8):
        attempt(at)


def test_strangers_get_nothing_and_hold_up_nobody(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many silent connections as are let in, and more, are there before the workers come."""
    monkeypatch.setattr(link, "SILENT_S", 0.3)
    monkeypatch.setattr(pulls, "Loans", partial(loans.Loans, late_s=0.2))
    strangers, greetings = list[socket.socket](), list[bytes]()
    job = Job(saved.manifest, [saved.reader() for _ in range(2)])

    def crowd(exchange: Exchange, phase: int | None) -> None:
        address = "127.0.0.1", job.terms[1].port
        strangers.append(socket.create_connection(address, HANG_S))
        strangers[0].sendall(bytes(68))  # a greeting without the token
        with contextlib.suppress(ConnectionError):
            while data := strangers[0].recv(1000):
                greetings.append(data)
        strangers.extend(socket.create_connection(address, HANG_S) for _ in range(40))

    job.readers[0].meanwhile = crowd
    job.run()
    assert all(map(saved.is_right, job.readers))
    assert len(b"".join(greetings)) == 48  # the magic word and a nonce
    for stranger in strangers:
        stranger.close()


def test_small_pools_share_nothing(saved: Saved) -> None:
    readers = [saved.reader(), saved.reader(buffers=1)]
    Job(saved.manifest, readers).run()
    assert all(map(saved.is_right, readers))
    assert [reader.moved.peer_bytes for reader in readers] == [0, 0]
    assert np.all([reader.moved.storage_bytes >= saved.size_bytes for reader in readers])
