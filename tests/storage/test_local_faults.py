"""Disks that are full, read-only, unmounted, limited or forbidden: a clear error, and nothing of ours left behind."""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckptflow.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    StorageAccessError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
    UsageError,
)
from ckptflow.storage import local_calls, local_names
from ckptflow.storage.local import LocalStore
from ckptflow.testing import read_whole
from tests.interrupts import interrupted
from tests.storage.test_local import X, aligned, debris, run_python


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    mount = tmp_path / "tiny"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], capture_output=True)
    if done.returncode:
        pytest.skip(f"mounting a tmpfs is refused here: {done.stderr.decode().strip()}")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_full_disk(tiny_disk: Path) -> None:
    store = LocalStore(str(tiny_disk / "run"))
    store.put("small", X)
    for verb in (store.put, store.create):
        with pytest.raises(StorageFullError, match=r"large: cannot write: No space left.*make room"):
            verb("large", aligned(2 * 2**20))
    assert debris(tiny_disk) == []
    store.put("small", memoryview(b"y"))
    assert [(entry.key, entry.size_bytes) for entry in store.list()] == [("small", 1)]


def test_a_read_only_mount_lists_and_reads(tiny_disk: Path) -> None:
    LocalStore(str(tiny_disk)).put("lineage/000001.json", X)
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    store = LocalStore(str(tiny_disk))
    assert [entry.key for entry in store.list("lineage/")] == ["lineage/000001.json"]
    assert read_whole(store, "lineage/000001.json") == b"x"
    for verb in (store.put, store.create):
        with pytest.raises(StorageAccessError, match="Read-only file system"):
            verb("a", X)
    with pytest.raises(StorageAccessError, match="cannot delete: Read-only"):
        store.delete(["lineage/000001.json"])


def test_an_unmounted_root_is_not_an_empty_one(tiny_disk: Path) -> None:
    store = LocalStore(str(tiny_disk))
    store.put("lineage/000001.json", X)
    subprocess.run(["umount", "-l", str(tiny_disk)], check=True)
    for call in (lambda: store.list("lineage/"), lambda: store.put("a", X)):
        with pytest.raises(StorageError, match="removed or unmounted"):
            call()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(tiny_disk)], check=True)  # for the fixture to unmount


def test_another_disk_in_the_place_of_the_root(tiny_disk: Path) -> None:
    """Its root has the same inode, and of a tmpfs the same device."""
    store = LocalStore(str(tiny_disk))
    store.put("lineage/000001.json", X)
    subprocess.run(["umount", str(tiny_disk)], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(tiny_disk)], check=True)
    for call in (lambda: store.list("lineage/"), lambda: store.put("a", X)):
        with pytest.raises(StorageError, match="removed or unmounted"):
            call()


def test_a_removed_root_is_not_made_anew(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path / "run"))
    store.put("a", X)
    os.rename(tmp_path / "run", tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="removed or unmounted"):
        store.create("b", X)
    assert not (tmp_path / "run").exists()


def test_a_file_size_limit(tmp_path: Path) -> None:
    code = """
        import resource, sys
        from ckptflow.errors import StorageFullError
        from ckptflow.storage.local import LocalStore
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
        store = LocalStore(sys.argv[1])
        store.put("small", memoryview(b"1"))
        try:
            store.put("large", memoryview(bytes(1_000_000)))
        except StorageFullError as error:
            print(error)
    """
    assert "large: cannot write: File too large" in run_python(code, str(tmp_path))
    assert os.listdir(tmp_path) == ["small"]


