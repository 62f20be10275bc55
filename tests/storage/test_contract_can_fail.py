"""The contract suite turns red on stores that break one promise each: a suite that cannot fail proves nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from ckptflow.errors import ObjectNotFoundError
from ckptflow.storage.store import Entry, Store
from ckptflow.testing import MemoryStore, StoreContract
from tests.storage.backends import DictBackend
from tests.waiting import HANG_S, until


class CreateOverwrites(MemoryStore):
    def create(self, key: str, data: memoryview) -> None:
        self.put(key, data)


class CreateLooksFirst(MemoryStore):
    def create(self, key: str, data: memoryview) -> None:
        is_there = key in self.objects
        time.sleep(0.01)
        if is_there:
            super().create(key, data)
        else:
            self.put(key, data)


class WinnerIsOverwritten(MemoryStore):
    def create(self, key: str, data: memoryview) -> None:
        try:
            super().create(key, data)
        finally:
            self.objects[key] = bytes(data)


class Tears(MemoryStore):
    def put(self, key: str, data: memoryview) -> None:
        for end in (len(data) // 2, len(data)):
            self.objects[key] = bytes(data[:end]) + self.objects.get(key, bytes(data))[end : len(data)]
            time.sleep(0.005)


class CachesItsList(MemoryStore):
    def list(self, prefix: str = "") -> list[Entry]:
        cache: dict[str, list[Entry]] = self.__dict__.setdefault("cache", {})
        return cache.setdefault(prefix, super().list(prefix))


class ListsByText(MemoryStore):
    def list(self, prefix: str = "") -> list[Entry]:
        return [entry for entry in super().list() if entry.key.startswith(prefix.rstrip("/"))]


class SizesAreRounded(MemoryStore):
    def list(self, prefix: str = "") -> list[Entry]:
        return [Entry(entry.key, entry.size_bytes // 4096 * 4096) for entry in super().list(prefix)]


class RangesFailAtTheEnd(MemoryStore):
    def get(self, key: str, into: memoryview, start: int = 0) -> int:
        count = super().get(key, into, start)
        if start and not count:
            raise OSError("416")
        return count


class DeletesOnlyAThousand(MemoryStore):
    def delete(self, keys: Sequence[str]) -> None:
        super().delete(keys[:1000])


class LeavesDebris(MemoryStore):
    def put(self, key: str, data: memoryview) -> None:
        super().put(key, data)
        self.objects[key + ".tmp"] = b""

    def list(self, prefix: str = "") -> list[Entry]:
        return [entry for entry in super().list(prefix) if not entry.key.endswith(".tmp")]


class CopiesAnyVersion(MemoryStore):
    def copy(self, source_key: str, key: str, version: str) -> str | None:
        return super().copy(source_key, key, getattr(self.objects.get(source_key), "version", version))


class CopiesNothingAtAll(MemoryStore):
    """As a server that takes it for a write without a body."""

    def copy(self, source_key: str, key: str, version: str) -> str | None:
        return self.put(key, memoryview(b""))


class CopiesInParts(MemoryStore):
    """Half of its first copy to "copied" is there until it has been read."""

    is_read = threading.Event()

    def get(self, key: str, into: memoryview, start: int = 0) -> int:
        count = super().get(key, into, start)
        if count < len(into):
            self.is_read.set()
        return count

    def copy(self, source_key: str, key: str, version: str) -> str | None:
        whole = self.objects[source_key]
        self.objects[key] = whole[: len(whole) // 2]
        if key == "copied":
            self.is_read.wait(HANG_S)
        return super().copy(source_key, key, version)


class CopiesUnlessThere(MemoryStore):
    def copy(self, source_key: str, key: str, version: str) -> str | None:
        return version if key in self.objects else super().copy(source_key, key, version)


class CopiesByReference(MemoryStore):
    """A copy goes with its source."""

    def delete(self, keys: Sequence[str]) -> None:
        gone = [self.objects[key] for key in keys if key in self.objects]
        super().delete([key for key, value in self.objects.items() if value in gone])


class CopiesTellNoVersion(MemoryStore):
    def copy(self, source_key: str, key: str, version: str) -> str | None:
        super().copy(source_key, key, version)
        return None


class SaysItHasCopied(MemoryStore):
    def copy(self, source_key: str, key: str, version: str) -> str | None:
        if key.startswith("copies/"):  # while the source is deleted
            until(lambda: source_key not in self.objects, HANG_S)
        try:
            return super().copy(source_key, key, version)
        except ObjectNotFoundError:
            return version


@dataclass
class BrokenBackend(DictBackend):
    kind: type[MemoryStore] = field(default=MemoryStore)

    def open(self) -> Store:
        return self.kind(self.objects)


BROKEN: list[tuple[type[MemoryStore], str]] = [
    (CreateOverwrites, "test_create_leaves_what_is_there"),
    (CreateLooksFirst, "test_racing_creators_have_exactly_one_winner"),
    (WinnerIsOverwritten, "test_racing_creators_have_exactly_one_winner"),
    (Tears, "test_no_reader_sees_a_part"),
    (CachesItsList, "test_a_list_shows_what_was_written_before"),
    (ListsByText, "test_prefixes_are_strict"),
    (SizesAreRounded, "test_a_list_shows_what_was_written_before"),
    (RangesFailAtTheEnd, "test_ranges"),
    (DeletesOnlyAThousand, "test_many_objects"),
    (LeavesDebris, "test_a_list_shows_what_was_written_before"),
    (CopiesAnyVersion, "test_a_copy_is_of_one_version"),
    (CopiesNothingAtAll, "test_a_copy_is_whole"),
    (CopiesInParts, "test_no_reader_sees_a_part_of_a_copy"),
    (CopiesUnlessThere, "test_a_copy_replaces"),
    (CopiesByReference, "test_a_copy_outlives_its_source"),
    (CopiesTellNoVersion, "test_a_copy_is_whole"),
    (SaysItHasCopied, "test_a_copy_and_the_deletion_of_its_source"),
]


@pytest.mark.parametrize(("kind", "test"), BROKEN, ids=lambda value: getattr(value, "__name__", value))
def test_a_broken_promise_is_seen(kind: type[MemoryStore], test: str) -> None:
    getattr(StoreContract(), test)(DictBackend())
    with pytest.raises((AssertionError, OSError)):
        getattr(StoreContract(), test)(BrokenBackend(kind=kind))
