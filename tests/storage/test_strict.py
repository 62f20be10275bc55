"""A file system whose class takes nothing that it does not know keeps the same promises."""

from __future__ import annotations

import ftplib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ckptflow.errors import ObjectExistsError, StorageAccessError, StorageError, StorageUnavailableError
from ckptflow.storage.by_fsspec import FsspecStore
from ckptflow.storage.retry import RetryingStore
from ckptflow.testing import Backend, StoreContract
from ckptflow.threads import at_once
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
    """fsspec's `exists` would say that it does not exist."""
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


def rename(self: StrictFileSystem, old: str, new: str) -> None:
    os.rename(self._at(old), self._at(new))


def silent_rename(self: StrictFileSystem, old: str, new: str) -> None:
    """As WebHDFS: it is not done, and nobody says so."""
    if not os.path.exists(self._at(new)):
        os.rename(self._at(old), self._at(new))


@pytest.mark.parametrize("renames", [True, False])
def test_a_create_that_is_cut_off_is_done_by_the_next_try(
    backend: StrictBackend, monkeypatch: pytest.MonkeyPatch, renames: bool
) -> None:
    store = backend.open()
    written, cut = StrictFileSystem.pipe_file, [True]

    def pipe_file(self: StrictFileSystem, path: str, value: bytes) -> None:
        if cut.pop():
            cut.append(False)
            written(self, path, value[:2])
            raise ConnectionResetError("cut off")
        written(self, path, value)
        cut.append(False)

    monkeypatch.setattr(StrictFileSystem, "pipe_file", pipe_file)
    if renames:
        monkeypatch.setattr(StrictFileSystem, "mv", rename)
    store.create("a/claim", memoryview(b"ours"))
    assert backend.raw_get("a/claim") == b"ours"
    assert list(backend.raw_list()) == ["a/claim"]
    with pytest.raises(ObjectExistsError):
        store.create("a/claim", memoryview(b"ours and more"))


@pytest.mark.parametrize("mv", [rename, silent_rename])
def test_one_that_comes_between_look_and_rename(
    backend: StrictBackend, monkeypatch: pytest.MonkeyPatch, mv: Callable[..., None]
) -> None:
    """Not noticed by all; never believed where it was not done."""
    store = backend.open()
    written = StrictFileSystem.pipe_file

    def pipe_file(self: StrictFileSystem, path: str, value: bytes) -> None:
        written(self, path, value)
        backend.raw_put("a/claim", b"another's")

    monkeypatch.setattr(StrictFileSystem, "pipe_file", pipe_file)
    monkeypatch.setattr(StrictFileSystem, "mv", mv)
    if mv is silent_rename:
        with pytest.raises(ObjectExistsError):
            store.create("a/claim", memoryview(b"ours"))
        assert backend.raw_get("a/claim") == b"another's"
    else:
        store.create("a/claim", memoryview(b"ours"))
        assert backend.raw_get("a/claim") == b"ours"
    assert list(backend.raw_list()) == ["a/claim"]


def test_one_connection_has_one_caller_at_a_time(backend: StrictBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    store = backend.open()
    written, busy = StrictFileSystem.pipe_file, threading.Lock()

    def pipe_file(self: StrictFileSystem, path: str, value: bytes) -> None:
        assert busy.acquire(blocking=False)
        time.sleep(0.01)
        written(self, path, value)
        busy.release()

    monkeypatch.setattr(StrictFileSystem, "pipe_file", pipe_file)
    at_once(4, lambda number: store.put(f"a/{number}", memoryview(b"x")), range(8))
    assert len(store.list("a/")) == 8


@pytest.mark.parametrize("error", [EOFError(), OSError("Socket is closed"), ftplib.error_temp("421 Timeout")], ids=repr)
def test_a_connection_that_has_ended_is_opened_again(
    backend: StrictBackend, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    store = backend.open()
    store.put("a/1", memoryview(b"x"))
    assert isinstance(store, RetryingStore)
    assert isinstance(store.store, FsspecStore)
    dead, written = store.store._fs, StrictFileSystem.pipe_file

    def pipe_file(self: StrictFileSystem, path: str, value: bytes) -> None:
        if self is dead:
            raise error
        written(self, path, value)

    monkeypatch.setattr(StrictFileSystem, "pipe_file", pipe_file)
    store.put("a/2", memoryview(b"x"))
    store.create("a/3", memoryview(b"x"))
    assert len(store.list("a/")) == 3
