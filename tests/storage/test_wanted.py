"""A reply that nobody waits for any more is not read to its end, by whichever client, and is not asked for again."""

from __future__ import annotations

import logging

import pytest

from ckptflow.errors import StorageError
from ckptflow.storage.opening import open_store
from ckptflow.storage.wanted import while_wanted
from tests.servers import BUCKET, Server

SIZE_BYTES = 4 * 2**20


@pytest.mark.parametrize(("scheme", "client"), [("s3", "obstore"), ("s3", "fsspec"), ("gs", "fsspec")])
def test_the_rest_is_left(
    seaweedfs: Server, fake_gcs: Server, scheme: str, client: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = seaweedfs if scheme == "s3" else fake_gcs
    store = open_store(f"{scheme}://{BUCKET}/wanted-{client}", {**server.storage_options, "client": client})
    store.put("object", memoryview(b"x" * SIZE_BYTES))
    into = bytearray(SIZE_BYTES)
    with (
        caplog.at_level(logging.WARNING),
        while_wanted(lambda: False),
        pytest.raises(StorageError, match="given up in the middle"),
    ):
        store.get("object", memoryview(into))
    assert not caplog.records  # nor is it asked for again
    assert into[-1] == 0
    assert store.get("object", memoryview(into)) == SIZE_BYTES
    assert into[-1] == ord("x")
    store.close()
