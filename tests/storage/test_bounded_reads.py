"""A reply that is larger than what was asked for costs no memory, packed or not."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import aiohttp
import pytest

from ckptflow.errors import StorageUnavailableError
from ckptflow.storage.opening import open_store
from ckptflow.storage.retry import RetryingStore
from ckptflow.storage.store import Store

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


# ---- replies that do not end


MOST_BYTES = 2**20
ENOUGH_BYTES = 32 * MOST_BYTES  # far beyond the limit, and what the kernels' buffers take
VERBS: dict[str, Callable[[Store], object]] = {
    "list": lambda store: store.list(),
    "get": lambda store: store.get("a", memoryview(bytearray(10))),
    "put": lambda store: store.put("a", memoryview(b"x")),
    "delete": lambda store: store.delete(["a", "b"]),
}


@contextlib.contextmanager
def endless(status: int) -> Iterator[tuple[str, list[bool]]]:
    """A server whose replies go on for as long as they are read, up to `ENOUGH_BYTES`; whether each was hung up on."""
    hung_up: list[bool] = []

    def reply(connection: socket.socket) -> None:
        with connection:
            connection.recv(2**16)
            try:
                connection.sendall(b"HTTP/1.1 %d X\r\nConnection: close\r\n\r\n<ListBucketResult><Name>" % status)
                for _ in range(ENOUGH_BYTES // 2**16):
                    connection.sendall(b"x" * 2**16)
            except OSError:
                hung_up.append(True)
            else:
                hung_up.append(False)

    def serve() -> None:
        with contextlib.suppress(OSError):  # it is shut
            while True:
                reply(listener.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", hung_up
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("status", [200, 404, 500])
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_reply_that_does_not_end(scheme: str, verb: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptflow.storage.clients._MOST_REPLY_BYTES", MOST_BYTES)
    closed_by: set[str] = set()
    close = aiohttp.ClientResponse.close

    def close_and_tell(reply: aiohttp.ClientResponse) -> None:
        closed_by.add(threading.current_thread().name)
        close(reply)

    monkeypatch.setattr(aiohttp.ClientResponse, "close", close_and_tell)
    with endless(status) as (endpoint, hung_up):
        options = {"client": "fsspec", "endpoint_url": endpoint, "stall_timeout_s": None}
        options |= {"token": "anon"} if scheme == "gs" else {"key": "k", "secret": "s"}
        store = open_store(f"{scheme}://bucket/run", options)
        assert isinstance(store, RetryingStore)
        with pytest.raises(StorageUnavailableError):
            VERBS[verb](store.store)
        store.close()
    assert all(hung_up)
    assert hung_up
    assert closed_by == {"fsspecIO"}  # its loop: closed by another thread, a connection is open until the loop wakes
