"""Files from a web server, as it is and as it fails."""

from __future__ import annotations

import contextlib
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckptflow.errors import ObjectNotFoundError, StorageUnavailableError, UsageError
from ckptflow.storage import http as http_module
from ckptflow.storage.files import fetched, opened, staged
from ckptflow.storage.retry import Retries
from tests.storage.test_files import temporary

__all__ = ["temporary"]  # a fixture


class Web(http.server.BaseHTTPRequestHandler):
    """Answers by path; what was asked for is noted."""

    protocol_version = "HTTP/1.1"
    requests: list[str] = []  # noqa: RUF012 - cleared by the fixture

    def do_GET(self) -> None:
        Web.requests.append(self.path)
        name = self.path.partition("?")[0].rpartition("/")[2]
        if name == "missing":
            self.send_error(404)
        elif name == "broken":
            self.send_error(503)
        elif name in ("short", "endless"):
            self.send_response(200)
            self.send_header("Content-Length", str(2**20)) if name == "short" else self.send_header(
                "Connection", "close"
            )
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(1 if name == "short" else 10_000):
                    self.wfile.write(bytes(10_000))
            self.close_connection = True
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(3 * 2**20))
            self.end_headers()
            self.wfile.write(b"abc" * 2**20)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(http_module, "Retries", lambda: Retries(max_tries=2, first_wait_s=0.01))
    Web.requests.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_file_from_the_web(web: str) -> None:
    with fetched(f"{web}/google/nnlm/1?tf-hub-format=compressed") as path:
        assert os.path.basename(path) == "1.tar.gz"
        assert Path(path).read_bytes() == b"abc" * 2**20
    with opened(f"{web}/models/m.keras?v=3&token=PLANTED-0123456789") as file:
        assert os.path.basename(str(file.name)) == "m.keras"
        file.seek(3 * 2**20 - 3)
        assert file.read() == b"abc"
    with fetched(f"{web}/a/%2e%2e%2fescaped") as path:
        assert os.path.basename(path) == "file"
    assert Web.requests[:2] == [
        "/google/nnlm/1?tf-hub-format=compressed",
        "/models/m.keras?v=3&token=PLANTED-0123456789",
    ]


@pytest.mark.parametrize(
    ("name", "max_bytes", "error", "match"),
    [
        ("missing", 2**30, ObjectNotFoundError, "nothing is there"),
        ("broken", 2**30, StorageUnavailableError, "try again later"),
        ("short", 2**30, StorageUnavailableError, "try again later"),
        ("endless", 2**20, UsageError, "at most 1,048,576 are fetched"),
        ("m.keras", 2**20, UsageError, "3,145,728 bytes"),
    ],
)
def test_a_web_that_fails(web: str, name: str, max_bytes: int, error: type[Exception], match: str) -> None:
    url = f"{web}/{name}?signature=PLANTED-0123456789abcdef"
    with pytest.raises(error, match=rf"{web}/{name}.*{match}") as raised, fetched(url, max_bytes=max_bytes):
        pass
    assert "PLANTED" not in "".join(map(str, (raised.value, raised.value.__cause__)))
    assert len(Web.requests) == (2 if error is StorageUnavailableError else 1)


def test_nothing_is_written_to_the_web(web: str) -> None:
    with pytest.raises(UsageError, match="web server"), staged(f"{web}/m.keras", overwrite=True):
        pass
    assert Web.requests == []
