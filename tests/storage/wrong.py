"""A store that gives wrong answers: the right call is made, and what it brought is spoilt on its way back."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ckptflow.errors import ObjectNotFoundError
from ckptflow.storage.store import Entry, Store
from ckptflow.storage.wrappers import StoreWrapper

HTML = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Please sign in to the network</body></html>"

# What became of an answer: given the caller's memory, the count of bytes, and how many were spoilt before, the count.
Lie = Callable[[memoryview, int, int], int]


def flip(into: memoryview, count: int, number: int) -> int:
    """The same bit in each answer."""
    into[count // 2] ^= 1
    return count


def flip_elsewhere(into: memoryview, count: int, number: int) -> int:
    """Another bit in each answer."""
    into[(count // 2 + number) % count] ^= 1
    return count


def shorten(into: memoryview, count: int, number: int) -> int:
    return count // 2


def page(into: memoryview, count: int, number: int) -> int:
    part = HTML[: len(into)]
    into[: len(part)] = part
    return len(part)


def page_at_length(into: memoryview, count: int, number: int) -> int:
    """A page that is as long as what was asked for."""
    into[:count] = (HTML * (count // len(HTML) + 1))[:count]
    return count


def missing(into: memoryview, count: int, number: int) -> int:
    raise ObjectNotFoundError("404: not found")


LIES: list[Lie] = [flip, shorten, page, page_at_length, missing]


class WrongStore(StoreWrapper):
    """`store`, whose next `times` answers to `get` of a key that contains `key` are spoilt by `lie`."""

    def __init__(self, store: Store, lie: Lie, key: str = "", times: int = 1) -> None:
        super().__init__(store)
        self.lie, self.key, self.left, self.told = lie, key, times, 0
        self.renewed: list[str] = []
        self._guard = threading.Lock()

    def get(self, key: str, into: memoryview, start: int = 0) -> int:
        count = super().get(key, into, start)
        with self._guard:
            if self.key not in key or not self.left or not count:
                return count
            self.left -= 1
            self.told += 1
        return self.lie(into.cast("B"), count, self.told)

    def renew(self, key: str) -> None:
        self.renewed.append(key)
        super().renew(key)


class ForgetfulStore(StoreWrapper):
    """`store`, of whose listings after `skip` the next `times` lack the first object that contains `key`, or say a
    wrong size."""

    def __init__(self, store: Store, key: str, size_bytes: int | None = None, times: int = 1, skip: int = 0) -> None:
        super().__init__(store)
        self.key, self.size_bytes, self.left, self.skip = key, size_bytes, times, skip

    def list(self, prefix: str = "") -> list[Entry]:
        entries = super().list(prefix)
        found = next((entry for entry in entries if self.key in entry.key), None)
        if found is None or not self.left:
            return entries
        if self.skip:
            self.skip -= 1
            return entries
        self.left -= 1
        entries.remove(found)
        return entries if self.size_bytes is None else [*entries, Entry(found.key, self.size_bytes)]
