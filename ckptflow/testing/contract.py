"""What is promised of every store, each promise a test."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ckptflow.errors import ObjectExistsError, ObjectNotFoundError
from ckptflow.testing.copies import CopyContract
from ckptflow.testing.tools import MIB, Backend, buffer, noise, opened, race, raises, read_on, read_whole, same, sizes


class StoreContract(CopyContract):
    """What `ckptflow.storage.store` promises of every store, each promise a test. `backend` is a fixture of yours."""

    racer_count = 16
    race_rounds = 6
    large_bytes = 200 * MIB
    replaced_bytes = 8 * MIB
    many_objects = 1_100  # above what one listing page and one bulk deletion hold

    # ---- create

    def test_racing_creators_have_exactly_one_winner(self, backend: Backend) -> None:
        with opened(backend, 4) as stores:
            same([store.is_create_only for store in stores], [True] * 4, "is_create_only")
            for round_number in range(self.race_rounds):
                key = f"race/{round_number:06d}.json"
                contents = [f"racer {racer:02d} ".encode() * (1 + racer * 50) for racer in range(self.racer_count)]
                winners = race(stores, key, contents)
                same(len(winners), 1, f"winners of {key} ({winners})")
                same(backend.raw_get(key), contents[winners[0]], f"{key}: the winner's bytes")
            same([store.is_create_only for store in stores], [True] * 4, "is_create_only, after creating")

    def test_create_leaves_what_is_there(self, backend: Backend) -> None:
        with opened(backend) as (store,):
            store.create("a/claim", memoryview(b"first"))
            for later in (b"second", b"", b"first"):
                with raises(ObjectExistsError):
                    store.create("a/claim", memoryview(later))
            backend.raw_put("a/foreign", b"not ours")
            with raises(ObjectExistsError):
                store.create("a/foreign", memoryview(b"ours"))
            store.put("a/put", memoryview(b"put"))
            with raises(ObjectExistsError):
                store.create("a/put", memoryview(b"created"))
            store.create("a/empty", memoryview(b""))
            with raises(ObjectExistsError):
                store.create("a/empty", memoryview(b"no longer"))
            found = {key: backend.raw_get(key) for key in backend.raw_list()}
            expected = {"a/claim": b"first", "a/foreign": b"not ours", "a/put": b"put", "a/empty": b""}
            same(found, expected, "objects, seen from behind")

    def test_create_after_delete(self, backend: Backend) -> None:
        with opened(backend, 2) as (one, other):
            one.create("a", memoryview(b"1"))
            other.delete(["a"])
            one.create("a", memoryview(b"2"))
            same(backend.raw_get("a"), b"2", "a")

    # ---- put and get

    def test_whole_objects_of_every_size(self, backend: Backend) -> None:
        with opened(backend) as (store,):
            for size in (0, 1, 4095, 4096, 4097, 65_536, MIB - 1, MIB, MIB + 4097):
                for is_aligned in (True, False):
                    data = noise(size, is_aligned)
                    key = f"sizes/{size}-{is_aligned}"
                    store.put(key, data)
                    same(backend.raw_get(key), bytes(data), f"{key} from behind")
                    same(read_whole(store, key), bytes(data), key)

    def test_a_large_object(self, backend: Backend) -> None:
        data = noise(self.large_bytes, is_aligned=True)
        with opened(backend) as (store,):
            store.put("large", data)
            same(backend.raw_list().get("large"), self.large_bytes, "size of the large object")
            into = buffer(self.large_bytes, is_aligned=True)
            same(store.get("large", into), self.large_bytes, "bytes read")
            same(into == data, True, "the large object's bytes are equal")

    def test_put_replaces(self, backend: Backend) -> None:
        with opened(backend) as (store,):
            for data in (b"x" * 100_000, b"short", b"", b"longer again"):
                store.put("a/b", memoryview(data))
                same(backend.raw_get("a/b"), data, "a/b from behind")
                same(read_whole(store, "a/b"), data, "a/b")

    def test_no_reader_sees_a_part(self, backend: Backend) -> None:
        contents = [bytes([value]) * self.replaced_bytes for value in (1, 2)]
        with opened(backend, 3) as (writer, *readers):
            writer.put("replaced", memoryview(contents[0]))
            with read_on(readers, "replaced", contents):
                for number in range(8):
                    writer.put("replaced", memoryview(contents[number % 2]))

    def test_ranges(self, backend: Backend) -> None:
        data = bytes(noise(1_000_003, is_aligned=False))
        backend.raw_put("r/object", data)
        backend.raw_put("r/empty", b"")
        with opened(backend) as (store,):
            for start, length in [
                (0, 1), (0, 10), (1, 10), (4096, 4096), (500_000, 400_000), (1_000_000, 3), (1_000_000, 100),
                (1_000_002, 1), (0, 1_000_003), (0, 2_000_000), (4096, 1_000_000), (1_000_003, 10), (5_000_000, 10),
            ]:  # fmt: skip
                for is_aligned in (True, False):
                    into = buffer(length, is_aligned)
                    count = store.get("r/object", into, start)
                    same(bytes(into[:count]), data[start : start + length], f"{length} bytes from {start}")
            same(store.get("r/object", memoryview(bytearray())), 0, "nothing asked")
            same(store.get("r/empty", memoryview(bytearray(10))), 0, "an empty object")
            same(store.get("r/empty", memoryview(bytearray(10)), 5), 0, "past the end of an empty object")

    def test_what_is_missing_is_not_found(self, backend: Backend) -> None:
        with opened(backend) as (store,):
            for key in ("nothing", "a/nothing"):
                with raises(ObjectNotFoundError):
                    store.get(key, memoryview(bytearray(10)))
                with raises(ObjectNotFoundError):
                    store.get(key, memoryview(bytearray(10)), 1_000)
            store.put("a/b/c", memoryview(b"1"))
            for key in ("a", "a/b", "a/b/c/d", "a/b/c2"):
                with raises(ObjectNotFoundError):
                    store.get(key, memoryview(bytearray(10)))

    # ---- list

    def test_a_list_shows_what_was_written_before(self, backend: Backend) -> None:
        with opened(backend, 2) as (writer, lister):
            same(lister.list(), [], "an empty root")
            same(lister.list("lineage/"), [], "an empty folder")
            expected: dict[str, int] = {}
            for number in range(12):
                key = f"lineage/{number:06d}.json" if number % 2 else f"{number:012d}-i0001/manifest.json"
                (writer.create if number % 3 else writer.put)(key, memoryview(b"x" * number))
                expected[key] = number
                same(sizes(lister), expected, "list of the root")
                claims = {name: size for name, size in expected.items() if name.startswith("lineage/")}
                same(sizes(lister, "lineage/"), claims, "list of lineage/")
            same(backend.raw_list(), expected, "everything there, seen from behind")

    def test_a_list_shows_what_others_wrote(self, backend: Backend) -> None:
        with opened(backend) as (store,):
            for number in range(3):
                backend.raw_put(f"a/{number}", b"1234")
                same(sizes(store), {f"a/{n}": 4 for n in range(number + 1)}, "list")

    def test_prefixes_are_strict(self, backend: Backend) -> None:
        folders = ("000000001500-i0007", "000000001500-i0007-r2", "000000001500-i00071", "a", "ab", "a b", "A", "a-")
        with opened(backend) as (store,):
            for folder in folders:
                for name in ("x", "deep/er/y"):
                    store.put(f"{folder}/{name}", memoryview(folder.encode()))
            for folder in folders:
                expected = {f"{folder}/x": len(folder), f"{folder}/deep/er/y": len(folder)}
                same(sizes(store, f"{folder}/"), expected, f"list of {folder}/")
            same(sizes(store, "a/deep/"), {"a/deep/er/y": 1}, "list of a/deep/")
            for prefix in ("000000001500-i0/", "b/", "a/x/", "a/deep/er/y/"):
                same(store.list(prefix), [], f"list of {prefix}")
            for not_a_prefix in ("a", "/", "../", "a//", "./"):
                with raises(ValueError):
                    store.list(not_a_prefix)

    def test_odd_names(self, backend: Backend) -> None:
        names = (
            "ünïcødé-日本語-🙂", "with space", "percent%41%2F", "plus+sign", "hash#tag", "question?mark=1&b=2",
            "quote'\"", "tilde~", "(brackets)[1]{2}", "comma,;:@$!", "star*", "caret^`|<>=", ".hidden", "dots...",
            "-dash", "e\u0301",
        )  # fmt: skip
        with opened(backend) as (store,):
            for name in names:
                store.create(f"odd/{name}", memoryview(name.encode()))
                with raises(ObjectExistsError):
                    store.create(f"odd/{name}", memoryview(b"again"))
                same(read_whole(store, f"odd/{name}"), name.encode(), name)
                same(backend.raw_get(f"odd/{name}"), name.encode(), f"{name} from behind")
            expected = {f"odd/{name}": len(name.encode()) for name in names}
            same(sizes(store, "odd/"), expected, "list of odd names")
            store.put("odd/folder with + and %/x", memoryview(b"1"))
            same(sizes(store, "odd/folder with + and %/"), {"odd/folder with + and %/x": 1}, "list of an odd folder")
            store.delete([*expected, "odd/folder with + and %/x"])
            same(store.list(), [], "after deletion")

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
        with opened(backend) as (store,):
            for key in bad:
                calls: list[Callable[[], object]] = [
                    lambda key=key: store.put(key, memoryview(b"x")),  # type: ignore[misc]
                    lambda key=key: store.create(key, memoryview(b"x")),  # type: ignore[misc]
                    lambda key=key: store.get(key, memoryview(bytearray(1))),  # type: ignore[misc]
                    lambda key=key: store.delete(["fine", key]),  # type: ignore[misc]
                ]
                for call in calls:
                    with raises(ValueError):
                        call()
        same(backend.raw_list(), {}, "nothing was written")

    # ---- delete

    def test_delete(self, backend: Backend) -> None:
        with opened(backend) as (store,):
            store.delete([])
            store.delete(["nothing", "a/nothing"])
            for key in ("a/1", "a/2", "ab/1", "b"):
                store.put(key, memoryview(b"x"))
            store.delete(["a/1", "a/nothing", "b"])
            same(backend.raw_list(), {"a/2": 1, "ab/1": 1}, "what is left")
            store.delete(["a", "a/2", "a/2"])
            same(backend.raw_list(), {"ab/1": 1}, "what is left")
            with raises(ObjectNotFoundError):
                store.get("a/2", memoryview(bytearray(1)))

    def test_many_objects(self, backend: Backend) -> None:
        keys = [f"many/{number:05d}" for number in range(self.many_objects)]
        with opened(backend) as (store,):
            with ThreadPoolExecutor(8) as threads:
                list(threads.map(lambda key: store.put(key, memoryview(b"1")), keys))
            store.put("other", memoryview(b"1"))
            same(sorted(sizes(store, "many/")), keys, "list of many")
            store.delete(keys)
            same(backend.raw_list(), {"other": 1}, "what is left")

    # ---- the object itself

    def test_a_closed_store_refuses(self, backend: Backend) -> None:
        store = backend.open()
        store.put("a", memoryview(b"1"))
        store.close()
        store.close()
        for call in (lambda: store.list(), lambda: store.put("a", memoryview(b"2")), lambda: store.delete(["a"])):
            with raises(Exception):
                call()
        same(backend.raw_get("a"), b"1", "a")

    def test_the_url_shows_no_secret(self, backend: Backend) -> None:
        with opened(backend) as (store,):
            same(store.url.endswith("/") or "@" in store.url or "?" in store.url, False, f"odd URL {store.url}")
            same(isinstance(store.is_object_store, bool), True, "is_object_store")
