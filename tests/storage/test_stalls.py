"""A storage that accepts a connection and then says nothing, at whatever moment; and one that is slow, and moves."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ckptflow.errors import ObjectExistsError, StorageUnavailableError
from ckptflow.places.files import fetched
from ckptflow.places.http import HttpFile
from ckptflow.storage.opening import open_store
from ckptflow.storage.retry import Retries, RetryingStore
from ckptflow.storage.store import Store
from ckptflow.storage.throttling import hearing
from ckptflow.testing import read_whole
from tests.servers import Server
from tests.storage.gcs_xml import PREFIX, GcsXmlBackend
from tests.storage.stalling import Side, StallingProxy, stalling_proxy
from tests.waiting import HANG_S, until

CLIENTS = ["s3fs", "obstore", "gcsfs", "obstore for gcs"]
LIMIT_S = 1.5
MIB = 2**20
DATA = os.urandom(4 * 2**20)  # more than what the buffers on the way hold
GIVEN_UP = r"no byte was sent or received for 1\.5 s|the write was not done after 1\.5 s"


@pytest.fixture(scope="module", params=CLIENTS)
def client(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="module")
def server(client: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    if client == "obstore for gcs":
        with GcsXmlBackend.serving() as backend:
            yield backend
        return
    yield request.getfixturevalue("fake_gcs" if client == "gcsfs" else "seaweedfs")


@pytest.fixture
def proxy(server: Any) -> Iterator[StallingProxy]:
    with stalling_proxy(server.endpoint) as proxy:
        yield proxy


def open_through(
    client: str, server: Server, endpoint: str, tries: int = 4, limit_s: Any = LIMIT_S, name: str = "stalls"
) -> Store:
    options: dict[str, Any] = {"token": "anon", "endpoint_url": endpoint}
    url = f"gs://bucket/{PREFIX}{name}" if client == "obstore for gcs" else f"gs://ckptflow-tests/{name}"
    if client in ("s3fs", "obstore"):
        options = dict(server.storage_options)
        options["client_kwargs"] = {**options["client_kwargs"], "endpoint_url": endpoint}
        url = f"s3://ckptflow-tests/{name} {client}"
    if client == "gcsfs":
        options["session_kwargs"] = {"trust_env": True}
    options |= {"client": "obstore" if "obstore" in client else "fsspec", "stall_timeout_s": limit_s}
    store = open_store(url, options)
    assert isinstance(store, RetryingStore)
    store._retries = Retries(tries, max_wait_s=HANG_S, first_wait_s=0.001)
    return store


def read(store: Store) -> bytes:
    into = bytearray(len(DATA))
    assert store.get("a/object", memoryview(into)) == len(DATA)
    return bytes(into)


def write(store: Store) -> bytes:
    store.put("a/written", memoryview(DATA))
    return read_whole(store, "a/written")


def create(store: Store) -> bytes:
    with contextlib.suppress(ObjectExistsError):  # a late reply: the next try has met its own object
        store.create("a/created", memoryview(DATA))
    return read_whole(store, "a/created")


def write_small(store: Store) -> bytes:
    store.put("a/written", memoryview(b"small"))
    return DATA if read_whole(store, "a/written") == b"small" else b""


def listed(store: Store) -> bytes:
    return DATA if "a/object" in [entry.key for entry in store.list()] else b""


def delete(store: Store) -> bytes:
    store.delete(["a/none"])
    return DATA


# What is done, the side that stands still, and after how many bytes of the request, or of the reply.
MOMENTS: list[tuple[Callable[[Store], bytes], Side, int]] = [
    (write, "both", 0),
    (write, "upload", 2**20),
    (write, "download", 0),
    (write_small, "both", 0),
    (create, "upload", 2**20),
    (read, "both", 0),
    (read, "download", 2**20),
    (listed, "both", 0),
    (delete, "both", 0),
]


def test_a_request_that_stands_still_is_tried_again(client: str, server: Any) -> None:
    """A few moments at the same time, each on connections of its own."""

    def stand_still(doing: Callable[[Store], bytes], side: Side, after_bytes: int) -> None:
        name = f"{doing.__name__}-{side}-{after_bytes}"
        beside = open_through(client, server, server.endpoint, limit_s=None, name=name)
        beside.put("a/object", memoryview(DATA))
        beside.delete(["a/created"])
        with stalling_proxy(server.endpoint) as proxy:
            store = open_through(client, server, proxy.endpoint, tries=8, name=name)
            proxy.stall("?" if doing is listed else "", side, after_bytes)
            assert doing(store) == DATA
            assert proxy.struck == 1
            until(lambda: proxy.is_dropped, HANG_S)  # the connection is not kept

    with ThreadPoolExecutor(3) as threads:  # more, and a busy machine's server is silent itself
        started = {threads.submit(stand_still, *moment): moment for moment in MOMENTS}
    failed = {f"{doing.__name__} {side} {after}": each.exception() for each, (doing, side, after) in started.items()}
    assert not any(failed.values()), failed


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_storage_that_accepts_connections_and_says_nothing(client: str, server: Any, scheme: str) -> None:
    with stalling_proxy(server.endpoint, scheme) as proxy:
        proxy.is_deaf = True
        store = open_through(client, server, proxy.endpoint, tries=1)

        def raised(call: Callable[[], object]) -> str:
            with pytest.raises(StorageUnavailableError) as error:
                call()
            return str(error.value)

        calls: list[Callable[[], object]] = [
            lambda: store.list(),
            lambda: store.get("a/object", memoryview(bytearray(4))),
            lambda: store.put("a/object", memoryview(b"x")),
            lambda: store.create("a/new", memoryview(b"x")),
            lambda: store.delete(["a/object"]),
        ]
        with ThreadPoolExecutor(len(calls)) as threads:
            texts = list(threads.map(raised, calls))
        assert all(store.url in text and "try again later" in text for text in texts), texts
        if scheme == "http":
            assert all("for 1.5 s" in text or "after 1.5 s" in text for text in texts), texts


def test_one_that_always_stands_still_is_an_error_that_says_so(client: str, server: Any, proxy: StallingProxy) -> None:
    store = open_through(client, server, proxy.endpoint, tries=2)
    open_through(client, server, proxy.endpoint, limit_s=None).put("a/object", memoryview(DATA))
    proxy.stall("", "both", times=1000)

    def fail(doing: Callable[[Store], bytes]) -> None:
        with pytest.raises(StorageUnavailableError, match=GIVEN_UP) as raised:
            doing(store)
        assert f"{store.url}/a/" in str(raised.value)
        assert any("given up after 2 tries" in note for note in raised.value.__notes__)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(fail, [read, write]))


def test_a_slow_transfer_that_moves_is_not_cut(client: str, server: Any, proxy: StallingProxy) -> None:
    """Each takes several times the limit: what is cut for that is cut in every try.

    obstore has one limit for all of a write, so the next try is fsspec's.
    """
    store = open_through(client, server, proxy.endpoint, tries=3)
    open_through(client, server, proxy.endpoint, limit_s=None).put("a/object", memoryview(DATA))
    proxy.stall("", "both", bytes_per_s=2**20, times=1000)
    with ThreadPoolExecutor(2) as threads:
        reading, writing = threads.submit(read, store), threads.submit(write, store)
        assert reading.result() == writing.result() == DATA


def test_obstore_writes_again_once_the_link_is_fast(seaweedfs: Server) -> None:
    with stalling_proxy(seaweedfs.endpoint) as proxy:
        store = open_through("obstore", seaweedfs, proxy.endpoint, limit_s=3.0)  # of 4 s that a slow write takes

        def writer() -> str:
            proxy.heads.clear()
            store.put("a/object", memoryview(DATA))
            agent = proxy.heads[-1].lower().partition(b"user-agent: ")[2].partition(b"\r\n")[0]
            return "obstore" if b"object_store" in agent else "s3fs"

        until(lambda: writer() == "obstore", HANG_S)  # a pause of the machine may have cut one
        proxy.stall("PUT", "upload", bytes_per_s=2**20, times=1000)
        assert [writer(), writer()] == ["s3fs", "s3fs"]
        assert not any(b"object_store" in head.lower() for head in proxy.heads)  # not tried first each time
        proxy.stall("nothing", "both")
        assert writer() == "s3fs"
        until(lambda: writer() == "obstore", HANG_S)


def test_a_write_that_obstore_gives_up_asks_for_fewer_at_once(
    seaweedfs: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow uplink, of which each of many has too little; the smallest that was given up says from where on."""
    import obstore

    small, large = MIB, 2 * MIB
    both_are_under_way, small_is_given_up = threading.Barrier(2), threading.Event()

    def give_up(client: Any, path: str, data: memoryview, **_: Any) -> Any:
        both_are_under_way.wait(HANG_S)
        if data.nbytes == large:
            assert small_is_given_up.wait(HANG_S)
        raise TimeoutError(errno.ETIMEDOUT, "timed out")

    store = open_through("obstore", seaweedfs, seaweedfs.endpoint, tries=1)

    def write_in_vain(size_bytes: int) -> None:
        refusals: list[int] = []

        def heard() -> None:
            refusals.append(size_bytes)
            if size_bytes == small:
                small_is_given_up.set()

        with hearing(heard), pytest.raises(StorageUnavailableError, match="given up"):
            store.put("a/vain", memoryview(bytes(size_bytes)))
        assert refusals == [size_bytes]

    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as threads:
        patch.setattr(obstore, "put", give_up)
        list(threads.map(write_in_vain, [small, large]))
    monkeypatch.delattr(obstore, "put")
    store.put("a/small", memoryview(bytes(small)))  # by s3fs


