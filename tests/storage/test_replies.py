"""What is answered with success and is no answer: pages of proxies, cut bodies, replies to something else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from ckptflow.errors import ObjectNotFoundError, StorageAccessError, StorageError, StorageUnavailableError
from ckptflow.storage.opening import open_store
from ckptflow.storage.retry import Retries, RetryingStore
from ckptflow.storage.store import Store
from ckptflow.testing import read_whole
from tests.servers import Server
from tests.storage import proxy as proxies
from tests.storage.gcs_xml import PREFIX, GcsXmlBackend
from tests.storage.proxy import Fault, FaultyProxy, faulty_proxy

X = memoryview(b"x" * 5000)
CLIENTS = ["s3fs", "obstore", "gcsfs", "obstore for gcs"]
KEYS = ["a/1", "a/2", "lineage/000001.json"]
NO_REPLY: list[Fault] = [proxies.empty, proxies.page, proxies.page_of_html, proxies.page_at_length]


@pytest.fixture(scope="module", params=CLIENTS)
def way(request: pytest.FixtureRequest) -> Iterator[tuple[str, FaultyProxy]]:
    """A client, and the proxy that it speaks to a real server through."""
    client: str = request.param
    if client == "obstore for gcs":
        with GcsXmlBackend.serving() as backend, faulty_proxy(backend) as proxy:  # type: ignore[arg-type]
            yield client, proxy
        return
    server: Server = request.getfixturevalue("fake_gcs" if client == "gcsfs" else "seaweedfs")
    with faulty_proxy(server) as proxy:
        proxy.storage_options = server.storage_options  # type: ignore[attr-defined]
        yield client, proxy


def open_through(client: str, proxy: FaultyProxy, name: str, tries: int = 1) -> Store:
    """A store whose first error is raised, or one that tries again at once."""
    options: dict[str, Any] = dict(getattr(proxy, "storage_options", {}))
    if client in ("gcsfs", "obstore for gcs"):
        options = {"token": "anon", "endpoint_url": proxy.endpoint}
        url = f"gs://bucket/{PREFIX}{name}" if client != "gcsfs" else f"gs://ckptflow-tests/replies/{name}"
        options["client"] = "obstore" if client != "gcsfs" else "fsspec"
    else:
        options["client_kwargs"] = {**options["client_kwargs"], "endpoint_url": proxy.endpoint}
        options["client"] = "fsspec" if client == "s3fs" else client
        url = f"s3://ckptflow-tests/replies {client}/ü+{name}"
    store = open_store(url, options)
    assert isinstance(store, RetryingStore)
    store._retries = Retries(tries, first_wait_s=0.001)
    return store


@pytest.fixture(scope="module")
def store(way: tuple[str, FaultyProxy]) -> Iterator[Store]:
    """One for all tests of a client; each leaves it as it was."""
    store = open_through(*way, name="store")
    for key in KEYS:
        store.put(key, X)
    yield store
    store.close()


def is_listing(client: str) -> str:
    return "list-type=2" if client in ("s3fs", "obstore") else "/o?"


@pytest.mark.parametrize("fault", [*NO_REPLY, proxies.cut, proxies.short])
def test_what_is_no_listing_is_never_an_empty_one(way: tuple[str, FaultyProxy], store: Store, fault: Fault) -> None:
    client, proxy = way
    for prefix in ("", "lineage/"):
        proxy.spoil(fault, is_listing(client))
        with pytest.raises(StorageUnavailableError, match="cannot list"):
            store.list(prefix)
        assert proxy.is_done
    assert len(store.list()) == 3


@pytest.mark.parametrize("code", [302, 400, 403, 404, 500])
def test_a_refusal_is_never_an_empty_listing(way: tuple[str, FaultyProxy], store: Store, code: int) -> None:
    client, proxy = way
    proxy.spoil(proxies.status(code), is_listing(client))
    with pytest.raises(StorageError) as raised:
        store.list()
    expected = {403: StorageAccessError, 500: StorageUnavailableError, 302: StorageUnavailableError}
    assert isinstance(raised.value, expected.get(code, StorageError))
    assert proxy.is_done


def test_a_listing_of_something_else(way: tuple[str, FaultyProxy], store: Store) -> None:
    client, proxy = way
    others = open_through(*way, name="others")
    others.put("b", X)

    def swapped(ask: proxies.Ask) -> proxies.Reply:
        caught: list[proxies.Reply] = []

        def catch(ask: proxies.Ask) -> proxies.Reply:
            caught.append(ask())
            return caught[0]

        proxy.spoil(catch, is_listing(client))
        others.list()
        return caught[0]

    proxy.spoil(swapped, is_listing(client))
    with pytest.raises(StorageUnavailableError, match="cannot list"):
        store.list("lineage/")


@pytest.mark.parametrize("fault", [*NO_REPLY[:3], proxies.cut, proxies.short, proxies.status(302)])
def test_what_is_no_range_is_no_object(way: tuple[str, FaultyProxy], store: Store, fault: Fault) -> None:
    _, proxy = way
    for length in (5000, 9000, 10):
        proxy.spoil(fault, "GET")
        into = memoryview(bytearray(length))
        with pytest.raises(StorageUnavailableError, match="cannot read"):
            store.get("a/1", into)
        assert proxy.is_done
        assert store.get("a/1", into) == min(length, 5000)


@pytest.mark.parametrize("code", [403, 404, 500])
def test_refusals_of_a_read(way: tuple[str, FaultyProxy], store: Store, code: int) -> None:
    _, proxy = way
    proxy.spoil(proxies.status(code), "GET")
    expected = {403: StorageAccessError, 404: ObjectNotFoundError, 500: StorageUnavailableError}
    with pytest.raises(expected[code]):
        store.get("a/1", memoryview(bytearray(10)))


@pytest.mark.parametrize(
    "fault", [proxies.empty, proxies.page, proxies.page_of_html, proxies.page_with_md5, proxies.page_after]
)
def test_what_is_no_reply_to_a_write_is_not_believed(way: tuple[str, FaultyProxy], store: Store, fault: Fault) -> None:
    client, proxy = way
    method = "POST" if client == "gcsfs" else "PUT"
    looks = client.startswith("obstore") and fault is proxies.page_after  # whether it is there; and it is
    for write in (store.put, store.create):
        proxy.spoil(fault, method)
        with (
            contextlib.nullcontext() if looks else pytest.raises(StorageUnavailableError, match=r"cannot (write|crea)")
        ):
            write(f"b/{write.__name__}", X)
        assert proxy.is_done
    there = [entry.key for entry in store.list("b/")]
    assert there == (["b/create", "b/put"] if fault is proxies.page_after else [])
    store.delete(there)


@pytest.mark.parametrize("size_bytes", [5000, 2 * 2**20])
def test_a_page_in_place_of_a_replacement(way: tuple[str, FaultyProxy], store: Store, size_bytes: int) -> None:
    """An object of that size is there: the old one."""
    client, proxy = way
    store.put("b/put", memoryview(b"o" * size_bytes))
    proxy.spoil(proxies.page_with_md5, "POST" if client == "gcsfs" else "PUT")
    with pytest.raises(StorageUnavailableError, match="cannot write"):
        store.put("b/put", memoryview(b"n" * size_bytes))
    assert proxy.is_done
    store.put("b/put", memoryview(b"n" * size_bytes))
    assert read_whole(store, "b/put") == b"n" * size_bytes
    store.delete(["b/put"])


@pytest.mark.parametrize("fault", [proxies.page, proxies.page_of_html])
def test_what_is_no_reply_to_a_deletion_is_not_believed(
    way: tuple[str, FaultyProxy], store: Store, fault: Fault
) -> None:
    """Of S3's request for many the objects are asked for one by one, which is answered in the same way here."""
    _, proxy = way
    proxy.spoil(fault, "DELETE" if "gcs" in way[0] else "", times=3)
    with pytest.raises(StorageUnavailableError, match="cannot delete"):
        store.delete(["a/1", "a/2"])
    proxy.spoil(fault, times=0)
    store.delete(["a/1", "a/2"])
    assert [entry.key for entry in store.list()] == ["lineage/000001.json"]
    for key in KEYS:
        store.put(key, X)


