"""What workers say of themselves before they read together, and addresses at which nobody of the job answers."""

from __future__ import annotations

import msgspec
import pytest

from ckptflow.errors import PeerError
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
