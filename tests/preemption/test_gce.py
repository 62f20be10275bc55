"""Google Compute Engine's metadata server, played by a real HTTP server on loopback."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ckptflow.preemption import gce_notice
from tests.ports import free_ports
from tests.waiting import HANG_S

ANSWERS: dict[str, tuple[int, str]] = {}
IS_GOOGLE = [True]


class Metadata(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, text = ANSWERS.get(self.path, (404, "not found"))
        if self.headers.get("Metadata-Flavor") != "Google":
            status, text = 403, "Missing Metadata-Flavor:Google header."
        self.send_response(status)
        if IS_GOOGLE[0]:
            self.send_header("Metadata-Flavor", "Google")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    monkeypatch.setattr("ckptflow.preemption.gce._TIMEOUT_S", HANG_S)  # it answers, in threads of this process
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{http.server_port}")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # a machine's own metadata is not asked for through a proxy
    yield f"127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()
    http.server_close()


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    return [record.getMessage() for record in warnings if "metadata server" in record.getMessage()]


@pytest.mark.parametrize(
    ("preempted", "maintenance", "is_told"),
    [
        ("FALSE", "NONE", False),
        ("TRUE", "NONE", True),
        ("FALSE", "TERMINATE_ON_HOST_MAINTENANCE", True),
        ("FALSE", "MIGRATE_ON_HOST_MAINTENANCE", False),
    ],
)
@pytest.mark.usefixtures("server")
def test_what_is_a_notice(preempted: str, maintenance: str, is_told: bool) -> None:
    ANSWERS["/computeMetadata/v1/instance/preempted"] = (200, preempted)
    ANSWERS["/computeMetadata/v1/instance/maintenance-event"] = (200, f"{maintenance}\n")
    IS_GOOGLE[0] = True
    assert gce_notice() is is_told


def test_no_answer_is_no_notice_and_is_said_once(server: str, caplog: pytest.LogCaptureFixture) -> None:
    ANSWERS["/computeMetadata/v1/instance/preempted"] = (200, "TRUE")
    IS_GOOGLE[0] = False  # somebody else answers
    assert not gce_notice()
    ANSWERS["/computeMetadata/v1/instance/preempted"] = (503, "TRUE")
    IS_GOOGLE[0] = True
    assert not gce_notice()
    assert [server in text for text in said(caplog)] == [True]


def test_nobody_there(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{free_ports(1)[0]}")
    assert not gce_notice()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection, and never answers
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{silent.getsockname()[1]}")
        assert not gce_notice()
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:no-port")
    assert not gce_notice()
    assert len(said(caplog)) == 3
