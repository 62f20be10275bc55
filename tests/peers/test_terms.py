"""What workers say of themselves before they read together, and addresses at which nobody of the job answers."""

from __future__ import annotations

import logging
import socket
from functools import partial

import msgspec
import pytest

from ckptflow.errors import PeerError
from ckptflow.peers import link, loans, pulls
from ckptflow.peers.link import TOKEN_BYTES, ConnectError, Link
from tests.peers.readers import Job
from tests.peers.test_pulls import Saved


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
