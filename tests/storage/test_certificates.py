"""A server whose certificate is not trusted: no retry helps."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptflow.errors import StorageError, StorageUnavailableError
from ckptflow.places.http import HttpFile
from tests.servers import Server
from tests.storage.test_stalls import CLIENTS, open_through


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    """Of a server whose certificate only itself has signed."""
    key, certificate = str(tmp_path / "key"), str(tmp_path / "certificate")
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run([*words, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), connection:
                context.wrap_socket(connection, server_side=True).close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"https://localhost:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.mark.parametrize("client", [*CLIENTS, "a web server"])
def test_a_certificate_that_is_not_trusted(client: str, endpoint: str) -> None:
    server = Server("seaweedfs", endpoint, {"key": "k", "secret": "s", "client_kwargs": {}})

    def read_something() -> None:
        if client == "a web server":
            HttpFile(f"{endpoint}/file", {})._download("/dev/null", 2**20)
        else:
            open_through(client, server, endpoint, tries=1, limit_s=None).get("a/object", memoryview(bytearray(4)))

    with pytest.raises(StorageError, match=r"the certificates that it trusts") as raised:
        read_something()
    assert not isinstance(raised.value, StorageUnavailableError)
