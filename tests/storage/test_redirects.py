"""A server that sends a client elsewhere: nothing of ours goes there, and what is there is not the storage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.oauth2.credentials import Credentials

from ckptflow.errors import StorageError
from ckptflow.storage.opening import open_store
from ckptflow.storage.retry import Retries, RetryingStore
from ckptflow.storage.store import Store
from tests.storage.answering import answering

X = memoryview(b"x" * 5000)
CODES = [301, 302, 303, 307, 308]


def obliging(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
    """What takes all that it gets, and has what is asked for."""
    if method in ("GET", "HEAD"):
        about = {"Content-Range": "bytes 0-4/5", "ETag": '"x"', "Last-Modified": "Tue, 01 Dec 2026 00:00:00 GMT"}
        return 206, about, b"other"
    return 200, {"ETag": '"x"'}, b""


@pytest.fixture
def other() -> Iterator[tuple[str, list[Any]]]:
    """Another host, and what came there."""
    with answering(obliging) as (port, asked):
        yield f"http://localhost:{port}/elsewhere", asked


def open_at(client: str, endpoint: str) -> Store:
    if client == "gcsfs":
        options: dict[str, Any] = {"token": "anon", "endpoint_url": endpoint, "client": "fsspec"}
    else:
        options = {"key": "k", "secret": "s", "token": "SESSION-TOKEN", "client": "fsspec"}
        options["client_kwargs"] = {"endpoint_url": endpoint, "region_name": "us-east-1"}
        options["s3_additional_kwargs"] = {"SSECustomerKey": "k" * 32, "SSECustomerAlgorithm": "AES256"}
    store = open_store(f"{'gs' if client == 'gcsfs' else 's3'}://bucket/run", options)
    assert isinstance(store, RetryingStore)
    store._retries = Retries(1)
    return store


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(("client", "header"), [("s3fs", "Location"), ("gcsfs", "Location"), ("gcsfs", "URI")])
def test_a_redirect_is_followed_by_no_verb(client: str, header: str, code: int, other: tuple[str, list[Any]]) -> None:
    target, came = other
    with answering(lambda method, path: (code, {header: target}, b"")) as (port, asked):
        store = open_at(client, f"http://127.0.0.1:{port}")
        calls: list[Callable[[], object]] = [
            lambda: store.get("a", memoryview(bytearray(5))),
            lambda: store.put("a", X),
            lambda: store.create("b", X),
            lambda: store.list(),
            lambda: store.delete(["a"]),
        ]
        for call in calls:
            before = len(asked)
            with pytest.raises(StorageError):
                call()
            assert 0 < len(asked) - before <= 4  # S3 is asked for the region as well, and that comes to an end
        store.close()
    assert came == []


def test_obstore_follows_what_reads(other: tuple[str, list[Any]]) -> None:
    """And takes the session's token along: it has no setting for that, and docs/security.md says so."""
    target, came = other
    with answering(lambda method, path: (307, {"Location": target}, b"")) as (port, _):
        options = {"key": "k", "secret": "s", "token": "SESSION-TOKEN", "client": "obstore"}
        endpoint = {"endpoint_url": f"http://127.0.0.1:{port}", "region_name": "us-east-1"}
        store = open_store("s3://bucket/run", options | {"client_kwargs": endpoint})
        assert isinstance(store, RetryingStore)
        store._retries = Retries(1)
        with pytest.raises(StorageError):
            store.put("a", X)
        assert came == []
        store.get("a", memoryview(bytearray(5)))
        assert [method for method, _, _ in came] == ["GET"]
        assert came[0][2]["x-amz-security-token"] == "SESSION-TOKEN"
        assert "authorization" not in came[0][2]
        store.close()


@pytest.mark.parametrize("code", [301, 307])
def test_a_bucket_of_another_region_is_found(code: int, other: tuple[str, list[Any]]) -> None:
    """By what the reply says of the region, as botocore does it; the proxy is how both regions' hosts are reached."""
    target, came = other

    def aws(method: str, url: str) -> tuple[int, dict[str, str], bytes]:
        if "s3.eu-west-1.amazonaws.com" in url:
            return 200, {"ETag": '"0123456789abcdef0123456789abcdef"'}, b""
        return code, {"Location": target, "x-amz-bucket-region": "eu-west-1"}, b"<Error><Code>Redirect</Code></Error>"

    with answering(aws) as (port, asked):
        options: dict[str, Any] = {"key": "k", "secret": "s", "client": "fsspec", "use_ssl": False}
        options["client_kwargs"] = {"region_name": "us-east-1"}
        options["config_kwargs"] = {"proxies": {"http": f"http://127.0.0.1:{port}"}}
        store = open_store("s3://bucket/run", options)
        store.put("a", X)
        store.close()
    assert [method for method, _, _ in asked] == ["PUT", "PUT"]
    assert came == []


@pytest.mark.parametrize("client", ["fsspec", "obstore"])
@pytest.mark.parametrize("code", [302, 307])
@pytest.mark.parametrize("service", ["sts", "container", "machine", "google"])
def test_no_service_for_credentials_sends_them_elsewhere(
    service: str,
    client: str,
    code: int,
    other: tuple[str, list[Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target, came = other
    (tmp_path / "token").write_text("SECRET-TOKEN")

    def reply(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        if path == "/latest/api/token":  # of a machine: what comes next is asked with it
            return 200, {}, b"SECRET-TOKEN"
        return code, {"Location": target}, b""

    with answering(reply) as (port, asked):
        here = f"http://127.0.0.1:{port}"
        environment = {
            "sts": {
                "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/x",
                "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"),
                "AWS_ENDPOINT_URL_STS": here,
            },
            "container": {
                "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{here}/credentials",
                "AWS_CONTAINER_AUTHORIZATION_TOKEN": "SECRET-TOKEN",
            },
            "machine": {"AWS_EC2_METADATA_SERVICE_ENDPOINT": here, "AWS_EC2_METADATA_DISABLED": "false"},
            "google": {},
        }[service]
        nowhere = {"AWS_CONFIG_FILE": str(tmp_path / "none"), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none")}
        for name, value in (nowhere | environment).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0)
        options: dict[str, Any] = {"client_kwargs": {"endpoint_url": here, "region_name": "us-east-1"}}
        if service == "google":
            token = Credentials(None, "r", token_uri=f"{here}/token", client_id="id", client_secret="SECRET-TOKEN")
            options = {"token": token, "endpoint_url": here}
        with pytest.raises((StorageError, ValueError), match=r"credential|cannot write") as raised:  # noqa: PT012
            store = open_store(f"{'gs' if service == 'google' else 's3'}://bucket/run", options | {"client": client})
            assert isinstance(store, RetryingStore)
            store._retries = Retries(1)
            store.put("a", X)  # obstore asks for credentials when it is opened
        assert "SECRET-TOKEN" not in str(raised.value)
        assert asked, raised.value
        assert not any(path.startswith("/bucket") for _, path, _ in asked)
    assert came == []