def test_a_web_server_that_stands_still(seaweedfs: Server) -> None:
    open_store("s3://ckptflow-tests/web", seaweedfs.storage_options).put("file", memoryview(DATA))
    with stalling_proxy(seaweedfs.endpoint) as proxy:
        proxy.stall("GET", "download", 2**20)
        options = {"stall_timeout_s": LIMIT_S}
        url = presigned(seaweedfs, proxy, "web/file")
        with fetched(url, options) as path, open(path, "rb") as file:
            assert file.read() == DATA
        assert proxy.struck == 1


def presigned(server: Server, proxy: StallingProxy, key: str) -> str:
    import boto3

    options = server.storage_options
    client = boto3.client(
        "s3",
        endpoint_url=proxy.endpoint,
        aws_access_key_id=options["key"],
        aws_secret_access_key=options["secret"],
        region_name="us-east-1",
    )
    return str(client.generate_presigned_url("get_object", Params={"Bucket": "ckptflow-tests", "Key": key}))


@pytest.mark.parametrize("client", [*CLIENTS, "a web server"])
def test_a_proxy_that_accepts_a_connection_and_says_nothing(client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """aiohttp waits without limit for the reply to CONNECT."""
    monkeypatch.setenv("no_proxy", "")
    server = Server("seaweedfs", "https://storage.invalid", {"key": "k", "secret": "s", "client_kwargs": {}})

    def read_something() -> None:
        if client == "a web server":
            HttpFile("https://storage.invalid/file", {"stall_timeout_s": LIMIT_S})._download("/dev/null", 2**20)
        else:
            open_through(client, server, server.endpoint, tries=1).get("a/object", memoryview(bytearray(4)))

    with stalling_proxy("http://127.0.0.1:9") as proxy:
        proxy.is_deaf = True
        monkeypatch.setenv("https_proxy", proxy.endpoint)
        with pytest.raises(StorageUnavailableError, match=r"(?i)time|1\.5 s"):
            read_something()
        assert proxy.struck


# ---- where credentials come from


@pytest.mark.parametrize("client", ["fsspec", "obstore"])
def test_a_token_endpoint_that_says_nothing(client: str) -> None:
    from google.oauth2.credentials import Credentials

    with stalling_proxy("http://127.0.0.1:9") as proxy:
        proxy.is_deaf = True
        token = Credentials(None, "refresh", token_uri=f"{proxy.endpoint}/token", client_id="id", client_secret="s")
        options = {"token": token, "endpoint_url": "http://127.0.0.1:9", "client": client, "stall_timeout_s": LIMIT_S}
        store = open_store("gs://bucket/run", options)
        assert isinstance(store, RetryingStore)
        with pytest.raises(StorageUnavailableError, match=r"read timeout=1\.5"):
            store.store.get("a/object", memoryview(bytearray(4)))


@pytest.mark.parametrize("client", ["fsspec", "obstore"])
def test_a_service_for_credentials_that_says_nothing(
    client: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "token").write_text("token")
    with stalling_proxy("http://127.0.0.1:9") as proxy:
        proxy.is_deaf = True
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/job")
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", proxy.endpoint)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        store = open_store("s3://bucket/run", {"client": client, "stall_timeout_s": LIMIT_S})
        assert isinstance(store, RetryingStore)
        with pytest.raises(StorageUnavailableError, match="Read timeout on endpoint URL"):
            store.store.get("a/object", memoryview(bytearray(4)))
        assert proxy.struck == 1  # one try: more are ours


# ---- the setting


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), 86_401, True, "soon", [1]])
def test_limits_that_are_none(wrong: Any) -> None:
    for url in ("s3://bucket/run", "gs://bucket/run", "memory://run"):
        with pytest.raises(ValueError, match="stall_timeout_s is a number of seconds above 0"):
            open_store(url, {"stall_timeout_s": wrong})
    with pytest.raises(ValueError, match="stall_timeout_s"), fetched("s3://bucket/x", {"stall_timeout_s": wrong}):
        pass


@pytest.mark.parametrize("limit_s", [None, "20", 9.5, 86_400])
def test_limits(client: str, server: Any, limit_s: Any) -> None:
    store = open_through(client, server, server.endpoint, limit_s=limit_s)
    store.put("a/object", memoryview(DATA))
    assert read(store) == DATA
    assert listed(store) == DATA
