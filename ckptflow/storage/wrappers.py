"""A store around a store, with one seam; and a store that is a dictionary. For retries, and for tests of everything."""

from __future__ import annotations

import builtins
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ckptflow.errors import ObjectChangedError, ObjectExistsError, ObjectNotFoundError, StorageError
from ckptflow.storage.again import hurry, renew
from ckptflow.storage.faults import closed_error
from ckptflow.storage.raw import RawClient, raw_client
from ckptflow.storage.store import Entry, Store, check_key, check_prefix

_Result = TypeVar("_Result")


class StoreWrapper:
    """`store`, every verb of it through `run(verb, key, call)`: override that one method.

    `key` is the key, of a `copy` the new one, the prefix of a `list`, or the first of the keys of a `delete` ("" where
    there is none). How much of an object was ever written is the verb "filled_bytes".
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def run(self, verb: str, key: str, call: Callable[[], _Result]) -> _Result:
        return call()

    @property
    def url(self) -> str:
        return self.store.url

    @property
    def is_create_only(self) -> bool:
        return self.store.is_create_only

    @property
    def is_object_store(self) -> bool:
        return self.store.is_object_store

    @property
    def can_copy(self) -> bool:
        return can_copy(self.store)

    @property
    def quickest_s(self) -> float | None:
        return quickest_s(self.store)

    def put(self, key: str, data: memoryview) -> str | None:
        return self.run("put", key, lambda: self.store.put(key, data))

    def copy(self, source_key: str, key: str, version: str) -> str | None:
        return self.run("copy", key, lambda: self.store.copy(source_key, key, version))

    def create(self, key: str, data: memoryview) -> None:
        self.run("create", key, lambda: self.store.create(key, data))

    def get(self, key: str, into: memoryview, start: int = 0) -> int:
        return self.run("get", key, lambda: self.store.get(key, into, start))

    def list(self, prefix: str = "") -> list[Entry]:
        return self.run("list", prefix, lambda: self.store.list(prefix))

    def list_partly(self) -> tuple[builtins.list[Entry], dict[str, StorageError]]:
        return self.run("list", "", lambda: list_partly(self.store))

    def delete(self, keys: Sequence[str]) -> None:
        self.run("delete", keys[0] if keys else "", lambda: self.store.delete(keys))

    def close(self) -> None:
        self.store.close()

    def renew(self, key: str) -> None:
        renew(self.store, key)

    def hurry(self, timeout_s: float) -> None:
        hurry(self.store, timeout_s)

    def filled_bytes(self, key: str) -> int | None:
        return self.run("filled_bytes", key, lambda: filled_bytes(self.store, key))

    def raw(self) -> RawClient:
        return raw_client(self.store)


def can_copy(store: Store) -> bool:
    """Whether `copy` may work here; False for a store that has never heard of it."""
    return bool(getattr(store, "can_copy", False))


def list_partly(store: Store) -> tuple[list[Entry], dict[str, StorageError]]:
    """The objects that can be listed, and the folders that cannot, each with why: on a disk, where some folders may be
    another user's. Raises where the root itself cannot be listed."""
    own = getattr(store, "list_partly", None)
    return (store.list(), {}) if own is None else own()


def filled_bytes(store: Store, key: str) -> int | None:
    """How much of an object was ever written, where a storage may have holes in it, as a disk does; None elsewhere."""
    own = getattr(store, "filled_bytes", None)
    found: int | None = None if own is None else own(key)
    return found


def quickest_s(store: Store) -> float | None:
    """How long the quickest request to the storage took, which is about how far away it is; None if nobody knows."""
    found: float | None = getattr(store, "quickest_s", None)
    return found


@dataclass
class Fault:
    """One failure in waiting: the next `verb` on a key that contains `key` raises `error`, before or after the call."""

    verb: str
    error: BaseException
    key: str = ""
    is_after: bool = False  # the call is made and its reply lost
    is_used: bool = False


