"""Object storage: what goes wrong with buckets, credentials, networks and URLs, through each client."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ckptflow.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    StorageAccessError,
    StorageError,
    StorageUnavailableError,
    UsageError,
)
from ckptflow.storage.by_fsspec import FsspecStore
from ckptflow.storage.by_obstore import ObstoreStore
from ckptflow.storage.credentials import secrets_of
from ckptflow.storage.local import LocalStore
from ckptflow.storage.opening import open_store
from ckptflow.storage.redaction import redact_url
from ckptflow.storage.retry import RetryingStore
from ckptflow.storage.store import Store
from ckptflow.testing import read_whole
from tests.servers import S3_KEY, S3_SECRET, Server

X = memoryview(b"x")
CLIENTS = ["fsspec", "obstore"]


def bare(url: str, options: dict[str, Any] | None = None) -> Store:
    """The store below the retries: its first error is the one raised."""
    store = open_store(url, options)
    assert isinstance(store, RetryingStore)
    return store.store


def calls(store: Store) -> dict[str, Callable[[], object]]:
    return {
        "list": lambda: store.list(),
        "read": lambda: store.get("k", memoryview(bytearray(4))),
        "write": lambda: store.put("k", X),
        "create": lambda: store.create("k", X),
        "delete": lambda: store.delete(["k"]),
    }


def s3_options(server: Server, client: str, **changes: Any) -> dict[str, Any]:
    return {**server.storage_options, "client": client, **changes}


# ---- buckets and credentials


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("kind", ["seaweedfs", "moto"])
def test_no_such_bucket(kind: str, client: str, request: pytest.FixtureRequest) -> None:
    server: Server = request.getfixturevalue(kind)
    store = bare("s3://no-such-bucket-here/run", s3_options(server, client))
    for doing, call in calls(store).items():
        with pytest.raises(StorageError, match=rf"s3://no-such-bucket-here/run.*cannot {doing}.*bucket") as raised:
            call()
        assert type(raised.value) is StorageError  # no retry, and not "nothing there"


def test_no_such_bucket_in_gcs(fake_gcs: Server) -> None:
    store = bare("gs://no-such-bucket-here/run", fake_gcs.storage_options)
    for doing, call in calls(store).items():
        if doing == "delete":
            continue  # Google answers the same for an object and for a bucket that is not there: nothing to delete
        with pytest.raises(StorageError, match=r"gs://no-such-bucket-here/run.*bucket") as raised:
            call()
        assert type(raised.value) is StorageError


def test_a_missing_object_in_gcs_asks_for_the_bucket_once(fake_gcs: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    store = bare("gs://ckptflow-tests/not-there", fake_gcs.storage_options)
    assert isinstance(store, FsspecStore)
    listed: list[str] = []
    real = store._find
    monkeypatch.setattr(store, "_find", lambda prefix: listed.append(prefix) or real(prefix))  # type: ignore[func-returns-value]
    for _ in range(3):
        with pytest.raises(ObjectNotFoundError):
            store.get("receipt", memoryview(bytearray(4)))
    assert len(listed) == 1


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    "wrong",
    [
        {"secret": "PLANTED-WRONG-SECRET"},
        {"key": "AKIAPLANTEDWRONG"},
        {"key": "AKIAPLANTEDWRONG", "secret": "PLANTED/SECRET"},
    ],
)
def test_wrong_credentials(seaweedfs: Server, client: str, wrong: dict[str, str]) -> None:
    store = bare("s3://ckptflow-tests/run", s3_options(seaweedfs, client, token="PLANTED-TOKEN", **wrong))
    for doing, call in calls(store).items():
        with pytest.raises(
            StorageAccessError, match=rf"s3://ckptflow-tests/run.*cannot {doing}.*check the cred"
        ) as raised:
            call()
        error: BaseException | None = raised.value
        while error is not None:  # what a traceback would show
            assert not any(secret in str(error) for secret in ("PLANTED", S3_SECRET))
            error = error.__cause__


@pytest.mark.parametrize("client", CLIENTS)
def test_no_answer_is_worth_another_try(client: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        options = {"key": S3_KEY, "secret": S3_SECRET, "client_kwargs": {"endpoint_url": endpoint, "region_name": "x"}}
        store = bare("s3://bucket/run", {**options, "client": client})
        for doing, call in calls(store).items():
            with pytest.raises(StorageUnavailableError, match=f"cannot {doing}"):
                call()


def test_no_answer_from_gcs() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        store = bare("gs://bucket/run", {"token": "anon", "endpoint_url": endpoint})
        for doing, call in calls(store).items():
            with pytest.raises(StorageUnavailableError, match=f"cannot {doing}"):
                call()


# ---- a network that loses replies


class LossyProxy:
    """Forwards TCP to a server, and drops the reply to the next request that carries `marker`, connection and all."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.marker = b""
        self.dropped = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            doomed = threading.Event()
            threading.Thread(target=self._to_server, args=(client, server, doomed), daemon=True).start()
            threading.Thread(target=self._to_client, args=(client, server, doomed), daemon=True).start()

    def _to_server(self, client: socket.socket, server: socket.socket, doomed: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65_536):
                if self.marker and self.marker in data:
                    self.marker = b""
                    doomed.set()
                server.sendall(data)

    def _to_client(self, client: socket.socket, server: socket.socket, doomed: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65_536):
                if doomed.is_set() and b" 100 " not in data[:20]:
                    self.dropped += 1
                    break
                client.sendall(data)
        for end in (client, server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def proxy(seaweedfs: Server) -> Iterator[LossyProxy]:
    proxy = LossyProxy(int(seaweedfs.endpoint.rpartition(":")[2]))
    yield proxy
    proxy.close()


@pytest.mark.parametrize("client", CLIENTS)
def test_a_create_whose_reply_is_lost(seaweedfs: Server, proxy: LossyProxy, client: str) -> None:
    kwargs = {**seaweedfs.storage_options["client_kwargs"], "endpoint_url": proxy.endpoint}
    store = open_store(f"s3://ckptflow-tests/lossy-{client}", s3_options(seaweedfs, client, client_kwargs=kwargs))
    store.put("warm", X)

    proxy.marker = b"PUT /ckptflow-tests/lossy-" + client.encode() + b"/once"
    # Below the retries: it may have arrived, and here it has. aiohttp itself sends a PUT again where a kept connection
    # breaks, so that s3fs, asked to try once, finds its own object.
    with pytest.raises(StorageUnavailableError if client == "obstore" else ObjectExistsError):
        store.store.create("once", memoryview(b"writer 7"))  # type: ignore[attr-defined]
    assert proxy.dropped == 1
    assert read_whole(store, "once") == b"writer 7"

    proxy.marker = b"PUT /ckptflow-tests/lossy-" + client.encode() + b"/twice"
    with pytest.raises(ObjectExistsError):  # with them: our own object, found by the second try
        store.create("twice", memoryview(b"writer 7"))
    assert proxy.dropped == 2
    assert read_whole(store, "twice") == b"writer 7"

    proxy.marker = b"PUT /ckptflow-tests/lossy-" + client.encode() + b"/shard"
    store.put("shard", X)  # replaces itself
    assert proxy.dropped == 3
    assert sorted(entry.key for entry in store.list()) == ["once", "shard", "twice", "warm"]


# ---- bodies that are not as they were announced


@contextlib.contextmanager
def s3_that_sends(status: int, body: bytes, announced: int) -> Iterator[str]:
    """An S3 that answers every GET with `body`, whatever it was asked for, and says that `announced` bytes follow."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(announced))
            self.send_header("Content-Range", f"bytes 0-{announced - 1}/{announced}")
            self.send_header("ETag", '"1"')
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    ("status", "sent", "announced", "error"),
    [
        (206, 1000, 5000, StorageUnavailableError),  # cut off: worth another try
        (206, 0, 5000, StorageUnavailableError),
        (206, 6000, 6000, StorageError),  # more than was asked for
        (200, 9000, 9000, StorageError),
    ],
)
def test_a_body_of_another_length(client: str, status: int, sent: int, announced: int, error: type[Exception]) -> None:
    with s3_that_sends(status, b"x" * sent, announced) as endpoint:
        options = {"key": S3_KEY, "secret": S3_SECRET, "client_kwargs": {"endpoint_url": endpoint, "region_name": "x"}}
        store = bare("s3://bucket/run", {**options, "client": client})
        into = bytearray(8000)
        with pytest.raises(error):
            store.get("shard", memoryview(into)[:5000])
        assert not any(into[5000:]), "bytes were written behind the end"
        store.close()


def test_what_s3fs_reads_is_held_once(seaweedfs: Server) -> None:
    """Straight into the caller's memory: the body is never collected as a whole beside it."""
    store = bare("s3://ckptflow-tests/once", s3_options(seaweedfs, "fsspec"))
    size_bytes = 32 << 20
    store.put("shard", memoryview(bytes(size_bytes)))
    into = memoryview(bytearray(size_bytes))
    store.get("shard", into)
    tracemalloc.start()
    try:
        assert store.get("shard", into) == size_bytes
        assert tracemalloc.get_traced_memory()[1] < size_bytes / 4
    finally:
        tracemalloc.stop()


# ---- URLs, options and clients


def test_schemes() -> None:
    assert isinstance(open_store("/data/run"), LocalStore)
    assert open_store("file:///data/run/").url == "/data/run"
    assert open_store("memory://run/7/").url == "memory://run/7"
    for url in ("nosuch://bucket/run", "simplecache::s3://bucket/run"):
        with pytest.raises(ValueError, match=r"no scheme .* is known; use a path, file://, s3://, gs://"):
            open_store(url)


def test_a_missing_package_is_named() -> None:
    with pytest.raises(ImportError, match=r"abfs://container/run: Install adlfs") as raised:
        open_store("abfs://user:planted-password@container/run")
    assert "planted-password" not in str(raised.value)


def test_a_url_shows_neither_user_nor_query() -> None:
    store = bare("memory://user:planted-password@host/run?X-Amz-Signature=planted")
    assert store.url == "memory://host/run?***"
    assert (
        redact_url("abfs://container@account.dfs.core.windows.net/a")
        == "abfs://container@account.dfs.core.windows.net/a"
    )
    options = {"key": "planted-key", "client_kwargs": {"aws_session_token": "planted-token", "region_name": "x"}}
    found = set(secrets_of("sftp://me:planted-password@host/run", {**options, "token": {"private_key": "planted-pem"}}))
    assert {"planted-key", "planted-token", "planted-password", "planted-pem", "me"} <= found
    assert "x" not in found


def test_memory_of_one_name_is_shared_and_apart_from_others() -> None:
    one, same, other = (
        open_store("memory://shared/a"),
        open_store("memory://shared/a"),
        open_store("memory://shared/ab"),
    )
    one.create("k", X)
    assert read_whole(same, "k") == b"x"
    assert other.list() == []
    one.delete(["k"])


def test_an_unknown_file_system_says_that_it_cannot_create_only() -> None:
    assert not FsspecStore("file:///tmp", {}).is_create_only


@pytest.mark.parametrize(
    ("options", "client"),
    [
        ({}, ObstoreStore),
        ({"client": "fsspec"}, FsspecStore),
        ({"client": "obstore"}, ObstoreStore),
        ({"anon": True}, ObstoreStore),
        ({"requester_pays": True}, FsspecStore),
        ({"config_kwargs": {"s3": {"addressing_style": "virtual"}}}, FsspecStore),
        ({"client_kwargs": {"verify": False}}, FsspecStore),
    ],
)
def test_which_client(options: dict[str, Any], client: type[Store]) -> None:
    given: dict[str, Any] = {"key": "k", "secret": "s", "client_kwargs": {"region_name": "eu-west-1"}}
    given["client_kwargs"] |= options.pop("client_kwargs", {})
    assert type(bare("s3://bucket/run", given | options)) is client


def test_a_panic_of_the_client_is_a_storage_error() -> None:
    """Credentials that were renewed and end in a newline: no Exception, and no server is asked."""
    given = {"key": "k", "secret": "s", "token": "renewed\n", "client_kwargs": {"region_name": "x"}}
    store = bare("s3://bucket/run", given)
    assert isinstance(store, ObstoreStore)
    for call in calls(store).values():
        with pytest.raises(StorageError) as raised:
            call()
        assert "renewed" not in str(raised.value)


def test_options_that_obstore_has_not_are_named_where_it_is_asked_for() -> None:
    given = {"key": "k", "secret": "s", "client_kwargs": {"region_name": "x"}, "client": "obstore"}
    with pytest.raises(ValueError, match="no equivalent of storage option requester_pays"):
        open_store("s3://bucket/run", {**given, "requester_pays": True})
    with pytest.raises(ValueError, match=r"s3:// and gs:// only"):
        open_store("memory://bucket/run", {"client": "obstore"})
    with pytest.raises(ValueError, match=r'"fsspec" or "obstore"'):
        open_store("s3://bucket/run", {"client": "curl"})


def test_without_a_region_s3fs_must_find_it() -> None:
    assert isinstance(bare("s3://bucket/run", {"key": "k", "secret": "s"}), FsspecStore)


def test_credentials_and_region_as_botocore_finds_them(seaweedfs: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", S3_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", S3_SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", seaweedfs.endpoint)
    for client in CLIENTS:
        store = open_store(f"s3://ckptflow-tests/from-environment-{client}", {"client": client})
        store.create("k", X)
        assert read_whole(store, "k") == b"x"


@pytest.mark.parametrize("client", CLIENTS)
def test_a_forked_child_is_told_to_open_its_own(moto: Server, client: str) -> None:
    store = bare("s3://ckptflow-tests/fork", s3_options(moto, client))
    store.put("k", X)
    child = os.fork()
    if child == 0:
        try:
            store.list()
        except UsageError:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("client", CLIENTS)
def test_one_put_per_object(moto: Server, client: str) -> None:
    """An object of several clients' multipart thresholds is still one PUT: its ETag is a plain MD5."""
    from tests.servers import s3_client

    store = open_store("s3://ckptflow-tests/single", s3_options(moto, client))
    store.put("k", memoryview(bytes(120 * 2**20)))
    head = s3_client(moto).head_object(Bucket="ckptflow-tests", Key="single/k")
    assert "-" not in head["ETag"]
    assert head["ContentLength"] == 120 * 2**20
    store.delete(["k"])
