"""Copies on a disk: hard links, of the file that was meant, or nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckptflow.errors import ObjectChangedError, StorageError, StorageUnavailableError
from ckptflow.storage.local import LocalStore
from ckptflow.testing import read_whole
from tests.storage.test_local import X, debris


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "run"))


def written(store: LocalStore, key: str) -> str:
    version = store.put(key, X)
    assert version is not None
    return version


def test_a_copy_is_the_same_file_and_is_listed_as_one(store: LocalStore) -> None:
    version = written(store, "a/source")
    other = written(store, "a/other")
    assert store.copy("a/source", "b/copy", version) == version != other
    assert os.path.samefile(f"{store.url}/a/source", f"{store.url}/b/copy")
    listed = {entry.key: entry.version for entry in store.list()}
    assert listed == {"a/source": version, "b/copy": version, "a/other": other}
    store.put("b/copy", memoryview(b"y"))
    assert read_whole(store, "a/source") == b"x"


def test_its_name_and_its_folders_are_durable_when_it_returns(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = written(store, "a/source")
    made: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        made.append(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), store.url))
        real_fsync(descriptor)

    def replace(old: str, new: str, **words: Any) -> None:
        made.append(new)
        real_replace(old, new, **words)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    store.copy("a/source", "b/copy", version)
    assert made[-3:] == [".", "copy", "b"]


def by_link(path: Path) -> None:
    os.rename(path, path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def by_another(path: Path) -> None:
    path.with_name("new").write_bytes(b"y")
    os.rename(path.with_name("new"), path)


def by_nothing(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("replace", [by_link, by_pipe, by_folder, by_another, by_nothing])
@pytest.mark.parametrize("comes_late", [False, True])
def test_what_came_in_the_place_of_the_source_is_not_copied(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, replace: Callable[[Path], None], comes_late: bool
) -> None:
    """Also where it comes after the first look."""
    version = written(store, "a/source")
    source = Path(store.url, "a/source")
    real = os.link

    def link(*args: Any, **words: Any) -> None:
        replace(source)
        real(*args, **words)

    if comes_late:
        monkeypatch.setattr(os, "link", link)
    else:
        replace(source)
    with pytest.raises(StorageError, match="cannot copy") as raised:
        store.copy("a/source", "b/copy", version)
    if replace in (by_link, by_pipe, by_another):
        assert type(raised.value) is ObjectChangedError
    assert debris(Path(store.url)) == []
    assert not os.path.lexists(f"{store.url}/b/copy")


def test_a_link_to_a_folder_is_not_followed(store: LocalStore, tmp_path: Path) -> None:
    version = written(store, "a/source")
    os.rename(f"{store.url}/a", tmp_path / "a")
    os.symlink(tmp_path / "a", f"{store.url}/a")
    with pytest.raises(StorageError, match="is a symbolic link"):
        store.copy("a/source", "b/copy", version)
    version = written(store, "c/source")
    with pytest.raises(StorageError, match="is a symbolic link"):
        store.copy("c/source", "a/copy", version)
    assert os.listdir(tmp_path / "a") == ["source"]


def test_another_file_system_in_the_root(store: LocalStore) -> None:
    version = written(store, "a/source")
    mount = Path(store.url, "b")
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], capture_output=True)
    if done.returncode:
        pytest.skip(f"mounting a tmpfs is refused here: {done.stderr.decode().strip()}")
    try:
        with pytest.raises(StorageError, match="cross-device"):
            store.copy("a/source", "b/copy", version)
        assert (store.can_copy, list(mount.iterdir())) == (True, [])
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


@pytest.mark.parametrize(
    ("code", "links", "is_ours", "can_copy"),
    [
        (errno.EPERM, 1, True, False),
        (errno.ENOTSUP, 1, True, False),
        (errno.EMLINK, 1, True, False),
        (errno.EMLINK, 2, True, True),  # too many of this file
        (errno.EPERM, 1, False, True),  # protected, being another's
        (errno.EIO, 1, True, True),
    ],
)
def test_a_refused_link_says_what_of_the_file_system(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, code: int, links: int, is_ours: bool, can_copy: bool
) -> None:
    version = written(store, "a/source")
    if links == 2:
        store.copy("a/source", "a/other", version)

    real, linked = os.link, list[str]()

    def link(name: str, *words: Any, **more: Any) -> None:
        if name == "source":
            raise OSError(code, os.strerror(code))
        real(name, *words, **more)
        linked.append(words[0])

    monkeypatch.setattr(os, "link", link)
    if not is_ours:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(StorageError, match="cannot copy"):
        store.copy("a/source", "b/copy", version)
    assert store.can_copy == can_copy
    written(store, "b/copy")  # as a save does then
    store.create("b/new", X)
    assert linked[-1:] == ["new"]  # as before: a file of its own is what shows that there are no links
    assert debris(Path(store.url)) == []


@pytest.mark.parametrize(("days", "is_copied"), [(6, True), (8, False)])
def test_what_may_go_by_its_age_is_not_copied(store: LocalStore, days: int, is_copied: bool) -> None:
    """A link would be as old, and a disk that deletes what is old would take it from the newest checkpoint."""
    written(store, "a/source")
    long_ago_s = time.time() - days * 86_400
    os.utime(f"{store.url}/a/source", (time.time(), long_ago_s))
    version = store.list()[0].version
    assert version is not None
    with contextlib.nullcontext() if is_copied else pytest.raises(StorageError, match="more than 7 days ago"):
        store.copy("a/source", "b/copy", version)
    assert (os.path.exists(f"{store.url}/b/copy"), debris(Path(store.url))) == (is_copied, [])
    assert store.can_copy


def test_a_name_that_may_not_last_is_raised_and_can_be_written_anew(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = written(store, "a/source")
    written(store, "b/other")
    real, failed = os.fsync, list[str]()

    def fsync(descriptor: int) -> None:
        folder = os.readlink(f"/proc/self/fd/{descriptor}")
        if folder.endswith("/b") and not failed:
            failed.append(folder)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageUnavailableError, match="cannot copy"):
        store.copy("a/source", "b/copy", version)
    written(store, "b/copy")
    assert not os.path.samefile(f"{store.url}/a/source", f"{store.url}/b/copy")