class FaultyStore(StoreWrapper):
    """`store` with failures queued per verb, each used once; end a test with `assert_all_used`."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.faults: list[Fault] = []
        self._guard = threading.Lock()

    def fail(self, verb: str, error: BaseException, *, key: str = "", is_after: bool = False, times: int = 1) -> None:
        """Queues `times` failures of `verb`; with `is_after`, the call is made first and only its reply is lost."""
        self.faults += [Fault(verb, error, key, is_after) for _ in range(times)]

    def assert_all_used(self) -> None:
        left = [fault for fault in self.faults if not fault.is_used]
        if left:
            raise AssertionError(f"faults that never struck: {left}")

    def run(self, verb: str, key: str, call: Callable[[], _Result]) -> _Result:
        fault = self._next(verb, key)
        if fault is None:
            return call()
        if fault.is_after:
            call()
        raise fault.error

    def _next(self, verb: str, key: str) -> Fault | None:
        with self._guard:
            for fault in self.faults:
                if not fault.is_used and fault.verb == verb and fault.key in key:
                    fault.is_used = True
                    return fault
        return None


class CountingStore(StoreWrapper):
    """`store` with every call noted in `calls`, as (verb, key), in the order in which they were made."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.calls: list[tuple[str, str]] = []

    @property
    def counts(self) -> Counter[str]:
        """How many calls there were of each verb."""
        return Counter(verb for verb, _ in self.calls)

    def keys(self, verb: str) -> Sequence[str]:
        """The keys that `verb` was called with, in order."""
        return [key for called, key in self.calls if called == verb]

    def run(self, verb: str, key: str, call: Callable[[], _Result]) -> _Result:
        self.calls.append((verb, key))
        return call()


class ProgressStore(StoreWrapper):
    """`store`, and `advance` is called each time a call of it has come to an end, in the thread that made it."""

    def __init__(self, store: Store, advance: Callable[[], None]) -> None:
        super().__init__(store)
        self._advance = advance

    def run(self, verb: str, key: str, call: Callable[[], _Result]) -> _Result:
        try:
            return call()
        finally:
            self._advance()


class LatencyStore(StoreWrapper):
    """`store` as far away as `latency_s`: every call first waits that long."""

    def __init__(self, store: Store, latency_s: float) -> None:
        super().__init__(store)
        self.latency_s = latency_s

    def run(self, verb: str, key: str, call: Callable[[], _Result]) -> _Result:
        time.sleep(self.latency_s)
        return call()


class _Versioned(bytes):
    """An object's bytes, and what tells them from those of any other write."""

    _numbers = itertools.count(1)

    def __init__(self, data: bytes | memoryview) -> None:
        self.version = str(next(self._numbers))


class MemoryStore:
    """A dictionary as a store, every promise kept; for tests and models, where it must be simple and fast.

    `objects` is the content: copy it, compare it, change it behind the store's back. What a store has put there knows
    its version, which no other write has; what was put there otherwise has none, and is not copied.
    `hook(verb, key)` is called before each call takes effect (with the prefix of a `list`, the first key of a
    `delete`); it may raise, wait, or switch to another greenlet. Several stores on one `objects` are several clients of
    one storage.
    """

    is_create_only = True
    is_object_store = True
    can_copy = True
    _guard = threading.Lock()  # of all stores: those on one `objects` exclude each other

    def __init__(
        self,
        objects: dict[str, bytes] | None = None,
        hook: Callable[[str, str], None] | None = None,
        url: str = "test-memory://store",
    ) -> None:
        self.objects = {} if objects is None else objects
        self.hook = hook
        self.url = url
        self._is_closed = False

    def put(self, key: str, data: memoryview) -> str | None:
        self._before("put", check_key(key))
        return self._keep(key, data)

    def copy(self, source_key: str, key: str, version: str) -> str | None:
        check_key(source_key)
        self._before("copy", check_key(key))
        source = self.objects.get(source_key)
        if source is None:
            raise ObjectNotFoundError(f"{self.url}/{key}: cannot copy: nothing is at {source_key}")
        if getattr(source, "version", None) != version:
            raise ObjectChangedError(f"{self.url}/{key}: cannot copy: {source_key} is not version {version}")
        return self._keep(key, source)

    def create(self, key: str, data: memoryview) -> None:
        self._before("create", check_key(key))
        with self._guard:
            if key in self.objects:
                raise ObjectExistsError(f"{self.url}/{key}: cannot create: the name is taken")
            self._keep(key, data)

    def get(self, key: str, into: memoryview, start: int = 0) -> int:
        self._before("get", check_key(key))
        value = self.objects.get(key)
        if value is None:
            raise ObjectNotFoundError(f"{self.url}/{key}: cannot read: not found")
        part = value[start : start + into.nbytes]
        if part:
            into.cast("B")[: len(part)] = part
        return len(part)

    def list(self, prefix: str = "") -> list[Entry]:
        self._before("list", check_prefix(prefix))
        return [Entry(key, len(value)) for key, value in list(self.objects.items()) if key.startswith(prefix)]

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            check_key(key)
        self._before("delete", keys[0] if keys else "")
        for key in keys:
            self.objects.pop(key, None)

    def close(self) -> None:
        self._is_closed = True

    def _keep(self, key: str, data: bytes | memoryview) -> str:
        self.objects[key] = kept = _Versioned(data)
        return kept.version

    def _before(self, verb: str, key: str) -> None:
        if self._is_closed:
            raise closed_error(self.url)
        if self.hook is not None:
            self.hook(verb, key)
