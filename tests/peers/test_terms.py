"""What workers say before they read together, addresses at which nobody of the job answers, and peers that are slow."""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
from functools import partial

import msgspec
import pytest

from ckptflow.errors import PeerError
from ckptflow.peers import link, loans, pulls
from ckptflow.peers.link import TOKEN_BYTES, ConnectError, Link, LinkError
from tests.peers.readers import Job
from tests.peers.test_pulls import Saved, drips, fake


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("buffer_bytes", 1, "4 buffers of 1 bytes"), ("port", 70_000, "port 70000"), ("port", -1, "port -1")],
)
def test_terms_that_make_no_sense_are_refused_by_all(field: str, value: int, said: str) -> None:
    saved = Saved()
    readers = [saved.reader() for _ in range(2)]
    readers[1].change = lambda terms: msgspec.structs.replace(terms, **{field: value})
    with pytest.raises(PeerError, match=rf"worker 1 \(127.0.0.1:1\) says that it has {said}, which cannot be"):
        Job(saved.manifest, readers).run()


@pytest.mark.parametrize(
    ("address", "port"), [("127.0.0.1", 70_000), ("a" * 70 + ".example", 80), ("x\0y", 80), ("a..b", 80)]
)
def test_an_address_that_is_none_cannot_be_reached(address: str, port: int) -> None:
    with pytest.raises(ConnectError, match="cannot be reached at"):
        Link.connect(address, port, bytes(TOKEN_BYTES), 0, 1)


def test_something_between_workers_that_accepts_and_says_nothing_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of each worker, whatever the number of the others."""
    count = 6
    monkeypatch.setattr(link, "SILENT_S", 0.2)
    monkeypatch.setattr(pulls, "Loans", partial(loans.Loans, late_s=0.2))
    saved = Saved()
    readers = [saved.reader() for _ in range(count)]
    with socket.create_server(("127.0.0.1", 0), backlog=100) as deaf, caplog.at_level(logging.WARNING, "ckptflow"):
        port = deaf.getsockname()[1]
        for reader in readers:
            reader.change = lambda terms: msgspec.structs.replace(terms, port=port)
        Job(saved.manifest, readers).run()
    assert all(map(saved.is_right, readers))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == count, lines
    assert all("has sent nothing for 0.2 s" in line and 'restore_from="storage"' in line for line in lines), lines


def test_a_peer_that_is_slower_than_storage_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It sends a byte now and then, which is enough where nothing else is faster."""
    monkeypatch.setattr(link, "SILENT_S", 2.0)
    monkeypatch.setattr(link, "SLOWEST_BYTES_PER_S", 0)
    monkeypatch.setattr(pulls, "Loans", partial(loans.Loans, late_s=0.2))
    saved = Saved()
    job = Job(saved.manifest, [saved.reader() for _ in range(3)])
    job.readers[1].change = fake(drips, job, 1)
    with caplog.at_level(logging.WARNING, "ckptflow"):
        job.run()
    assert all(map(saved.is_right, job.readers))
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if line.startswith("worker 1 (127.0.0.1:1) has sent")]) == 2, lines


def test_many_short_transfers_are_judged_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is over before the first seconds of it are."""
    monkeypatch.setattr(link, "SILENT_S", 0.3)
    monkeypatch.setattr(link, "SLOWEST_BYTES_PER_S", 0)
    ours, theirs = socket.socketpair()
    asked: list[int] = []

    def give() -> None:
        while data := theirs.recv(28, socket.MSG_WAITALL):
            asked.append(1)
            theirs.sendall(struct.pack(">BQ", 1, 2))
            for _ in range(2):
                time.sleep(0.05)
                theirs.sendall(data[:1])

    thread = threading.Thread(target=give)
    with theirs, ours:
        thread.start()
        came = Link(ours)

        def pull_all() -> None:
            for begin in range(0, 200, 2):
                key, into = loans.Key(0, 0, begin, begin + 2), memoryview(bytearray(2))
                came.pull(key, into, lambda: False, least_bytes_per_s=lambda: 1e6)

        with pytest.raises(LinkError, match="has sent"):
            pull_all()
        link.shut(ours)
        thread.join()
    assert asked
