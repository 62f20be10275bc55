"""A reply that is larger than what was asked for costs no memory, packed or not."""

from __future__ import annotations

import contextlib
import gzip
import threading
import tracemalloc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from ckptflow.errors import StorageUnavailableError
from ckptflow.storage.opening import open_store
from ckptflow.storage.retry import RetryingStore

BOMB_BYTES = 2**27


class Liar(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    headers_of: ClassVar[dict[str, str]] = {}
    status_of: ClassVar[int] = 206
    body: ClassVar[bytes] = b""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(self.status_of)
        for name, value in {**self.headers_of, "Content-Length": str(len(self.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(self.body)


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Liar)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("how", ["packed", "the whole object"])
def test_a_range_of_a_liar(endpoint: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = 2**20
    if how == "packed":
        monkeypatch.setattr(Liar, "body", gzip.compress(bytes(BOMB_BYTES), 1))
        headers = {"Content-Encoding": "gzip", "Content-Range": f"bytes 0-{wanted - 1}/{wanted}"}
        monkeypatch.setattr(Liar, "headers_of", headers)
    else:
        monkeypatch.setattr(Liar, "body", bytes(BOMB_BYTES))
        monkeypatch.setattr(Liar, "status_of", 200)
    store = open_store("gs://bucket/run", {"token": "anon", "endpoint_url": endpoint, "client": "fsspec"})
    assert isinstance(store, RetryingStore)
    into = memoryview(bytearray(wanted))
    tracemalloc.start()
    try:
        with pytest.raises(StorageUnavailableError):
            store.store.get("a", into)
        assert tracemalloc.get_traced_memory()[1] < 16 * wanted
    finally:
        tracemalloc.stop()
