"""Copies inside S3 and GCS: what is refused is written anew by whoever asked, so it is said once, and soon."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ckptflow.errors import ObjectChangedError, StorageAccessError, StorageError, StorageUnavailableError
from ckptflow.events import Event, Retried
from ckptflow.storage.opening import open_store
from ckptflow.storage.replies import StrangeReplyError, as_version, copy_gcs
from ckptflow.storage.retry import Retries, RetryingStore
from ckptflow.storage.throttling import hearing
from ckptflow.testing import read_whole
from tests.servers import Server
from tests.storage import lacking
from tests.storage.proxy import FaultyProxy, Reply, faulty_proxy

X = memoryview(b"x" * 5000)


@pytest.fixture(scope="module")
def through(seaweedfs: Server) -> Iterator[tuple[FaultyProxy, dict[str, Any]]]:
    with faulty_proxy(seaweedfs) as proxy:
        yield proxy, seaweedfs.options_at(proxy.endpoint)


@pytest.fixture
def proxy(through: tuple[FaultyProxy, dict[str, Any]]) -> Iterator[FaultyProxy]:
    yield through[0]
    through[0].rules = []


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def store(
    proxy: FaultyProxy, through: tuple[FaultyProxy, dict[str, Any]], events: list[Event], request: pytest.FixtureRequest
) -> Iterator[RetryingStore]:
    options = {**through[1], "client": "fsspec"}
    store = open_store(f"s3://ckptflow-tests/copies/{request.node.name}", options, events.append)
    assert isinstance(store, RetryingStore)
    store._retries = Retries(first_wait_s=0.001)
    yield store
    store.close()


def copies(proxy: FaultyProxy) -> int:
    return sum("x-amz-copy-source" in {name.lower() for name in headers} for headers in proxy.headers)


def written(store: RetryingStore, key: str) -> str:
    version = store.put(key, X)
    assert version is not None
    return version


def asked_before(store: RetryingStore) -> str:
    """The version of an object "a" that was copied: nothing has to be found out any more."""
    version = written(store, "a")
    store.copy("a", "first", version)
    return version


@pytest.mark.parametrize("reply", lacking.NO_COPIES, ids=lambda reply: f"{reply.status}-{reply.body[50:70]}")
def test_a_refusal_is_asked_once_and_said_once(
    proxy: FaultyProxy, store: RetryingStore, reply: Reply, caplog: pytest.LogCaptureFixture
) -> None:
    version = written(store, "a")
    proxy.rules = [lacking.no_copies(reply)]
    before = copies(proxy)
    with caplog.at_level(logging.INFO, "ckptflow.storage"):
        for kind in (StorageAccessError if reply.status == 403 else StorageError, StorageError):
            assert store.can_copy == (not caplog.records)
            with pytest.raises(kind, match="cannot copy to b"):
                store.copy("a", "b", version)
    assert copies(proxy) == before + 1
    assert [(record.levelname, "written, not copied" in record.getMessage()) for record in caplog.records] == [
        ("INFO", True)
    ]
    written(store, "b")


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId"])
def test_who_is_not_known_is_no_refusal_to_copy(proxy: FaultyProxy, store: RetryingStore, code: str) -> None:
    version = written(store, "a")
    proxy.rules = [lacking.no_copies(lacking.error(code, "who?", 403))]
    with pytest.raises(StorageAccessError):
        store.copy("a", "b", version)
    assert store.can_copy


THROTTLED = [
    lacking.error("SlowDown", "Please reduce your request rate.", 503),
    Reply(200, lacking.error("SlowDown", "Said while it was copying.", 200).body, {"Content-Type": "application/xml"}),
]


@pytest.mark.parametrize("reply", THROTTLED, ids=["503", "within 200"])
def test_what_is_throttled_has_few_tries(
    proxy: FaultyProxy, store: RetryingStore, events: list[Event], reply: Reply, caplog: pytest.LogCaptureFixture
) -> None:
    version = asked_before(store)
    proxy.rules = [lacking.no_copies(reply)]
    before = copies(proxy)
    heard: list[str] = []
    with hearing(lambda: heard.append("less")), pytest.raises(StorageUnavailableError):
        store.copy("a", "b", version)
    assert copies(proxy) == before + 3
    assert [(event.verb, event.key, event.tries) for event in events if isinstance(event, Retried)] == [
        ("copy", "b", 1),
        ("copy", "b", 2),
    ]
    assert len(heard) == 2
    assert store.can_copy
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


@pytest.mark.parametrize("body", [b"", lacking.error("InternalError", "", 500).body, b"<html><p>Sign in</p></html>"])
def test_what_is_no_reply_to_a_copy_is_not_believed(proxy: FaultyProxy, store: RetryingStore, body: bytes) -> None:
    version = asked_before(store)
    proxy.rules = [lacking.no_copies(Reply(200, body, {"ETag": f'"{version}"', "Content-Type": "application/xml"}))]
    with pytest.raises(StorageUnavailableError, match="cannot copy"):
        store.copy("a", "b", version)
    assert "b" not in {entry.key for entry in store.list()}


@pytest.mark.parametrize("kind", ["moto", "fake_gcs"])
def test_a_server_that_ignores_the_condition_is_not_asked_again(
    kind: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it would have copied: the very version that is there, too."""
    server: Server = request.getfixturevalue(kind)
    with faulty_proxy(server) as proxy:
        url = f"{'gs' if kind == 'fake_gcs' else 's3'}://ckptflow-tests/copies-ignored"
        store = open_store(url, {**server.options_at(proxy.endpoint), "client": "fsspec"})
        version = store.put("a", X)
        assert version is not None
        since = len(proxy.requests)
        with caplog.at_level(logging.INFO, "ckptflow.storage"):
            for why in ("the storage ignores the condition of a copy", "this storage has refused to copy"):
                with pytest.raises(StorageError, match=f"a: cannot copy to b: {why}"):
                    store.copy("a", "b", version)
                assert not store.can_copy
        assert len(proxy.requests) == since + 1
        assert ["written, not copied" in record.getMessage() for record in caplog.records] == [True]
        store.close()


