"""What is promised of a store that copies inside the storage; a store with `can_copy` False promises none of it.

It may find that out by its first copy.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from ckptflow.errors import ObjectChangedError, ObjectNotFoundError, StorageError
from ckptflow.storage.store import Store
from ckptflow.storage.wrappers import can_copy
from ckptflow.testing.tools import MIB, Backend, noise, opened, raises, read_on, same, sizes


class CopyContract:
    """The promises of `copy`. Inherited by `StoreContract`."""

    copied_bytes = 8 * MIB

    def test_a_copy_is_whole(self, backend: Backend) -> None:
        names = ("with space", "percent%41%2F+plus", "question?mark=1&b=2#hash", "ünïcødé-日本語-🙂'\"")
        sources = {f"from/{size}": bytes(noise(size, is_aligned=False)) for size in (0, 1, 4097, self.copied_bytes)}
        sources |= {f"from {name}/{name}": name.encode() for name in names}
        with opened(backend, 2) as (one, other):
            if not _copies(one):
                return
            for key, data in sources.items():
                version = _put(one, key, data)
                again = other.copy(key, f"to/{key}", version)
                same(backend.raw_get(f"to/{key}"), data, f"the copy of {key}, from behind")
                same(again is not None, True, f"a version of the copy of {key} is told")
                one.copy(f"to/{key}", f"a copy of the copy/{key}", str(again))
                same(backend.raw_get(f"a copy of the copy/{key}"), data, f"the copy of the copy of {key}")
            folders = ("", "to/", "a copy of the copy/")
            expected = {folder + key: len(data) for folder in folders for key, data in sources.items()}
            same(sizes(one), expected, "list")
            same(backend.raw_list(), expected, "everything there, seen from behind")

    def test_a_copy_replaces(self, backend: Backend) -> None:
        with opened(backend) as (store,):
            if not _copies(store):
                return
            versions = {key: _put(store, key, key.encode() * 1_000) for key in ("a", "longer", "b")}
            for key in (*versions, *versions, "b"):
                store.copy(key, "replaced", versions[key])
                same(backend.raw_get("replaced"), key.encode() * 1_000, f"what {key} was copied over")
            store.put("replaced", memoryview(b"anew"))
            same(backend.raw_get("b"), b"b" * 1_000, "a source whose copy was written over")
            same(sorted(backend.raw_list()), ["a", "b", "longer", "replaced"], "what is there")

    def test_a_copy_outlives_its_source(self, backend: Backend) -> None:
        with opened(backend, 2) as (one, other):
            if not _copies(one):
                return
            for source in ("deleted", "replaced"):
                one.copy(source, f"copies/{source}", _put(one, source, source.encode() * 1_000))
            other.delete(["deleted"])
            other.put("replaced", memoryview(b"by something else"))
            same(sorted(backend.raw_list()), ["copies/deleted", "copies/replaced", "replaced"], "what is there")
            for source in ("deleted", "replaced"):
                same(backend.raw_get(f"copies/{source}"), source.encode() * 1_000, f"the copy of what was {source}")

    def test_a_copy_is_of_one_version(self, backend: Backend) -> None:
        with opened(backend, 2) as (one, other):
            if not _copies(one):
                return
            version = _put(one, "a", b"first")
            one.put("kept", memoryview(b"kept"))
            other.put("a", memoryview(b"other"))
            for target in ("new", "kept"):
                with raises(ObjectChangedError):
                    one.copy("a", target, version)
            found = {key: backend.raw_get(key) for key in backend.raw_list()}
            same(found, {"a": b"other", "kept": b"kept"}, "objects, seen from behind")

    def test_without_a_source_nothing_is_copied(self, backend: Backend) -> None:
        with opened(backend, 2) as (one, other):
            if not _copies(one):
                return
            gone, version = _put(one, "a/gone", b"gone"), _put(one, "a/there", b"there")
            other.delete(["a/gone"])
            for target in ("b/new", "a/there"):
                for missing in ("a/gone", "nothing", "a", "a/there/below"):
                    with raises(ObjectNotFoundError):
                        one.copy(missing, target, gone)
            for bad in ("../x", "a//b", ""):
                with raises(ValueError):
                    one.copy("a/there", bad, version)
                with raises(ValueError):
                    one.copy(bad, "b/new", version)
            found = {key: backend.raw_get(key) for key in backend.raw_list()}
            same(found, {"a/there": b"there"}, "objects, seen from behind")

    def test_no_reader_sees_a_part_of_a_copy(self, backend: Backend) -> None:
        contents = [bytes([value]) * self.copied_bytes for value in (1, 2)]
        with opened(backend, 3) as (writer, *readers):
            if not _copies(writer):
                return
            versions = [_put(writer, f"source/{number}", data) for number, data in enumerate(contents)]
            writer.put("copied", memoryview(contents[0]))
            with read_on(readers, "copied", contents):
                for number in range(8):
                    writer.copy(f"source/{number % 2}", "copied", versions[number % 2])

    def test_a_copy_and_the_deletion_of_its_source(self, backend: Backend) -> None:
        data = bytes(noise(MIB, is_aligned=False))
        start = threading.Barrier(2)

        def delete(store: Store, key: str) -> None:
            start.wait()
            store.delete([key])

        def copy(store: Store, key: str, version: str) -> bool:
            start.wait()
            try:
                store.copy(key, f"copies/{key}", version)
            except StorageError:
                return False
            return True

        with opened(backend, 2) as (one, other), ThreadPoolExecutor(1) as thread:
            if not _copies(one):
                return
            for number in range(8):
                version = _put(one, f"{number}", data)
                deleting = thread.submit(delete, other, f"{number}")
                is_copied = copy(one, f"{number}", version)
                deleting.result()
                is_there = f"copies/{number}" in backend.raw_list()
                same(is_there or not is_copied, True, "what was said to be copied is there")
                if is_there:
                    same(backend.raw_get(f"copies/{number}"), data, "the copy's bytes")


def _copies(store: Store) -> bool:
    """Whether a store says that it copies, once it has been asked to."""
    if can_copy(store):
        version = _put(store, "first", b"first")
        with suppress(StorageError):
            store.copy("first", "first copy", version)
        store.delete(["first", "first copy"])
    return can_copy(store)


def _put(store: Store, key: str, data: bytes) -> str:
    version = store.put(key, memoryview(data))
    same(isinstance(version, str), True, f"a version of {key} is told by a store that can copy")
    return str(version)
