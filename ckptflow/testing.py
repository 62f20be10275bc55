"""The storage contract as tests that anyone can run on their own storage, and stores for testing what stands on one.

A subclass supplies one fixture and inherits every test::

    class TestMyStorage(StoreContract):
        @pytest.fixture
        def backend(self) -> Backend:
            return MyBackend(...)   # opens stores on one empty root, and reads and writes behind their back

The tests reach behind the store (`raw_put`, `raw_get`, `raw_list`), because a store that is asked about its own work
can agree with itself and be wrong. They need nothing but the standard library: `ckptflow doctor` runs the same ones.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from ckptflow.errors import ObjectExistsError, ObjectNotFoundError
from ckptflow.storage.store import Store
from ckptflow.storage.wrappers import CountingStore, Fault, FaultyStore, LatencyStore, MemoryStore, StoreWrapper

__all__ = [
    "Backend",
    "CountingStore",
    "Fault",
    "FaultyStore",
    "LatencyStore",
    "MemoryStore",
    "StoreContract",
    "StoreWrapper",
    "read_whole",
]

_MIB = 2**20


class Backend(Protocol):
    """One empty root: how to open stores on it, and how to reach its objects without them."""

    def open(self) -> Store:
        """Another store on the same root."""

    def raw_put(self, key: str, data: bytes) -> None: ...

    def raw_get(self, key: str) -> bytes:
        """The object's bytes; any exception where there is none."""

    def raw_list(self) -> dict[str, int]:
        """Everything under the root, temporary files included: key and size in bytes."""