def test_whether_the_condition_is_kept_is_asked_once(proxy: FaultyProxy, store: RetryingStore) -> None:
    """By the first copy, however many begin at once."""
    version = written(store, "a")
    before, start = copies(proxy), threading.Barrier(16)

    def copy(number: int) -> None:
        start.wait()
        store.copy("a", f"b/{number}", version)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(copy, range(16)))
    assert copies(proxy) == before + 1 + 16
    assert len(store.list("b/")) == 16


def test_the_version_does_not_depend_on_the_client(seaweedfs: Server) -> None:
    url = "s3://ckptflow-tests/copies-clients"
    one, other = (open_store(url, {**seaweedfs.storage_options, "client": each}) for each in ("fsspec", "obstore"))
    for size in (5_000, 2**21):
        data = memoryview(b"x" * size)
        assert one.put("a", data) == other.put("a", data) is not None
    version = one.put("a", X)
    assert version is not None
    other.copy("a", "b", version)
    assert read_whole(one, "b") == X


def rewriting(*replies: dict[str, Any]) -> tuple[list[dict[str, Any]], Any]:
    """A call of gcsfs's that is answered so, and what it was asked."""
    asked: list[dict[str, Any]] = []

    def call(*_: Any, headers: Any, **words: Any) -> tuple[dict[str, str], bytes]:
        asked.append(words)
        return {}, json.dumps(replies[len(asked) - 1]).encode()

    return asked, call


PART = {"kind": "storage#rewriteResponse", "done": False, "totalBytesRewritten": "10", "rewriteToken": "t"}
DONE = {"kind": "storage#rewriteResponse", "done": True, "resource": {"generation": "8"}}


def test_a_rewrite_in_several_parts_goes_on_to_its_end() -> None:
    asked, call = rewriting(PART, PART | {"totalBytesRewritten": "20"}, DONE)
    assert copy_gcs(call, "bucket", "a", "b", "7") == "8"
    assert asked == [
        {"ifSourceGenerationMatch": "7"},
        *[{"ifSourceGenerationMatch": "7", "rewriteToken": "t"}] * 2,
    ]


@pytest.mark.parametrize("replies", [(PART, PART), (PART | {"rewriteToken": ""},), ({"kind": "storage#object"},)])
def test_a_rewrite_that_does_not_go_on_is_given_up(replies: tuple[dict[str, Any], ...]) -> None:
    with pytest.raises(StrangeReplyError):
        copy_gcs(rewriting(*replies)[1], "bucket", "a", "b", "7")


def test_gcs_that_refuses_copies_and_takes_writes(fake_gcs: Server) -> None:
    with faulty_proxy(fake_gcs) as proxy:
        options = {**fake_gcs.options_at(proxy.endpoint), "endpoint_url": proxy.endpoint}
        store = open_store("gs://ckptflow-tests/copies", options)
        version = store.put("a", X)
        assert version is not None
        # The server itself ignores the condition.
        proxy.rules = [lambda line, _: Reply(412, b"{}") if re.search("ifSourceGenerationMatch=1(&|$)", line) else None]
        assert store.copy("a", "copy", version) not in (None, version)
        assert read_whole(store, "copy") == X
        for other in (hashlib.md5(X, usedforsecurity=False).hexdigest(), "9" * 19, "0"):  # of a copied checkpoint
            with pytest.raises(ObjectChangedError, match="cannot copy to b"):
                store.copy("a", "b", other)
        assert store.can_copy
        denied = Reply(403, json.dumps({"error": {"code": 403, "message": "no storage.objects.get"}}).encode())
        proxy.rules = [lambda line, headers: denied if "/rewriteTo/" in line else None]
        with pytest.raises(StorageAccessError, match="cannot copy to b"):
            store.copy("a", "b", version)
        assert not store.can_copy
        store.put("b", X)


NO_VERSIONS = ['W/"abc"', '"*"', '"a", "b"', "a\r\nx-amz-acl: public-read", "é", "x" * 129, "", None]


@pytest.mark.parametrize("told", NO_VERSIONS)
def test_what_cannot_be_a_condition_is_no_version(told: str | None, proxy: FaultyProxy, store: RetryingStore) -> None:
    assert as_version(told) is None
    store.put("a", X)
    before = len(proxy.requests)
    with pytest.raises(ObjectChangedError, match="cannot copy to b"):
        store.copy("a", "b", told or "")
    assert proxy.requests[before:] == []
    assert as_version('"0123-4"') == "0123-4"
