"""What the tests of the contract are made of: a root to reach into, assertions, and bytes."""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from ckptflow.errors import ObjectExistsError
from ckptflow.storage.store import Store

MIB = 2**20


class Backend(Protocol):
    """One empty root: how to open stores on it, and how to reach its objects without them."""

    def open(self) -> Store:
        """Another store on the same root."""

    def raw_put(self, key: str, data: bytes) -> None: ...

    def raw_get(self, key: str) -> bytes:
        """The object's bytes; any exception where there is none."""

    def raw_list(self) -> dict[str, int]:
        """Everything under the root, temporary files included: key and size in bytes."""


def read_whole(store: Store, key: str, step_bytes: int = 4 * MIB) -> bytes:
    """The whole object at `key`, read in steps of `step_bytes`; raises as `store.get` does."""
    parts: list[bytes] = []
    into = memoryview(bytearray(step_bytes))
    while True:
        count = store.get(key, into, sum(map(len, parts)))
        parts.append(bytes(into[:count]))
        if count < step_bytes:
            return b"".join(parts)


@contextlib.contextmanager
def opened(backend: Backend, count: int = 1) -> Iterator[list[Store]]:
    """Several stores on the one root, closed when the block ends."""
    stores = [backend.open() for _ in range(count)]
    try:
        yield stores
    finally:
        for store in stores:
            store.close()


def same(found: object, expected: object, what: str) -> None:
    """An assertion that no interpreter switch removes: people run these tests to trust their storage."""
    if found != expected:
        raise AssertionError(f"{what}: found {_short(found)}, expected {_short(expected)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 400 else f"{text[:200]} … {text[-100:]}"


@contextlib.contextmanager
def raises(kind: type[BaseException]) -> Iterator[None]:
    """The block must raise this."""
    try:
        yield
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was not raised")


def race(stores: list[Store], key: str, contents: list[bytes]) -> list[int]:
    """One thread per content, all creating `key` at once; returns who was told to have won."""
    start = threading.Barrier(len(contents))

    def run(racer: int) -> bool:
        start.wait()
        try:
            stores[racer % len(stores)].create(key, memoryview(contents[racer]))
        except ObjectExistsError:
            return False
        return True

    with ThreadPoolExecutor(len(contents)) as threads:
        won = list(threads.map(run, range(len(contents))))
    return [racer for racer, has_won in enumerate(won) if has_won]


@contextlib.contextmanager
def read_on(readers: list[Store], key: str, contents: list[bytes]) -> Iterator[None]:
    """While the block replaces `key`, each reader reads it, and must find one of `contents`, whole.

    These are of one length, and the first is all ones, the second all twos.
    """
    is_over = threading.Event()
    length = len(contents[0])

    def read(store: Store) -> None:
        into = buffer(length, is_aligned=True)
        is_last = False
        while not is_last:
            is_last = is_over.is_set()
            same(store.get(key, into), length, "bytes read of an object that is being replaced")
            same(into == contents[into[0] - 1], True, "one whole version was read")

    with ThreadPoolExecutor(len(readers)) as threads:
        reading = [threads.submit(read, store) for store in readers]
        try:
            yield
        finally:
            is_over.set()
        for future in reading:
            future.result()


def buffer(size: int, is_aligned: bool) -> memoryview:
    """`size` bytes of memory, page-aligned as a pooled staging buffer is, or deliberately not."""
    memory = memoryview(mmap.mmap(-1, size + 4096))
    return memory[:size] if is_aligned else memory[13 : 13 + size]


def noise(size: int, is_aligned: bool) -> memoryview:
    """`size` bytes that differ from place to place, the same at each call."""
    data = buffer(size, is_aligned)
    block = b"".join((number * 2_654_435_761 % 2**32).to_bytes(4, "big") for number in range(25_013))
    for start in range(0, size, len(block)):
        data[start : start + len(block)] = block[: size - start]
    return data


def sizes(store: Store, prefix: str = "") -> dict[str, int]:
    """What a listing says: key and size in bytes."""
    entries = store.list(prefix)
    same(len({entry.key for entry in entries}), len(entries), "keys are listed once")
    return {entry.key: entry.size_bytes for entry in entries}
