"""Descriptors that are scarce: a restore does without other workers, and never fails for what these take."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
import threading
from collections.abc import Iterator

import pytest

from ckptflow.format.spec import Wanted
from ckptflow.peers import descriptors
from ckptflow.peers.exchange import Terms
from ckptflow.peers.link import Link
from ckptflow.peers.pulls import Exchange
from ckptflow.peers.watch import Peer
from ckptflow.transfer.buffers import BufferPool
from tests.peers.readers import Job, be_patient
from tests.peers.test_cut import FIRST, SECOND, TOKEN, Owners, links_to, pull
from tests.peers.test_listener import is_listening
from tests.peers.test_pulls import Saved
from tests.waiting import HANG_S, until


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    be_patient(monkeypatch.setattr)


@contextlib.contextmanager
def at_most(count: int) -> Iterator[None]:
    """That is the first number that no further descriptor may have."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def serving() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "ckptflow-peers-serve"]


@pytest.mark.parametrize("world_size", [2, 40])
def test_who_has_no_room_for_connections_to_all_takes_no_part(
    world_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    saved = Saved()
    wanted = [Wanted(0)]
    just_enough = len(os.listdir("/proc/self/fd")) + 2 * (world_size - 1) + descriptors.RESERVED
    for limit, takes_part in ((just_enough + 20, True), (just_enough - 20, False)):
        with (
            at_most(limit),
            Exchange(0, [Peer("", "127.0.0.1:1")] * world_size, BufferPool(2**17, 2**16)) as exchange,
        ):
            terms = [exchange.terms(saved.manifest, wanted, wanted) for _ in range(2)]
        assert [each != Terms() for each in terms] == [takes_part] * 2
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"worker 0 may have {limit} file descriptors (ulimit -n), of which {2 * (world_size - 1)}")
    assert 'restore_from="storage"' in line


def test_one_without_room_and_all_read_from_storage(caplog: pytest.LogCaptureFixture) -> None:
    saved = Saved()
    readers = [saved.reader() for _ in range(3)]
    readers[1].change = lambda terms: Terms()
    with caplog.at_level(logging.WARNING, "ckptflow"):
        Job(saved.manifest, readers).run()
    assert all(map(saved.is_right, readers))
    assert [reader.moved.peer_bytes for reader in readers] == [0, 0, 0]
    assert not caplog.records


def test_who_has_none_left_for_a_connection_gives_back_what_the_others_took() -> None:
    owners = Owners(range(1, 5))
    links = links_to(owners.terms(Terms()))
    assert all(pull(links, owner, FIRST) for owner in (1, 2, 3))
    with at_most(3):
        assert not pull(links, 4, FIRST)
    until(lambda: not serving(), HANG_S)  # before they are closed, and nothing of theirs ends by itself
    assert not any(pull(links, owner, SECOND) for owner in (1, 2, 3, 4))
    assert not serving()
    owners.close()


def test_who_has_none_left_to_let_one_in_lets_all_go() -> None:
    owners = Owners(range(1, 2))
    listener = owners.listeners[1]
    link = Link.connect(listener.address, listener.port, TOKEN, 2, 1)
    with link._socket, socket.socket() as late:
        with at_most(3):
            late.connect((listener.address, listener.port))
            until(lambda: not serving(), HANG_S)
        link._socket.settimeout(HANG_S)
        assert link._socket.recv(1) == b""
    until(lambda: not is_listening(listener), HANG_S)
    owners.close()