class StoreContract:
    """What `ckptflow.storage.store` promises of every store, each promise a test. `backend` is a fixture of yours."""

    racer_count = 16
    race_rounds = 6
    large_bytes = 200 * _MIB
    replaced_bytes = 8 * _MIB
    many_objects = 1_100  # above what one listing page and one bulk deletion hold

    # ---- create

    def test_racing_creators_have_exactly_one_winner(self, backend: Backend) -> None:
        with _opened(backend, 4) as stores:
            _same([store.is_create_only for store in stores], [True] * 4, "is_create_only")
            for round_number in range(self.race_rounds):
                key = f"race/{round_number:06d}.json"
                contents = [f"racer {racer:02d} ".encode() * (1 + racer * 50) for racer in range(self.racer_count)]
                winners = _race(stores, key, contents)
                _same(len(winners), 1, f"winners of {key} ({winners})")
                _same(backend.raw_get(key), contents[winners[0]], f"{key}: the winner's bytes")
            _same([store.is_create_only for store in stores], [True] * 4, "is_create_only, after creating")

    def test_create_leaves_what_is_there(self, backend: Backend) -> None:
        with _opened(backend) as (store,):
            store.create("a/claim", memoryview(b"first"))
            for later in (b"second", b"", b"first"):
                with _raises(ObjectExistsError):
                    store.create("a/claim", memoryview(later))
            backend.raw_put("a/foreign", b"not ours")
            with _raises(ObjectExistsError):
                store.create("a/foreign", memoryview(b"ours"))
            store.put("a/put", memoryview(b"put"))
            with _raises(ObjectExistsError):
                store.create("a/put", memoryview(b"created"))
            store.create("a/empty", memoryview(b""))
            with _raises(ObjectExistsError):
                store.create("a/empty", memoryview(b"no longer"))
            found = {key: backend.raw_get(key) for key in backend.raw_list()}
            expected = {"a/claim": b"first", "a/foreign": b"not ours", "a/put": b"put", "a/empty": b""}
            _same(found, expected, "objects, seen from behind")

    def test_create_after_delete(self, backend: Backend) -> None:
        with _opened(backend, 2) as (one, other):
            one.create("a", memoryview(b"1"))
            other.delete(["a"])
            one.create("a", memoryview(b"2"))
            _same(backend.raw_get("a"), b"2", "a")

    # ---- put and get

    def test_whole_objects_of_every_size(self, backend: Backend) -> None:
        with _opened(backend) as (store,):
            for size in (0, 1, 4095, 4096, 4097, 65_536, _MIB - 1, _MIB, _MIB + 4097):
                for is_aligned in (True, False):
                    data = _noise(size, is_aligned)
                    key = f"sizes/{size}-{is_aligned}"
                    store.put(key, data)
                    _same(backend.raw_get(key), bytes(data), f"{key} from behind")
                    _same(read_whole(store, key), bytes(data), key)

    def test_a_large_object(self, backend: Backend) -> None:
        data = _noise(self.large_bytes, is_aligned=True)
        with _opened(backend) as (store,):
            store.put("large", data)
            _same(backend.raw_list().get("large"), self.large_bytes, "size of the large object")
            into = _buffer(self.large_bytes, is_aligned=True)
            _same(store.get("large", into), self.large_bytes, "bytes read")
            _same(into == data, True, "the large object's bytes are equal")

    def test_put_replaces(self, backend: Backend) -> None:
        with _opened(backend) as (store,):
            for data in (b"x" * 100_000, b"short", b"", b"longer again"):
                store.put("a/b", memoryview(data))
                _same(backend.raw_get("a/b"), data, "a/b from behind")
                _same(read_whole(store, "a/b"), data, "a/b")

    def test_no_reader_sees_a_part(self, backend: Backend) -> None:
        versions = [bytes([value]) * self.replaced_bytes for value in (1, 2)]
        is_over = threading.Event()
        seen: list[int] = []

        def read(store: Store) -> None:
            into = _buffer(self.replaced_bytes, is_aligned=True)
            while not is_over.is_set():
                count = store.get("replaced", into)
                _same(count, self.replaced_bytes, "bytes read of an object that is being replaced")
                _same(into == versions[into[0] - 1], True, "one whole version was read")
                seen.append(into[0])

        with _opened(backend, 3) as (writer, *readers):
            writer.put("replaced", memoryview(versions[0]))
            with ThreadPoolExecutor(2) as threads:
                reading = [threads.submit(read, store) for store in readers]
                try:
                    for number in range(8):
                        writer.put("replaced", memoryview(versions[number % 2]))
                finally:
                    is_over.set()
                for future in reading:
                    future.result()
        _same(len(seen) >= 2, True, "readers read at all")

    def test_ranges(self, backend: Backend) -> None:
        data = bytes(_noise(1_000_003, is_aligned=False))
        backend.raw_put("r/object", data)
        backend.raw_put("r/empty", b"")
        with _opened(backend) as (store,):
            for start, length in [
                (0, 1), (0, 10), (1, 10), (4096, 4096), (500_000, 400_000), (1_000_000, 3), (1_000_000, 100),
                (1_000_002, 1), (0, 1_000_003), (0, 2_000_000), (4096, 1_000_000), (1_000_003, 10), (5_000_000, 10),
            ]:  # fmt: skip
                for is_aligned in (True, False):
                    into = _buffer(length, is_aligned)
                    count = store.get("r/object", into, start)
                    _same(bytes(into[:count]), data[start : start + length], f"{length} bytes from {start}")
            _same(store.get("r/object", memoryview(bytearray())), 0, "nothing asked")
            _same(store.get("r/empty", memoryview(bytearray(10))), 0, "an empty object")
            _same(store.get("r/empty", memoryview(bytearray(10)), 5), 0, "past the end of an empty object")

    def test_what_is_missing_is_not_found(self, backend: Backend) -> None:
        with _opened(backend) as (store,):
            for key in ("nothing", "a/nothing"):
                with _raises(ObjectNotFoundError):
                    store.get(key, memoryview(bytearray(10)))
                with _raises(ObjectNotFoundError):
                    store.get(key, memoryview(bytearray(10)), 1_000)
            store.put("a/b/c", memoryview(b"1"))
            for key in ("a", "a/b", "a/b/c/d", "a/b/c2"):
                with _raises(ObjectNotFoundError):
                    store.get(key, memoryview(bytearray(10)))

    # ---- list

    def test_a_list_shows_what_was_written_before(self, backend: Backend) -> None:
        with _opened(backend, 2) as (writer, lister):
            _same(lister.list(), [], "an empty root")
            _same(lister.list("lineage/"), [], "an empty folder")
            expected: dict[str, int] = {}
            for number in range(12):
                key = f"lineage/{number:06d}.json" if number % 2 else f"{number:012d}-i0001/manifest.json"
                (writer.create if number % 3 else writer.put)(key, memoryview(b"x" * number))
                expected[key] = number
                _same(_sizes(lister), expected, "list of the root")
                claims = {name: size for name, size in expected.items() if name.startswith("lineage/")}
                _same(_sizes(lister, "lineage/"), claims, "list of lineage/")
            _same(backend.raw_list(), expected, "everything there, seen from behind")

    def test_a_list_shows_what_others_wrote(self, backend: Backend) -> None:
        with _opened(backend) as (store,):
            for number in range(3):
                backend.raw_put(f"a/{number}", b"1234")
                _same(_sizes(store), {f"a/{n}": 4 for n in range(number + 1)}, "list")

    def test_prefixes_are_strict(self, backend: Backend) -> None:
        folders = ("000000001500-i0007", "000000001500-i0007-r2", "000000001500-i00071", "a", "ab", "a b", "A", "a-")
        with _opened(backend) as (store,):
            for folder in folders:
                for name in ("x", "deep/er/y"):
                    store.put(f"{folder}/{name}", memoryview(folder.encode()))
            for folder in folders:
                expected = {f"{folder}/x": len(folder), f"{folder}/deep/er/y": len(folder)}
                _same(_sizes(store, f"{folder}/"), expected, f"list of {folder}/")
            _same(_sizes(store, "a/deep/"), {"a/deep/er/y": 1}, "list of a/deep/")
            for prefix in ("000000001500-i0/", "b/", "a/x/", "a/deep/er/y/"):
                _same(store.list(prefix), [], f"list of {prefix}")
            for not_a_prefix in ("a", "/", "../", "a//", "./"):
                with _raises(ValueError):
                    store.list(not_a_prefix)

    def test_odd_names(self, backend: Backend) -> None:
        names = (
            "ünïcødé-日本語-🙂", "with space", "percent%41%2F", "plus+sign", "hash#tag", "question?mark=1&b=2",
            "quote'\"", "tilde~", "(brackets)[1]{2}", "comma,;:@$!", "star*", "caret^`|<>=", ".hidden", "dots...",
            "-dash", "e\u0301",
        )  # fmt: skip
        with _opened(backend) as (store,):
            for name in names:
                store.create(f"odd/{name}", memoryview(name.encode()))
                with _raises(ObjectExistsError):
                    store.create(f"odd/{name}", memoryview(b"again"))
                _same(read_whole(store, f"odd/{name}"), name.encode(), name)
                _same(backend.raw_get(f"odd/{name}"), name.encode(), f"{name} from behind")
            expected = {f"odd/{name}": len(name.encode()) for name in names}
            _same(_sizes(store, "odd/"), expected, "list of odd names")
            store.put("odd/folder with + and %/x", memoryview(b"1"))
            _same(_sizes(store, "odd/folder with + and %/"), {"odd/folder with + and %/x": 1}, "list of an odd folder")
            store.delete([*expected, "odd/folder with + and %/x"])
            _same(store.list(), [], "after deletion")

    def test_keys_that_leave_the_root_are_refused(self, backend: Backend) -> None:
        bad = (
            "",
            "/",
            "/etc/passwd",
            "../x",
            "a/../../x",
            "a/./b",
            "a//b",
            "a/",
            "a\\b",
            "a\nb",
            "a\x00b",
            "x" * 2_000,
        )
        with _opened(backend) as (store,):
            for key in bad:
                calls: list[Callable[[], object]] = [
                    lambda key=key: store.put(key, memoryview(b"x")),  # type: ignore[misc]
                    lambda key=key: store.create(key, memoryview(b"x")),  # type: ignore[misc]
                    lambda key=key: store.get(key, memoryview(bytearray(1))),  # type: ignore[misc]
                    lambda key=key: store.delete(["fine", key]),  # type: ignore[misc]
                ]
                for call in calls:
                    with _raises(ValueError):
                        call()
        _same(backend.raw_list(), {}, "nothing was written")

    # ---- delete

    def test_delete(self, backend: Backend) -> None:
        with _opened(backend) as (store,):
            store.delete([])
            store.delete(["nothing", "a/nothing"])
            for key in ("a/1", "a/2", "ab/1", "b"):
                store.put(key, memoryview(b"x"))
            store.delete(["a/1", "a/nothing", "b"])
            _same(backend.raw_list(), {"a/2": 1, "ab/1": 1}, "what is left")
            store.delete(["a", "a/2", "a/2"])
            _same(backend.raw_list(), {"ab/1": 1}, "what is left")
            with _raises(ObjectNotFoundError):
                store.get("a/2", memoryview(bytearray(1)))

    def test_many_objects(self, backend: Backend) -> None:
        keys = [f"many/{number:05d}" for number in range(self.many_objects)]
        with _opened(backend) as (store,):
            with ThreadPoolExecutor(8) as threads:
                list(threads.map(lambda key: store.put(key, memoryview(b"1")), keys))
            store.put("other", memoryview(b"1"))
            _same(sorted(_sizes(store, "many/")), keys, "list of many")
            store.delete(keys)
            _same(backend.raw_list(), {"other": 1}, "what is left")

    # ---- the object itself

    def test_a_closed_store_refuses(self, backend: Backend) -> None:
        store = backend.open()
        store.put("a", memoryview(b"1"))
        store.close()
        store.close()
        for call in (lambda: store.list(), lambda: store.put("a", memoryview(b"2")), lambda: store.delete(["a"])):
            with _raises(Exception):
                call()
        _same(backend.raw_get("a"), b"1", "a")

    def test_the_url_shows_no_secret(self, backend: Backend) -> None:
        with _opened(backend) as (store,):
            _same(store.url.endswith("/") or "@" in store.url or "?" in store.url, False, f"odd URL {store.url}")
            _same(isinstance(store.is_object_store, bool), True, "is_object_store")


