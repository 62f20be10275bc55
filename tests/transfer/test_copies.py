"""A copy never fails a save: whatever the storage says, the shard is written anew."""

from __future__ import annotations

import pytest

from ckptflow.errors import (
    ObjectChangedError,
    ObjectNotFoundError,
    StorageAccessError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
    UsageError,
)
from ckptflow.testing import CountingStore, FaultyStore, MemoryStore
from ckptflow.transfer.copies import Copies


def test_the_version_of_the_copy_is_returned() -> None:
    store = MemoryStore()
    version = store.put("a/shard", memoryview(b"bytes"))
    assert version is not None
    copied = Copies(store).copy("a/shard", "b/shard", version)
    assert copied not in (None, version)
    assert store.objects["b/shard"] == b"bytes"
    assert Copies(store).copy("a/shard", "b/shard", f"{version}0") is None  # another version
    assert Copies(store).copy("a/none", "b/shard", version) is None


@pytest.mark.parametrize(
    "error", [StorageError, ObjectChangedError, StorageAccessError, StorageFullError, StorageUnavailableError]
)
@pytest.mark.parametrize("is_after", [False, True])
def test_what_a_storage_says_fails_no_save(error: type[StorageError], is_after: bool) -> None:
    inner = MemoryStore()
    store = FaultyStore(inner)
    version = inner.put("a/shard", memoryview(b"bytes"))
    store.fail("copy", error("no"), is_after=is_after)
    assert Copies(store).copy("a/shard", "b/shard", str(version)) is None
    assert ("b/shard" in inner.objects) == is_after
    store.assert_all_used()


@pytest.mark.parametrize("error", [StorageError, ObjectChangedError, ObjectNotFoundError, StorageUnavailableError])
def test_a_bucket_that_refuses_all_is_asked_for_a_few(error: type[StorageError]) -> None:
    inner = CountingStore(MemoryStore())
    store = FaultyStore(inner)
    version = str(inner.put("a/shard", memoryview(b"bytes")))
    store.fail("copy", error("no"), times=30)
    copies = Copies(store)
    for number in range(30):
        assert copies.copy("a/shard", f"b/{number}", version) is None
    assert sum(fault.is_used for fault in store.faults) == 5
    store.faults.clear()
    assert Copies(store).copy("a/shard", "b/shard", version)  # the next save asks again


def test_a_few_that_were_replaced_keep_no_other_from_being_copied() -> None:
    store = MemoryStore()
    version = str(store.put("a/shard", memoryview(b"bytes")))
    copies = Copies(store)
    for number in range(30):
        is_there = number % 2 == 0
        assert bool(copies.copy("a/shard", f"b/{number}", version if is_there else f"{version}0")) == is_there


def test_a_copy_whose_version_is_not_told_is_not_relied_on() -> None:
    class Silent(MemoryStore):
        def copy(self, source_key: str, key: str, version: str) -> str | None:
            super().copy(source_key, key, version)
            return None

    store = Silent()
    version = store.put("a/shard", memoryview(b"bytes"))
    assert Copies(store).copy("a/shard", "b/shard", str(version)) is None


def test_a_store_that_is_closed_and_an_interrupt_are_raised() -> None:
    store = FaultyStore(MemoryStore())
    store.fail("copy", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        Copies(store).copy("a/shard", "b/shard", "1")
    store.close()
    with pytest.raises(UsageError, match="closed"):
        Copies(store).copy("a/shard", "b/shard", "1")
