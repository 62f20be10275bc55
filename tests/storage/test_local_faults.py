"""Disks that are full, read-only, unmounted, limited or forbidden: a clear error, and nothing of ours left behind."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptflow.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    StorageAccessError,
    StorageError,
    StorageFullError,
    UsageError,
)
from ckptflow.storage.local import LocalStore
from ckptflow.testing import read_whole
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
    with pytest.raises(StorageError, match="a folder is where a file should be"):
        store.put("b", X)
    with pytest.raises(StorageError, match="a folder is where a file should be"):
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
