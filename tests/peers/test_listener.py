"""Where other workers come: at an address that is this machine's alone, however many at once; and nothing is left."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ckptflow.format.spec import Wanted
from ckptflow.peers import link
from ckptflow.peers.link import Link, LinkError, serve
from ckptflow.peers.listener import MAX_STRANGERS, Listener, find_listener
from ckptflow.peers.loans import Key, Loans
from ckptflow.peers.pulls import Exchange
from ckptflow.peers.watch import Peer
from ckptflow.transfer.buffers import BufferPool
from tests.peers.test_pulls import Saved
from tests.waiting import HANG_S, until

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


class Names:
    """A name server that answers nothing until `is_over`, or that knows these names alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, known: dict[str, str] | None = None) -> None:
        self.asked: list[str] = []
        self.is_over = threading.Event()
        real = socket.getaddrinfo

        def find(host: str, *args: Any, **kwargs: Any) -> Any:
            if host.replace(".", "").isdigit():  # an address
                return real(host, *args, **kwargs)
            self.asked.append(host)
            if known is None:
                self.is_over.wait(HANG_S)
            elif host in known:
                return real(known[host], *args, **kwargs)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

        monkeypatch.setattr(socket, "getaddrinfo", find)


HOSTS = [f"worker-{number}" for number in range(64)]


def test_a_name_server_that_is_silent_is_asked_once_in_a_restore(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However many checkpoints are tried: and the restore goes on, of storage."""
    monkeypatch.setattr("ckptflow.peers.listener.CONNECT_S", 0.1)
    names, saved = Names(monkeypatch), Saved()
    with Exchange(1, [Peer("", f"{host}:1") for host in HOSTS], BufferPool(2**17, 2**16)) as exchange:
        for _ in range(3):
            terms = exchange.terms(saved.manifest, [Wanted(0)], [Wanted(0)])
            assert not terms.can_serve
            assert terms.buffer_count, "it gets of others what they read"
    until(lambda: names.asked, HANG_S)  # its thread may begin late
    assert names.asked == [HOSTS[1]]
    names.is_over.set()
    until(lambda: not [each for each in threading.enumerate() if each.name == "ckptflow-names"], HANG_S)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("others cannot get from worker 1 what it reads")
    assert "not resolved within 0.1 s" in line


@pytest.mark.parametrize("known", [{}, {HOSTS[1]: "127.0.0.1"}, {HOSTS[1]: "192.0.2.1"}])
def test_after_two_names_without_an_address_no_more_are_asked_for(
    known: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptflow.peers.listener.CONNECT_S", HANG_S)
    names = Names(monkeypatch, known)
    assert find_listener(HOSTS, 1, Loans()) is None
    assert len([host for host in names.asked if host not in known]) == 2


def test_a_name_of_another_machine_is_left_for_the_way_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a service's name is: the first two of the others may have no address yet, or one of them."""
    monkeypatch.setattr("ckptflow.peers.listener.CONNECT_S", HANG_S)
    Names(monkeypatch, {HOSTS[1]: "192.0.2.1", HOSTS[2]: "127.0.0.1"})
    found = find_listener(HOSTS, 1, Loans())
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
