"""A network that is cut between workers costs a restore one short time, however many there are, and is one warning."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator

import pytest

from ckptflow.peers import link, pulls
from ckptflow.peers.exchange import Terms
from ckptflow.peers.link import TOKEN_BYTES
from ckptflow.peers.listener import Listener
from ckptflow.peers.loans import Key, Loans
from ckptflow.peers.pulls import _Links
from ckptflow.peers.watch import Peer
from tests.peers.readers import be_patient
from tests.waiting import HANG_S, until

TOKEN = bytes(TOKEN_BYTES)
COUNT = 30
FIRST, SECOND, LATE = (Key(3, 0, begin, begin + 8) for begin in (0, 8, 16))


class Deaf:
    """Takes connections and says nothing, as what stands between workers may; counts them."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=COUNT)
        self.port = self.socket.getsockname()[1]

    def count(self) -> int:
        """Of those that have come. Of a backlog: each is there before whoever has made it goes on."""
        self.socket.settimeout(0.0)
        count = 0
        while True:
            try:
                self.socket.accept()[0].close()
            except BlockingIOError:
                return count
            count += 1


@pytest.fixture
def deaf() -> Iterator[Deaf]:
    made = Deaf()
    with made.socket:
        yield made


class Owners:
    """Workers that give what is `FIRST` and `SECOND`, and have yet to read what is `LATE`."""

    def __init__(self, workers: range) -> None:
        self.listeners = {worker: Listener("127.0.0.1", worker, COUNT, self.loans()) for worker in workers}
        for listener in self.listeners.values():
            listener.open(TOKEN)

    def loans(self) -> Loans:
        loans = Loans()
        loans.begin(3, {FIRST: {0}, SECOND: {0}, LATE: {0}})
        for key in (FIRST, SECOND):
            loans.lend(key, memoryview(bytes(8)), lambda: None)
        return loans

    def terms(self, others: Terms) -> list[Terms]:
        found = [others] * COUNT
        for worker, each in self.listeners.items():
            found[worker] = Terms(address=each.address, port=each.port)
        found[0] = Terms(token=TOKEN)
        return found

    def close(self) -> None:
        for listener in self.listeners.values():
            listener.close()


def links_to(terms: list[Terms]) -> _Links:
    links = _Links(0, [Peer("", f"host{worker}:1") for worker in range(COUNT)], lambda: None)
    links.begin_round(terms)
    return links


def pull(links: _Links, owner: int, key: Key) -> bool:
    return links.pull(owner, key, memoryview(bytearray(8)), lambda: False, lambda: 0.0)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    be_patient(monkeypatch.setattr)


@pytest.mark.parametrize("reachable", [0, 1, 5])
def test_who_can_be_reached_gives_on_and_of_the_others_few_are_tried(
    reachable: int, deaf: Deaf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    owners = Owners(range(1, 1 + reachable))
    monkeypatch.setattr(pulls, "_MOST_LOST_S", 0.5)
    links = links_to(owners.terms(Terms(address="127.0.0.1", port=deaf.port)))
    with caplog.at_level(logging.WARNING, "ckptflow"):
        assert all(pull(links, owner, FIRST) for owner in owners.listeners)
        monkeypatch.setattr(link, "SILENT_S", 0.2)
        assert not any(pull(links, owner, FIRST) for owner in range(1 + reachable, COUNT))
        monkeypatch.setattr(link, "SILENT_S", HANG_S)
        assert all(pull(links, owner, SECOND) for owner in owners.listeners), "these have a connection"
    links.close()
    owners.close()
    assert 1 <= deaf.count() <= 3
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"worker {1 + reachable} (host{1 + reachable}:1) has sent nothing for 0.2 s")
    assert 'restore_from="storage"' in line


def test_a_network_that_is_cut_after_connecting_is_not_waited_for_once_for_each(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is asked for then nobody answers."""
    owners = Owners(range(1, COUNT))
    monkeypatch.setattr(pulls, "_MOST_LOST_S", 0.5)
    links = links_to(owners.terms(Terms()))
    assert all(pull(links, owner, FIRST) for owner in owners.listeners)
    monkeypatch.setattr(link, "WAIT_EVERY_S", HANG_S)
    monkeypatch.setattr(link, "SILENT_S", 0.2)
    tried: list[int] = []
    real = link.Link.pull

    def note(self: link.Link, *args: object) -> None:
        tried.append(1)
        real(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(link.Link, "pull", note)
    with caplog.at_level(logging.WARNING, "ckptflow"):
        assert not any(pull(links, owner, LATE) for owner in owners.listeners)
    assert len(tried) <= 3
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("worker 1 (host1:1) has sent nothing for 0.2 s")
    for listener in owners.listeners.values():
        listener._loans.end()  # else they would go on for as long as a wait lasts
        listener._loans.withdraw(6)
    owners.close()
    until(lambda: not [each for each in threading.enumerate() if each.name.startswith("ckptflow-peers")], HANG_S)
