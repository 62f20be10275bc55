"""A service for tokens that fails for a while is waited for; one that refuses is told of at once."""

from __future__ import annotations

import json
import logging
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import google.auth._exponential_backoff
import pytest
from google.auth.exceptions import RefreshError, TransportError
from google.oauth2.credentials import Credentials

from ckptflow.errors import StorageAccessError, StorageUnavailableError
from ckptflow.storage.clients import bounded_refresh
from ckptflow.storage.opening import open_store
from ckptflow.storage.retry import Retries, RetryingStore
from tests.storage.answering import answering


class TokenServer(BaseHTTPRequestHandler):
    status: ClassVar[int] = 503

    def do_POST(self) -> None:
        data = json.dumps({"error": "invalid_grant" if self.status == 400 else "busy"}).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    own_tries = SimpleNamespace(sleep=lambda _: None)
    monkeypatch.setattr(google.auth._exponential_backoff, "time", own_tries)
    server = ThreadingHTTPServer(("127.0.0.1", 0), TokenServer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("client", ["fsspec", "obstore"])
@pytest.mark.parametrize(("status", "expected"), [(503, StorageUnavailableError), (400, StorageAccessError)])
def test_a_token_endpoint_that_fails(
    client: str, status: int, expected: type[Exception], endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TokenServer, "status", status)
    token = Credentials(None, "refresh", token_uri=f"{endpoint}/token", client_id="id", client_secret="s")
    store = open_store("gs://bucket/run", {"token": token, "endpoint_url": "http://127.0.0.1:9", "client": client})
    assert isinstance(store, RetryingStore)
    with pytest.raises(expected):
        store.store.put("a/object", memoryview(b"data"))


class _Reply:
    def __init__(self, status: int) -> None:
        self.status = status


class _OfAMachine:
    """As google-auth's for a machine of Google's."""

    def __init__(self, cause: TransportError) -> None:
        self.cause = cause

    def refresh(self, request: Any) -> None:
        raise RefreshError(self.cause) from self.cause


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (TransportError("no answer"), TransportError),
        (TransportError("failed", _Reply(503)), TransportError),
        (TransportError("no such account", _Reply(404)), RefreshError),
    ],
)
def test_the_service_of_a_machine(cause: TransportError, expected: type[Exception]) -> None:
    with pytest.raises(Exception, match=r"no|failed") as raised:
        bounded_refresh(_OfAMachine(cause), 1.0).refresh(lambda: None)
    assert type(raised.value) is expected


STS = (
    b"<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>PLANTED-1"
    b"</AccessKeyId><SecretAccessKey>PLANTED/2</SecretAccessKey><SessionToken>PLANTED+3</SessionToken><Expir"
)


@pytest.mark.parametrize("client", ["fsspec", "obstore"])
@pytest.mark.parametrize("end", [b"PLANTED-1", b"PLANTED/2", b"</SecretAccessKey>", b"<Expir"])
def test_an_answer_that_is_cut_off_is_told_to_nobody(
    client: str, end: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither by the error, nor by what it was raised from, nor by the warnings of its tries."""
    body = STS[: STS.index(end) + len(end)]
    (tmp_path / "token").write_text("web-token")
    with answering(lambda method, path: (200, {"Content-Type": "text/xml"}, body)) as (port, asked):
        monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/x")
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{port}")
        kwargs = {"endpoint_url": "http://127.0.0.1:9", "region_name": "us-east-1"}
        caplog.set_level(logging.DEBUG, "ckptflow")
        with pytest.raises(StorageUnavailableError, match="no XML, or only a part of it") as raised:  # noqa: PT012
            store = open_store("s3://bucket/run", {"client": client, "client_kwargs": kwargs})
            assert isinstance(store, RetryingStore)
            store._retries = Retries(2, first_wait_s=0.001)
            store.put("a", memoryview(b"x"))
    assert asked
    assert "Refreshing temporary credentials failed" in caplog.text  # botocore's own, with a traceback
    for text in ("".join(traceback.format_exception(raised.value)), caplog.text):
        assert "PLANTED" not in text
        assert "AccessKeyId" not in text
