"""Links, pipes and the like in a root on a disk: nothing is followed below it, and nothing waits."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptflow.errors import CkptflowError, ObjectExistsError, StorageError, UsageError
from ckptflow.places.files import fetched, opened, staged
from ckptflow.storage import local_calls, local_names
from ckptflow.storage.local import DIRECT_MIN_BYTES, LocalStore
from ckptflow.storage.store import Entry
from tests.storage.test_local import X, aligned

FOLDERS = ["lineage", "pins", "000000000020-i0001", "elsewhere", "a/b", "a/b/c"]


def content(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, links included, none followed."""
    found = {}
    for above, _, names in os.walk(folder):
        for name in names:
            path = Path(above, name)
            found[str(path.relative_to(folder))] = (
                os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
            )
    return found


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "key").write_bytes(b"another's")
    return folder


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("below", ["key", "new", "deep/key"])
def test_no_verb_goes_through_a_link_to_a_folder(tmp_path: Path, outside: Path, name: str, below: str) -> None:
    root = tmp_path / "root"
    (root / name).parent.mkdir(parents=True)
    (root / name).symlink_to(outside)
    store, key, before = LocalStore(str(root)), f"{name}/{below}", content(outside)
    for verb in (store.put, store.create):
        with pytest.raises(StorageError, match=r"is a symbolic link to .*outside; .*Move the folder itself"):
            verb(key, X)
    with pytest.raises(StorageError, match="is a symbolic link to"):
        store.get(key, memoryview(bytearray(100)))
    with pytest.raises(StorageError, match="is a symbolic link to"):
        store.delete([key])
    store.renew(key)
    with contextlib.suppress(StorageError):
        assert store.list(f"{name}/") == []
    assert content(outside) == before
    assert os.listdir(outside) == ["key"]


def test_a_store_that_knows_a_folder_does_not_follow_what_comes_in_its_place(tmp_path: Path, outside: Path) -> None:
    root = tmp_path / "root"
    store = LocalStore(str(root))
    store.put("lineage/000001.json", X)
    (root / "lineage").rename(root / "moved")
    (root / "lineage").symlink_to(outside)
    with pytest.raises(StorageError, match="is a symbolic link"):
        store.create("lineage/000002.json", X)
    with pytest.raises(StorageError, match="is a symbolic link"):
        store.delete(["lineage/000001.json"])
    assert list(content(outside)) == ["key"]


@pytest.mark.parametrize("verb", ["put", "create", "delete"])
def test_a_link_that_comes_while_a_verb_is_at_work(
    tmp_path: Path, outside: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    store = LocalStore(str(root))
    store.put("f/key", X)

    def swap() -> None:
        if not (root / "f").is_symlink():
            (root / "f").rename(root / "moved")
            (root / "f").symlink_to(outside)

    def first(call: Callable[..., None]) -> Callable[..., None]:
        def swapped(*arguments: object, **words: object) -> None:
            swap()
            call(*arguments, **words)

        return swapped

    for name in ("fsync", "unlink"):
        monkeypatch.setattr(os, name, first(getattr(os, name)))
    with contextlib.suppress(CkptflowError):
        store.delete(["f/key"]) if verb == "delete" else getattr(store, verb)("f/key2", X)
    assert content(outside) == {"key": b"another's"}


def test_the_root_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "disk")
    store = LocalStore(str(tmp_path / "root"))
    store.create("f/key", X)
    store.put("top", X)
    into = bytearray(2)
    assert store.get("f/key", memoryview(into)) == 1
    assert sorted(entry.key for entry in store.list()) == ["f/key", "top"]
    assert store.list("f/") == [Entry("f/key", 1)]
    store.delete(["f/key", "top"])
    assert os.listdir(tmp_path / "disk") == []
    assert (tmp_path / "root").is_symlink()


def link_to_a_file(path: Path) -> None:
    path.symlink_to(path.parents[2] / "outside" / "key")


def link_to_a_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


OTHERS: dict[str, Callable[[Path], None]] = {
    "a link to a file": link_to_a_file,
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to a pipe": link_to_a_pipe,
    "a link to a folder": lambda path: path.symlink_to("/etc"),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a pipe": lambda path: os.mkfifo(path),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", ["manifest.json", "shard-00000-of-00001-0000.safetensors"])
def test_what_is_no_file_is_listed_and_read_as_empty(tmp_path: Path, outside: Path, kind: str, name: str) -> None:
    root = tmp_path / "root"
    (root / "f").mkdir(parents=True)
    OTHERS[kind](root / "f" / name)
    store, key = LocalStore(str(root)), f"f/{name}"
    assert Entry(key, 0) in store.list()
    assert Entry(key, 0) in store.list("f/")
    for into in (memoryview(bytearray(9)), aligned(DIRECT_MIN_BYTES)):
        assert store.get(key, into) == 0
    store.renew(key)
    with pytest.raises(ObjectExistsError):
        store.create(key, X)
    store.put(key, memoryview(b"ours"))
    assert (root / key).read_bytes() == b"ours"
    assert not (root / key).is_symlink()
    assert content(outside) == {"key": b"another's"}


@pytest.mark.parametrize("kind", OTHERS)
def test_only_the_link_itself_is_deleted(tmp_path: Path, outside: Path, kind: str) -> None:
    root = tmp_path / "root"
    (root / "f").mkdir(parents=True)
    OTHERS[kind](root / "f" / "key")
    store = LocalStore(str(root))
    store.delete(["f/key", "f/pipe"])
    assert os.listdir(root) == []
    assert content(outside) == {"key": b"another's"}


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("pipe")])
def test_a_pipe_where_a_file_is_to_be_read_is_said_and_not_waited_for(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "model.keras")
    if (tmp_path / "model.keras").is_symlink():
        os.mkfifo(tmp_path / "pipe")
    path = str(tmp_path / "model.keras")
    with pytest.raises(UsageError, match="neither a file nor a folder"), fetched(path):
        pass
    with pytest.raises(UsageError, match="neither a file nor a folder"), opened(path):
        pass
    with pytest.raises(CkptflowError), staged(path, overwrite=False) as staging:
        Path(staging).write_bytes(b"x")


def test_creators_by_link_and_by_lock_exclude_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two clients of a share one may have found that there are no links."""
    by_link, by_lock = LocalStore(str(tmp_path)), LocalStore(str(tmp_path))
    by_lock._has_links = False
    look = local_calls.is_there

    def late(name: str, folder: int) -> bool:
        found = look(name, folder)
        by_link.create("a", memoryview(b"by link"))
        return found

    monkeypatch.setattr(local_names, "is_there", late)
    with pytest.raises(ObjectExistsError):
        by_lock.create("a", memoryview(b"by lock"))
    assert (tmp_path / "a").read_bytes() == b"by link"
    assert os.listdir(tmp_path) == ["a"]
