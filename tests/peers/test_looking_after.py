"""Whom the chief asks while it waits for many others in the background."""

from __future__ import annotations

from collections import Counter

import pytest

from ckptflow.peers import service
from ckptflow.peers.cluster import Cluster
from ckptflow.peers.watch import Answer, Peer

COUNT = 1000
DEAD = 700


def test_of_many_some_are_asked_at_a_time_and_one_that_has_ended_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question takes time from all threads of the process."""
    now_s = 0.0
    asked: Counter[str] = Counter()

    def ask(peer: Peer, timeout_s: float) -> Answer:
        asked[peer.task] += 1
        return Answer.ENDED if peer.task == str(DEAD) else Answer.HERE

    monkeypatch.setattr(service, "ask", ask)
    monkeypatch.setattr("ckptflow.peers.cluster.awake_s", lambda: now_s)
    peers = tuple(Peer(str(number), f"host{number}:1") for number in range(COUNT))
    find_lost = Cluster(0, COUNT, None, peers).begin_wait()
    turns = 0
    while not (lost := find_lost(range(1, COUNT))):
        turns += 1
        now_s += 4.1  # with what is read meanwhile
        assert asked.total() <= 65 * turns
        assert turns <= COUNT // 64
    assert lost == {DEAD: f"has ended (host{DEAD}:1)"}
