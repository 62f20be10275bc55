"""Where other workers come: at an address that is this machine's alone, however many at once; and nothing is left."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from ckptflow.peers import link
from ckptflow.peers.link import Link, LinkError, serve
from ckptflow.peers.listener import MAX_STRANGERS, Listener, find_listener
from ckptflow.peers.loans import Key, Loans
from tests.waiting import HANG_S

TOKEN = bytes(32)


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener("127.0.0.1", 0, 2 * MAX_STRANGERS, Loans())
    yield made
    made.close()


def is_listening(listener: Listener) -> bool:
    try:
        with socket.create_connection((listener.address, listener.port), HANG_S):
            return True
    except ConnectionRefusedError:
        return False


def test_all_workers_of_a_job_may_come_at_once(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has been greeted before the first one says who it is."""
    monkeypatch.setattr(link, "SILENT_S", HANG_S)
    listener.open(TOKEN)
    address = listener.address, listener.port
    connections = [socket.create_connection(address, HANG_S) for _ in range(2 * MAX_STRANGERS - 1)]
    for connection in connections:
        assert len(connection.recv(48, socket.MSG_PEEK | socket.MSG_WAITALL)) == 48
    for worker, connection in enumerate(connections, 1):
        came = Link(connection)
        came._greet(TOKEN, worker, 0)
        came.close()


@pytest.mark.parametrize("has_begun", [False, True])
def test_ctrl_c_as_it_opens_leaves_nothing_listening(
    has_begun: bool, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if has_begun:
            real(thread)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(KeyboardInterrupt):
            listener.open(TOKEN)
    listener.close()
    assert not is_listening(listener)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_every_address_is_no_address(host: str) -> None:
    """Bound, it would listen everywhere; told to others, each would come to itself."""
    assert find_listener([host, host], 0, Loans()) is None
    found = find_listener([host, "127.0.0.1"], 0, Loans())
    assert found is not None
    found.close()
    assert found.address == "127.0.0.1"


def test_who_takes_nothing_is_let_go_however_long_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a byte a second all of it would take months."""
    monkeypatch.setattr(link, "SILENT_S", 0.2)
    monkeypatch.setattr(link, "SLOWEST_BYTES_PER_S", 1)
    loans, key, back = Loans(), Key(3, 0, 0, 2**24), threading.Event()
    loans.begin(3, {key: {1}})
    loans.lend(key, memoryview(bytes(2**24)), back.set)
    near, far = socket.socketpair()
    with near, far:
        far.sendall(link._REQUEST.pack(*key))
        with pytest.raises(LinkError, match="nothing"):
            serve(near, 1, loans, lambda: False)
    assert back.is_set()