def test_a_folder_that_may_not_be_written(open_folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    code = """
        import os, sys
        from ckptflow.errors import StorageAccessError
        from ckptflow.storage.local import LocalStore
        os.setgid(65534); os.setuid(65534)
        store = LocalStore(sys.argv[1])
        for call in (lambda: store.put("a", memoryview(b"1")), lambda: store.create("b/c", memoryview(b"1"))):
            try:
                call()
            except StorageAccessError as error:
                print(error)
        print(store.list("lineage/"), store.list())
    """
    (open_folder / "run").mkdir()
    lines = run_python(code, str(open_folder / "run")).splitlines()
    assert "Permission denied" in lines[0]
    assert "check the credentials, the permissions" in lines[1]
    assert lines[2] == "[] []"


def test_folders_and_files_in_each_others_place(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    store.put("a", X)
    store.put("b/c", X)
    with pytest.raises(StorageError, match="a directory was found where a file was expected"):
        store.put("b", X)
    with pytest.raises(StorageError, match="a directory was found where a file was expected"):
        store.put("a/b", X)
    with pytest.raises(ObjectExistsError):
        store.create("b", X)
    with pytest.raises(ObjectNotFoundError):
        store.get("b", memoryview(bytearray(1)))
    assert debris(tmp_path) == []


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    store.close()
    with pytest.raises(UsageError, match="closed"):
        store.list()


# A name that may not last


class FailsOnce:
    """`os.fsync`, whose first call for a folder with `name` in it fails."""

    def __init__(self, name: str, code: int) -> None:
        self.name, self.code, self.has_failed = name, code, False

    def __call__(self, descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if is_folder and not self.has_failed and self.name in os.listdir(descriptor):
            self.has_failed = True
            raise OSError(self.code, os.strerror(self.code))
        REAL_FSYNC(descriptor)


REAL_FSYNC = os.fsync
CODES = [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOSPC]


@pytest.mark.parametrize("code", CODES)
def test_a_created_name_whose_folder_was_not_made_durable(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tried again, it would be met as somebody's, found to be ours, and believed to be durable."""
    store = LocalStore(str(tmp_path))
    store.put("folder/other", X)
    monkeypatch.setattr(os, "fsync", FailsOnce("name", code))
    with pytest.raises(StorageError, match="exists, but may be lost on a power failure") as caught:
        store.create("folder/name", X)
    assert not isinstance(caught.value, ObjectExistsError | StorageUnavailableError)
    with pytest.raises(ObjectExistsError):
        store.create("folder/name", X)


@pytest.mark.parametrize("code", CODES[:3])
def test_a_new_folder_whose_name_was_not_made_durable(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(str(tmp_path / "run"))
    store.put("other", X)
    monkeypatch.setattr(os, "fsync", FailsOnce("folder", code))
    with pytest.raises(StorageError, match="folder: exists, but may be lost on a power failure"):
        store.put("folder/name", X)


def test_a_replaced_name_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second rename changes the folder again, so a second fsync says something."""
    store = LocalStore(str(tmp_path))
    store.put("folder/other", X)
    monkeypatch.setattr(os, "fsync", failing := FailsOnce("name", errno.EIO))
    store.put("folder/name", X)
    assert failing.has_failed


def test_ctrl_c_leaves_no_lock(tmp_path: Path) -> None:
    """At whatever line it comes, but for those that give it back."""
    left = []
    for number in range(1000):
        root = tmp_path / f"{number}"
        store = LocalStore(str(root))
        store._has_links = False
        ended = interrupted(functools.partial(store.create, "lineage/1", X), number)
        if list(root.rglob(".ckptflow-lock-*")):
            left.append(ended.struck)
        if ended.struck is None:
            break
    assert ended.struck is None
    lines = Path(local_names.__file__).read_text().splitlines()
    (at,) = (number for number, line in enumerate(lines, 1) if "for descriptor in held" in line)
    assert set(left) <= {f"storage/local_names.py:{at}", f"storage/local_names.py:{at + 1}", *in_remove()}


def in_remove() -> set[str]:
    lines, first = inspect.getsourcelines(local_calls.remove)
    return {f"storage/local_calls.py:{first + number}" for number in range(len(lines))}


@pytest.mark.parametrize("call", ["scandir", "unlink", "listdir"])
@pytest.mark.parametrize("goes", [True, False])
def test_a_folder_that_another_host_prunes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, goes: bool
) -> None:
    """NFS says of what it has opened that it is stale."""
    store = LocalStore(str(tmp_path))
    for key in ("old/shard", "new/shard"):
        store.put(key, X)
    real, struck = getattr(os, call), list[str]()

    def stale(place: int | str, **words: int) -> object:
        folder = os.readlink(f"/proc/self/fd/{words.get('dir_fd', place)}")
        if folder.endswith("/old") and not struck:
            struck.append(folder)
            if goes:
                shutil.rmtree(folder)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(place, **words)

    monkeypatch.setattr(os, call, stale)
    if call == "scandir":
        left = sorted(entry.key for entry in store.list())
        assert left == (["new/shard"] if goes else ["new/shard", "old/shard"])
    else:
        store.delete(["old/shard"])
        monkeypatch.undo()
        assert os.listdir(tmp_path) == ["new"]
    assert struck


def test_a_folder_that_stays_stale_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(str(tmp_path))
    store.put("old/shard", X)

    def stale(place: int) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "scandir", stale)
    with pytest.raises(StorageUnavailableError):
        store.list()


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_folder_whose_name_could_not_be_made_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_ours: bool
) -> None:
    """The kernel tells of a failed write once: an fsync after that says nothing of it."""
    store = LocalStore(str(tmp_path))
    store.put("before", X)
    if not is_ours:
        os.mkdir(tmp_path / "new")
    real, made, failed = os.fsync, os.mkdir, list[int]()
    folders: list[str] = []

    def fsync(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(tmp_path) and not failed:
            failed.append(descriptor)
            raise OSError(errno.EIO, "a failing disk")
        real(descriptor)

    def mkdir(name: str, **words: int) -> None:
        folders.append(name)
        made(name, **words)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(StorageError, match="may be lost on a power failure"):
        store.put("new/shard", X)
    if is_ours:
        store.put("new/shard", X)
        assert folders == ["new", "new"]
    else:
        with monkeypatch.context() as patch:
            patch.setattr("ckptflow.storage.local_folders.change", lambda folder: False)
            with pytest.raises(StorageError, match="may be lost on a power failure"):
                store.put("new/shard", X)
        store.put("new/shard", X)  # what it is in has been changed since, and that was written
        assert read_whole(store, "new/shard") == X


@pytest.mark.parametrize("prefix", ["", "new/"])
def test_an_empty_list_that_was_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    """As readdir tells it where the system answers ENOENT in the middle."""
    store = LocalStore(str(tmp_path))
    store.put("new/shard", X)
    real, empty = os.scandir, [tmp_path / prefix]

    def scandir(folder: Any) -> Any:
        if empty and os.readlink(f"/proc/self/fd/{folder}") == str(empty[0]):
            empty.pop()
            return contextlib.nullcontext(iter(()))
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert [entry.key for entry in store.list(prefix)] == ["new/shard"]
    assert not empty
