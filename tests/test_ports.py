"""Ports that tests are given: no two tests the same one, whatever process they run in."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests import ports
from tests.ports import free_ports
from tests.processes import run_python


def test_no_other_process_is_given_them() -> None:
    ours = free_ports(50)
    first = min(ours)
    program = f"""
import itertools
from tests import ports
ports._candidates = lambda here=itertools.cycle(range({first}, {max(ours) + 100})): here
print(*ports.free_ports(50))
"""
    done = run_python("-c", program, fresh=True)
    theirs = [int(text) for text in done.stdout.split()]
    assert len(set(theirs)) == 50, done.stderr
    assert not set(ours) & set(theirs)


def test_they_are_free_and_below_those_of_connections() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in free_ports(10, also=10_000):
        for each in (port, port + 10_000):
            assert 10_240 <= each < max(lowest, 32_768)
            with socket.socket() as server:
                server.bind(("127.0.0.1", each))


def test_one_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, free = free_ports(2)
    candidates = iter([taken, free])
    monkeypatch.setattr(ports, "_candidates", lambda: candidates)
    with socket.socket() as server:
        server.bind(("127.0.0.1", taken))
        assert free_ports(1) == [free]
