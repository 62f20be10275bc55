"""Retries, and the stores that other tests stand on."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ckptflow.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    StorageAccessError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
)
from ckptflow.events import Event, Retried
from ckptflow.storage.again import hurry
from ckptflow.storage.local import LocalStore
from ckptflow.storage.retry import RetryingStore
from ckptflow.storage.throttling import hearing
from ckptflow.storage.wrappers import can_copy, filled_bytes
from ckptflow.testing import CountingStore, FaultyStore, LatencyStore, MemoryStore, StoreWrapper, read_whole

X = memoryview(b"x")
BUSY = StorageUnavailableError("busy")


def retrying(faulty: FaultyStore, max_tries: int = 4) -> RetryingStore:
    return RetryingStore(faulty, max_tries=max_tries, first_wait_s=0.001)


def test_every_verb_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    faulty = FaultyStore(MemoryStore())
    counting = CountingStore(faulty)
    store = RetryingStore(counting, first_wait_s=0.001)
    for verb in ("put", "create", "get", "list", "copy", "delete"):
        faulty.fail(verb, BUSY, times=2)
    with caplog.at_level(logging.WARNING, "ckptflow.storage"):
        version = store.put("a", X)
        store.create("b", X)
        assert store.get("a", memoryview(bytearray(2))) == 1
        assert [entry.key for entry in store.list()] == ["a", "b"]
        store.copy("a", "c", str(version))
        store.delete(["a"])
    faulty.assert_all_used()
    assert counting.counts == {"put": 3, "create": 3, "get": 3, "list": 3, "copy": 3, "delete": 3}
    assert counting.keys("copy") == ["c"] * 3
    assert len(caplog.records) == 10  # who copies writes anew where it cannot be, and nobody need hear of it
    assert "busy" in caplog.text


def test_whoever_asks_hears_that_the_storage_wants_fewer_requests() -> None:
    """Through whatever lies between; of a failure that says nothing of the number, nobody does."""
    slow_down = StorageUnavailableError("SlowDown")
    slow_down.asks_for_less = True
    events: list[Event] = []
    faulty = FaultyStore(MemoryStore())
    store = StoreWrapper(RetryingStore(faulty, first_wait_s=0.001, tell=events.append))
    heard: list[str] = []
    for error in (BUSY, slow_down, slow_down):
        faulty.fail("put", error)
    with hearing(lambda: heard.append("outer")):
        with hearing(lambda: heard.append("inner")):
            store.put("a", X)
        faulty.fail("get", slow_down)
        store.get("a", memoryview(bytearray(1)))
    faulty.fail("get", slow_down)
    store.get("a", memoryview(bytearray(1)))
    assert heard == ["inner", "inner", "outer"]
    assert [isinstance(event, Retried) and event.asks_for_less for event in events] == [False, True, True, True, True]


def test_retries_are_bounded_and_counted() -> None:
    faulty = FaultyStore(MemoryStore())
    faulty.fail("put", BUSY, times=4)
    with pytest.raises(StorageUnavailableError, match="busy") as raised:
        retrying(faulty).put("a", X)
    faulty.assert_all_used()
    assert any("4 tries" in note for note in raised.value.__notes__)


def test_retries_end_with_their_time() -> None:
    faulty = FaultyStore(MemoryStore())
    faulty.fail("put", BUSY, times=1_000)
    with pytest.raises(StorageUnavailableError):
        RetryingStore(faulty, max_tries=1_000, max_wait_s=0.2, first_wait_s=0.01).put("a", X)
    assert 1 < sum(fault.is_used for fault in faulty.faults) < 40


@pytest.mark.parametrize("kind", [StorageError, StorageAccessError, StorageFullError, ObjectExistsError, KeyError])
def test_what_no_retry_helps_is_raised_at_once(kind: type[Exception]) -> None:
    faulty = FaultyStore(MemoryStore())
    counting = CountingStore(faulty)
    faulty.fail("create", kind("no"))
    with pytest.raises(kind):
        RetryingStore(counting).create("a", X)
    assert counting.calls == [("create", "a")]


def test_a_create_whose_reply_was_lost_says_exists_and_reading_back_tells_whose() -> None:
    memory = MemoryStore()
    faulty = FaultyStore(memory)
    faulty.fail("create", BUSY, key="manifest", is_after=True)
    with pytest.raises(ObjectExistsError):
        retrying(faulty).create("f/manifest.json", memoryview(b"writer 7"))
    assert read_whole(memory, "f/manifest.json") == b"writer 7"
    faulty.assert_all_used()


def test_faults_strike_the_verb_and_key_they_name_once() -> None:
    faulty = FaultyStore(MemoryStore())
    faulty.fail("put", BUSY, key="shard-1")
    faulty.put("shard-0", X)
    faulty.create("shard-1", X)
    with pytest.raises(AssertionError, match="never struck"):
        faulty.assert_all_used()
    with pytest.raises(StorageUnavailableError):
        faulty.put("f/shard-1", X)
    faulty.put("f/shard-1", X)
    faulty.assert_all_used()


def test_a_fault_before_the_call_leaves_nothing_and_one_after_it_does() -> None:
    memory = MemoryStore()
    faulty = FaultyStore(memory)
    faulty.fail("put", BUSY)
    faulty.fail("put", BUSY, is_after=True)
    for expected in (set(), {"a"}):
        with pytest.raises(StorageUnavailableError):
            faulty.put("a", X)
        assert set(memory.objects) == expected


def test_a_hook_comes_before_each_call_takes_effect() -> None:
    seen: list[tuple[str, str, int]] = []
    store = MemoryStore(hook=lambda verb, key: seen.append((verb, key, len(store.objects))))
    store.create("a/1", X)
    store.put("a/2", X)
    store.list("a/")
    store.get("a/1", memoryview(bytearray(1)))
    store.delete(["a/1", "a/2"])
    assert seen == [("create", "a/1", 0), ("put", "a/2", 1), ("list", "a/", 2), ("get", "a/1", 2), ("delete", "a/1", 2)]
    assert store.objects == {}


def test_two_memory_stores_on_one_content_are_two_clients() -> None:
    one = MemoryStore()
    other = MemoryStore(one.objects)
    one.create("a", X)
    with pytest.raises(ObjectExistsError):
        other.create("a", X)
    copied = MemoryStore(dict(one.objects))
    copied.delete(["a"])
    assert one.objects == {"a": b"x"}


def test_two_memory_stores_on_one_content_exclude_each_other() -> None:
    """Two creates at once: one is refused, though both have looked before either has written."""
    both_look = threading.Barrier(2)

    class Content(dict[str, bytes]):
        def __contains__(self, key: object) -> bool:
            is_there = super().__contains__(key)
            with contextlib.suppress(threading.BrokenBarrierError):
                both_look.wait(0.2)  # in vain, where they may not look at once
            return is_there

    content = Content()

    def create(data: bytes) -> str:
        try:
            MemoryStore(content).create("key", memoryview(data))
        except ObjectExistsError:
            return "refused"
        return "created"

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(create, [b"one", b"other"])) == ["created", "refused"]


def test_latency_waits_and_passes_on() -> None:
    store = LatencyStore(MemoryStore(), 0.001)
    store.put("a", X)
    assert read_whole(store, "a") == b"x"
    assert (store.url, store.is_create_only, store.is_object_store) == ("test-memory://store", True, True)


@pytest.mark.parametrize("verb", ["create", "put"])
def test_a_refusal_says_nothing_of_a_create_before_it_that_was_not_answered(verb: str) -> None:
    inner = MemoryStore()
    faulty = FaultyStore(inner)
    faulty.fail(verb, StorageUnavailableError("reset"), is_after=True)
    faulty.fail(verb, StorageAccessError("403"))
    store = retrying(faulty)
    call, kind = (store.create, StorageUnavailableError) if verb == "create" else (store.put, StorageAccessError)
    with pytest.raises(kind, match="403"):
        call("a", X)
    assert inner.objects == {"a": bytes(X)}
    faulty.fail(verb, StorageAccessError("403"))
    with pytest.raises(StorageAccessError):
        call("b", X)


def test_one_in_a_hurry_does_not_wait_long_for_another_try() -> None:
    """All calls together; one that comes later has what is left, so that a single hiccup fails nothing."""
    faulty = FaultyStore(MemoryStore())
    store = RetryingStore(faulty, max_tries=1_000, max_wait_s=3600.0, first_wait_s=0.01)
    hurry(store, 0.1)
    faulty.fail("put", BUSY)
    store.put("a", X)
    faulty.fail("put", BUSY, times=1_000)
    with pytest.raises(StorageUnavailableError, match="busy"):
        store.put("a", X)
    left = sum(not fault.is_used for fault in faulty.faults)
    assert left > 900
    with pytest.raises(StorageUnavailableError, match="busy"):
        store.put("a", X)
    assert sum(not fault.is_used for fault in faulty.faults) == left - 1


def test_those_who_wait_at_the_same_time_use_the_time_up_once() -> None:
    class Busy(FaultyStore):
        def run(self, verb: str, key: str, call: Callable[[], Any]) -> Any:
            if time.monotonic() < until_s:
                raise BUSY
            return call()

    store = RetryingStore(Busy(MemoryStore()), first_wait_s=0.05)
    until_s = time.monotonic() + 0.5
    hurry(store, 4.0)
    with ThreadPoolExecutor(16) as threads:  # their waits add up to some ten seconds
        list(threads.map(lambda number: store.put(f"a{number}", X), range(16)))


def test_what_was_ever_written_is_known_of_a_disk(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    os.truncate(tmp_path / "a", 2**30)
    (tmp_path / "link").symlink_to("a")
    store = StoreWrapper(LocalStore(str(tmp_path)))
    assert 0 < (filled_bytes(store, "a") or 0) < 2**20
    with pytest.raises(StorageError):
        filled_bytes(store, "link")
    with pytest.raises(ObjectNotFoundError):
        filled_bytes(store, "b")
    assert filled_bytes(MemoryStore({"a": b"x"}), "a") is None


def test_a_store_that_has_never_heard_of_copies_is_not_asked() -> None:
    class Before:
        """A user's own."""

    assert not can_copy(Before())  # type: ignore[arg-type]
    assert not StoreWrapper(Before()).can_copy  # type: ignore[arg-type]
    assert StoreWrapper(MemoryStore()).can_copy