def read_whole(store: Store, key: str, step_bytes: int = 4 * _MIB) -> bytes:
    """The whole object at `key`, read in steps of `step_bytes`; raises as `store.get` does."""
    parts: list[bytes] = []
    into = memoryview(bytearray(step_bytes))
    while True:
        count = store.get(key, into, sum(map(len, parts)))
        parts.append(bytes(into[:count]))
        if count < step_bytes:
            return b"".join(parts)


@contextlib.contextmanager
def _opened(backend: Backend, count: int = 1) -> Iterator[list[Store]]:
    stores = [backend.open() for _ in range(count)]
    try:
        yield stores
    finally:
        for store in stores:
            store.close()


def _same(found: object, expected: object, what: str) -> None:
    """An assertion that no interpreter switch removes: people run these tests to trust their storage."""
    if found != expected:
        raise AssertionError(f"{what}: found {_short(found)}, expected {_short(expected)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 400 else f"{text[:200]} … {text[-100:]}"


@contextlib.contextmanager
def _raises(kind: type[BaseException]) -> Iterator[None]:
    try:
        yield
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was not raised")


def _race(stores: list[Store], key: str, contents: list[bytes]) -> list[int]:
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


def _buffer(size: int, is_aligned: bool) -> memoryview:
    """`size` bytes of memory, page-aligned as a pooled staging buffer is, or deliberately not."""
    memory = memoryview(mmap.mmap(-1, size + 4096))
    return memory[:size] if is_aligned else memory[13 : 13 + size]


def _noise(size: int, is_aligned: bool) -> memoryview:
    """`size` bytes that differ from place to place, the same at each call."""
    data = _buffer(size, is_aligned)
    block = b"".join((number * 2_654_435_761 % 2**32).to_bytes(4, "big") for number in range(25_013))
    for start in range(0, size, len(block)):
        data[start : start + len(block)] = block[: size - start]
    return data


def _sizes(store: Store, prefix: str = "") -> dict[str, int]:
    entries = store.list(prefix)
    _same(len({entry.key for entry in entries}), len(entries), "keys are listed once")
    return {entry.key: entry.size_bytes for entry in entries}
