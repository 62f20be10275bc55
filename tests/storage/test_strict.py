"""A file system whose class takes nothing that it does not know keeps the same promises."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ckptflow.errors import ObjectExistsError, StorageAccessError, StorageError, StorageUnavailableError
from ckptflow.storage.retry import RetryingStore
from ckptflow.testing import Backend, StoreContract
from tests.storage.strict import StrictBackend, StrictFileSystem


class TestStrict(StoreContract):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Backend:
        return StrictBackend(str(tmp_path))

    def test_racing_creators_have_exactly_one_winner(self, backend: Backend) -> None:
        """Among those of one process; it says that it promises no more."""
        for number in range(5):
            barrier = threading.Barrier(8)

            def create(racer: int, number: int = number, barrier: threading.Barrier = barrier) -> bool:
                store = backend.open()
                assert not store.is_create_only
                barrier.wait()
                try:
                    store.create(f"race/{number}", memoryview(b"%d" % racer))
                except ObjectExistsError:
                    return False
                return True

            with ThreadPoolExecutor(8) as pool:
                assert sum(pool.map(create, range(8))) == 1


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[StrictBackend]:
    yield StrictBackend(str(tmp_path))
    StrictFileSystem.failing.clear()
    StrictFileSystem.unlisted.clear()


def test_its_class_gets_what_the_user_gave(backend: StrictBackend) -> None:
    StrictFileSystem.given.clear()
    backend.open().close()
    assert StrictFileSystem.given == [
        {"host": "host", "base": backend.base, "username": "me", "password": "planted-word"}
    ]


def test_a_listing_is_never_an_old_one(backend: StrictBackend) -> None:
    store = backend.open()
    backend.raw_put("a/b", b"1")
    assert [entry.key for entry in store.list("a/")] == ["a/b"]
    backend.raw_put("a/c", b"2")
    assert sorted(entry.key for entry in store.list("a/")) == ["a/b", "a/c"]


def test_who_gets_no_answer_creates_nothing(backend: StrictBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec's `exists` would say that nothing is there."""
    store = backend.open()
    assert isinstance(store, RetryingStore)
    backend.raw_put("claim", b"another's")
    StrictFileSystem.failing.add("info")
    with pytest.raises(StorageUnavailableError):
        store.store.create("claim", memoryview(b"ours"))
    assert backend.raw_get("claim") == b"another's"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError("reset"), StorageUnavailableError),
        (PermissionError("not for you"), StorageAccessError),
        (FileNotFoundError("of a folder that is there"), StorageUnavailableError),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_folder_that_cannot_be_listed_is_not_left_out(
    backend: StrictBackend, error: OSError, expected: type[StorageError]
) -> None:
    """Left out, its checkpoint would be taken for one that is not there."""
    store = backend.open()
    assert isinstance(store, RetryingStore)
    backend.raw_put("old/deep/shard", b"1")
    backend.raw_put("new/deep/shard", b"2")
    StrictFileSystem.unlisted["new"] = error
    with pytest.raises(expected):
        store.store.list()
    StrictFileSystem.unlisted.clear()
    assert sorted(entry.key for entry in store.list()) == ["new/deep/shard", "old/deep/shard"]


def test_a_folder_that_goes_while_it_is_listed_is_left_out(
    backend: StrictBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = backend.open()
    backend.raw_put("old/shard", b"1")
    backend.raw_put("new/shard", b"2")
    listed = StrictFileSystem.ls

    def ls(self: StrictFileSystem, path: str, detail: bool = False) -> list[Any]:
        if path.endswith("/old"):
            shutil.rmtree(self._at(path), ignore_errors=True)
        return listed(self, path, detail)

    monkeypatch.setattr(StrictFileSystem, "ls", ls)
    assert [entry.key for entry in store.list()] == ["new/shard"]
