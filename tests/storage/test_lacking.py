"""S3-compatible servers that lack something: what still works, what is said, and how often a server is asked."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from ckptflow.commit import lineage
from ckptflow.commit.catalog import Summaries
from ckptflow.commit.lineage import claim_next
from ckptflow.errors import ObjectExistsError, StorageError, StorageUnavailableError
from ckptflow.storage.opening import open_store
from ckptflow.storage.retry import Retries, RetryingStore
from ckptflow.storage.store import Store
from ckptflow.testing import read_whole
from tests.servers import Server
from tests.storage import lacking
from tests.storage.proxy import FaultyProxy, Reply, faulty_proxy

X = memoryview(b"x")
CLIENTS = ["fsspec", "obstore"]


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "SETTLE_S", 0.01)


@pytest.fixture(scope="module")
def through(seaweedfs: Server) -> Iterator[tuple[FaultyProxy, dict[str, Any]]]:
    with faulty_proxy(seaweedfs) as proxy:
        kwargs = {**seaweedfs.storage_options["client_kwargs"], "endpoint_url": proxy.endpoint}
        yield proxy, {**seaweedfs.storage_options, "client_kwargs": kwargs}


@pytest.fixture
def proxy(through: tuple[FaultyProxy, dict[str, Any]]) -> Iterator[FaultyProxy]:
    yield through[0]
    through[0].rules = []


@pytest.fixture(params=CLIENTS)
def store(through: tuple[FaultyProxy, dict[str, Any]], request: pytest.FixtureRequest) -> Iterator[Store]:
    """A store with nothing in it, in front of a server that lacks what the test says."""
    with_client = {**through[1], "client": request.param}
    store = open_store(f"s3://ckptflow-tests/lacking/{request.node.name.replace('[', '/')}", with_client)
    assert isinstance(store, RetryingStore)
    store._retries = Retries(4, first_wait_s=0.001)
    yield store
    store.close()


def writes(proxy: FaultyProxy, before: int) -> int:
    return sum(line.startswith("PUT") for line in proxy.requests[before:])


@pytest.mark.parametrize("reply", lacking.NO_BULK_DELETE, ids=lambda reply: f"{reply.status}-{reply.body[97:130]}")
def test_what_cannot_be_deleted_at_once_is_deleted_one_by_one(proxy: FaultyProxy, store: Store, reply: Reply) -> None:
    keys = ["a/1", "a/2", "ü b+c/3"]
    proxy.rules = [lacking.no_bulk_delete(reply)]
    for _ in range(2):
        for key in keys:
            store.put(key, X)
        store.delete([*keys, "nothing/there"])
        assert store.list() == []


@pytest.mark.parametrize("code", ["AccessDenied", "InternalError", "NoSuchBucket"])
def test_what_single_deletes_do_not_mend_is_raised(proxy: FaultyProxy, store: Store, code: str) -> None:
    store.put("a/1", X)
    refusal = lacking.deleted(f"<Error><Key>a/1</Key><Code>{code}</Code><Message>no</Message></Error>")
    proxy.rules = [lacking.no_bulk_delete(refusal)]
    before = len(proxy.requests)
    with pytest.raises(StorageError, match=f"cannot delete.*{code}"):
        store.delete(["a/1"])
    assert not any(line.startswith("DELETE") for line in proxy.requests[before:])


@pytest.mark.parametrize("reply", lacking.NO_BULK_DELETE[3:6:2], ids=lambda reply: str(reply.status))
def test_the_server_is_asked_once_for_a_bulk_delete(proxy: FaultyProxy, store: Store, reply: Reply) -> None:
    proxy.rules = [lacking.no_bulk_delete(reply)]
    before = len(proxy.requests)
    for _ in range(3):
        store.delete(["a", "b"])
    asked = proxy.requests[before:]
    assert sum(map(lacking.is_bulk_delete, asked)) == (2 if reply.status == 200 else 1)  # a strange page comes once
    assert sum(line.startswith("DELETE") for line in asked) == 6


def test_a_refusal_to_delete_is_still_one(proxy: FaultyProxy, store: Store) -> None:
    """Where the single deletes are refused as well, that is said, and nothing is taken for granted."""
    store.put("a", X)
    denied = lacking.error("AccessDenied", "no", 403)
    proxy.rules = [
        lacking.no_bulk_delete(lacking.NO_BULK_DELETE[0]),
        lambda line, headers: denied if line.startswith("DELETE") else None,
    ]
    with pytest.raises(PermissionError, match="cannot delete"):
        store.delete(["a"])
    proxy.rules[1:] = [lambda line, headers: Reply(200).page() if line.startswith("DELETE") else None]
    with pytest.raises(StorageUnavailableError, match="cannot delete"):
        store.delete(["a"])
    assert [entry.key for entry in store.list()] == ["a"]


@pytest.mark.parametrize("reply", lacking.PERMANENT, ids=lambda reply: f"{reply.status}-{reply.body[50:70]}")
def test_what_no_retry_helps_is_sent_once(proxy: FaultyProxy, store: Store, reply: Reply) -> None:
    proxy.rules = [lacking.no_writes(reply)]
    for write in (store.put, store.create):
        before = len(proxy.requests)
        with pytest.raises(StorageError, match="not retryable") as raised:
            write("k", X)
        assert type(raised.value) is StorageError
        assert writes(proxy, before) == 1
    before = len(proxy.requests)
    with pytest.raises(StorageError) as raised:
        claim_next(store, Summaries(store), "start", 30.0)
    assert type(raised.value) is StorageError
    assert writes(proxy, before) == 1


@pytest.mark.parametrize(
    "reply",
    [Reply(520), lacking.error("NewTrouble", "x", 500), lacking.error("KMS.ThrottlingException", "x", 400)],
    ids=lambda reply: str(reply.status),
)
def test_what_a_retry_may_help_is_sent_again(proxy: FaultyProxy, store: Store, reply: Reply) -> None:
    left = [reply]
    proxy.rules = [lambda line, headers: left.pop() if left and line.startswith("PUT") else None]
    store.put("k", X)
    assert read_whole(store, "k") == b"x"


@pytest.mark.parametrize("reply", lacking.UNKNOWN_CONDITIONS, ids=lambda reply: f"{reply.status}-{reply.body[50:70]}")
def test_a_server_without_conditions_is_a_store_without_create_only(
    proxy: FaultyProxy, store: Store, reply: Reply, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.rules = [lacking.no_condition(reply)]
    assert store.is_create_only
    with caplog.at_level(logging.WARNING, "ckptflow"):
        held = claim_next(store, Summaries(store), "start", 30.0)
    assert not held.is_exclusive
    assert not store.is_create_only
    assert sum("neither may notice" in message for message in caplog.messages) == 1
    with pytest.raises(ObjectExistsError):
        store.create("lineage/000001.json", X)
    store.create("other", X)
    assert read_whole(store, "other") == b"x"
    again = claim_next(store, Summaries(store), "start", 30.0)
    assert (again.number, again.run_id) == (2, held.run_id)


def test_one_501_is_no_proof(proxy: FaultyProxy, store: Store) -> None:
    left = [Reply(501)]
    proxy.rules = [lambda line, headers: left.pop() if left and line.startswith("PUT") else None]
    store.create("k", X)
    assert store.is_create_only
    with pytest.raises(ObjectExistsError):
        store.create("k", X)


def test_an_older_minio_says_304(proxy: FaultyProxy, store: Store) -> None:
    store.put("k", X)
    proxy.rules = [lacking.no_condition(Reply(304))]
    with pytest.raises(ObjectExistsError):
        store.create("k", X)


@pytest.mark.parametrize("reply", lacking.UNKNOWN_CHECKSUMS, ids=lambda reply: f"{reply.status}-{reply.body[50:70]}")
@pytest.mark.parametrize("is_set_by", ["option", "environment"])
def test_a_server_without_checksums_is_told_how_to_be_used(
    through: tuple[FaultyProxy, dict[str, Any]],
    proxy: FaultyProxy,
    reply: Reply,
    is_set_by: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxy.rules = [lacking.no_checksums(reply)]
    options = {**through[1], "client": "fsspec"}
    store = open_store("s3://ckptflow-tests/lacking/checksums", options)
    for write in (store.put, store.create):
        with pytest.raises(StorageError, match=r"request_checksum_calculation.*when_required"):
            write("k", X)
    if is_set_by == "option":
        options["config_kwargs"] = {"request_checksum_calculation": "when_required"}
    else:
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    half = open_store("s3://ckptflow-tests/lacking/checksums", options)
    half.put("a", X)
    with pytest.raises(StorageError, match=r"cannot read.*response_checksum_validation.*when_required"):
        read_whole(half, "a")
    if is_set_by == "option":
        options["config_kwargs"]["response_checksum_validation"] = "when_required"
    else:
        monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    for client in CLIENTS:  # one set of options for both
        store = open_store("s3://ckptflow-tests/lacking/checksums", {**options, "client": client})
        store.put("a", X)
        store.create("b", X)
        with pytest.raises(ObjectExistsError):
            store.create("b", X)
        assert read_whole(store, "a") == b"x"
        store.delete(["a", "b"])
        assert store.list() == []