def test_one_404_is_no_deletion(way: tuple[str, FaultyProxy], store: Store) -> None:
    client, proxy = way
    if "gcs" not in client:
        pytest.skip("S3 says of each object what became of it")
    proxy.spoil(proxies.status(404), "DELETE")
    store.delete(["a/1"])
    assert proxy.is_done
    assert [entry.key for entry in store.list("a/")] == ["a/2"]
    store.put("a/1", X)


def test_asking_again_is_on_a_new_connection_and_past_caches(way: tuple[str, FaultyProxy], store: Store) -> None:
    _, proxy = way
    begin = len(proxy.connections)
    for _ in range(3):
        store.get("a/1", memoryview(bytearray(10)))
    kept = set(proxy.connections[begin:])  # a new one may have the port of one that was closed long before
    before = len(proxy.requests)
    store.renew("a/1")  # type: ignore[attr-defined]
    assert read_whole(store, "a/1") == X
    store.list("a/")
    new = list(zip(proxy.requests, proxy.connections, proxy.headers, strict=True))[before:]
    for line, connection, headers in new:
        if line.startswith("GET"):
            assert connection not in kept, line
            assert {name.lower(): value for name, value in headers.items()}["cache-control"] == "no-cache", line
    store.put("a/3", X)
    store.delete(["a/3"])


def test_a_page_once_is_asked_again(way: tuple[str, FaultyProxy]) -> None:
    """Through the retries: each verb, each kind of page, once."""
    client, proxy = way
    store = open_through(*way, name="once", tries=8)
    store.put("k", X)
    for fault in (proxies.page, proxies.page_of_html, proxies.status(302), proxies.status(503), proxies.lost_before):
        proxy.spoil(fault, "GET")
        assert read_whole(store, "k") == X
        assert proxy.is_done
        proxy.spoil(fault, is_listing(client))
        assert [entry.key for entry in store.list()] == ["k"]
        assert proxy.is_done
