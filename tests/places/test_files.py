"""Whole files and folders, brought from and put to each kind of storage, looked at from behind."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ckptflow.errors import (
    CorruptCheckpointError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageError,
    StorageFullError,
    UsageError,
)
from ckptflow.places import remote
from ckptflow.places.files import fetched, opened, staged
from ckptflow.places.local import LocalPlace
from ckptflow.places.remote import RemotePlace
from ckptflow.storage.store import Entry
from ckptflow.testing import Backend
from tests.storage import backends

STORAGES = ["local", "memory", "seaweedfs", "moto", "fake_gcs"]
QUICK = ["local", "memory", "fake_gcs"]  # to make a client of S3 takes half a second
SERVERS = ("ckptflow-seaweedfs-", "ckptflow-moto-", "ckptflow-fake-gcs-")  # their own folders
PART = 5 * 2**20  # the least that S3 takes as a part
LARGE = 2 * PART + 12_345
FOLDER = {
    "saved_model.pb": b"graph",
    "variables/variables.index": b"index",
    "variables/variables.data-00000-of-00001": b"values " * 1000,
    "assets/ein Wörterbuch.txt": "ä\nö\n".encode(),
    "assets/empty": b"",
}
GROUP = {"m.index": b"index", "m.data-00000-of-00002": b"first", "m.data-00001-of-00002": b"second"}


Files = dict[str, bytes] | bytes


@dataclass
class Place:
    """A place on a storage to bring things from and to, and the way behind it."""

    url: str
    options: dict[str, Any]
    backend: Backend

    def staged(self, name: str, *, overwrite: bool = False, **words: Any) -> contextlib.AbstractContextManager[str]:
        return staged(f"{self.url}/{name}", overwrite=overwrite, storage_options=self.options, **words)

    def fetched(self, name: str, **words: Any) -> contextlib.AbstractContextManager[str]:
        return fetched(f"{self.url}/{name}", self.options, **words)

    def write(self, name: str, files: Files, *, overwrite: bool = False, meanwhile: Callable[[], object] = int) -> None:
        """Publishes files; `meanwhile` is called after they were written, before the block is left."""
        with self.staged(name, overwrite=overwrite) as path:
            write(path, files)
            meanwhile()

    def put(self, files: dict[str, bytes]) -> None:
        for key, data in files.items():
            self.backend.raw_put(key, data)

    def all(self) -> dict[str, bytes]:
        return {key: self.backend.raw_get(key) for key in self.backend.raw_list()}


def make_place(kind: str, request: pytest.FixtureRequest, folder: Path) -> Place:
    backend: Any
    if kind == "local":
        backend = backends.LocalBackend(str(folder / "there"))
        return Place(backend.root, {}, backend)
    if kind == "memory":
        backend = backends.FsspecMemoryBackend()
        return Place("memory:/" + backend.root, {}, backend)
    server = request.getfixturevalue(kind)
    if kind == "fake_gcs":
        backend = backends.GcsBackend(server)
        return Place(f"gs://{backends.BUCKET}/{backend.prefix}", server.storage_options, backend)
    backend = backends.S3Backend(server, "fsspec")
    # `client` is for stores; a file goes through fsspec whatever it says.
    return Place(f"s3://{backends.BUCKET}/{backend.prefix}", server.storage_options | {"client": "obstore"}, backend)


@pytest.fixture(params=STORAGES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return make_place(request.param, request, tmp_path)


@pytest.fixture(params=QUICK)
def near(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return make_place(request.param, request, tmp_path)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small parts, and a folder for temporary files that every test must leave empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(remote, "PART_BYTES", PART)
    yield
    assert [name for name in os.listdir(folder) if not name.startswith(SERVERS)] == []


def write(path: str, files: Files) -> None:
    """A file at `path`, or files below it."""
    if isinstance(files, bytes):
        Path(path).write_bytes(files)
        return
    for name, data in files.items():
        target = Path(path, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def read(path: str) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(file.relative_to(path)): file.read_bytes() for file in Path(path).rglob("*") if file.is_file()}


def below(name: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{name}/{key}": data for key, data in files.items()}


# ---- what comes whole


@pytest.mark.parametrize("size", [0, LARGE])
def test_a_file(place: Place, size: int) -> None:
    data = os.urandom(size)
    with place.staged("new/m.keras") as path:
        assert os.path.basename(path) == "m.keras"
        assert not os.path.lexists(path)
        write(path, data)
        assert place.all() == {} or "staging" in "".join(place.all())  # nothing under its name yet
    assert place.all() == {"new/m.keras": data}
    with place.fetched("new/m.keras") as path:
        assert os.path.basename(path) == "m.keras"
        assert Path(path).read_bytes() == data


def test_a_folder(place: Place) -> None:
    files = FOLDER | {"variables/large": os.urandom(LARGE)}
    with place.staged("m") as path:
        write(path, files)
    assert place.all() == below("m", files)
    place.put({"m-2/other": b"", "m.txt": b""})  # neighbours, of which nothing comes along
    for name in ("m", "m/"):
        with place.fetched(name) as path:
            assert read(path) == files
    assert not place.url.startswith(("s3", "gs")) or not os.path.exists(path)


def test_a_prefix_group(place: Place) -> None:
    with place.staged("m") as path:
        for name, data in GROUP.items():
            write(path + name.removeprefix("m"), data)
    assert place.all() == GROUP
    place.put({"m.data-1": b"", "m.index.txt": b"", "m2.index": b""})
    with place.fetched("m") as path:
        found = {name: Path(path + name.removeprefix("m")).read_bytes() for name in GROUP}
        assert found == GROUP
        if not place.url.startswith("/"):
            assert sorted(os.listdir(os.path.dirname(path))) == sorted(GROUP)


def test_nothing_there(place: Place) -> None:
    place.put({"m-2": b"x", "m.data-00000-of-00001": b"x", "mm/x": b"x"})
    with pytest.raises(ObjectNotFoundError, match="/m: not found"), place.fetched("m"):
        pass
    with pytest.raises(ObjectNotFoundError), opened(f"{place.url}/mm", place.options):
        pass


def test_a_file_read_here_and_there(near: Place) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("weights", os.urandom(2**20))
    near.put({"m.keras": packed.getvalue()})
    with opened(f"{near.url}/m.keras", near.options) as file:
        assert zipfile.ZipFile(file).read("config.json") == b"{}"
        assert file.seek(-10, os.SEEK_END) == len(packed.getvalue()) - 10
        assert file.read() == packed.getvalue()[-10:]
        assert file.read() == b""


def test_no_more_than_what_is_asked_for_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backends.FsspecMemoryBackend()
    place = Place("memory:/" + backend.root, {}, backend)
    place.put({"big": bytes(10 * 2**20)})
    asked: list[int] = []
    real = remote._Files.get

    def get(self: Any, key: str, into: memoryview, start: int = 0) -> int:
        asked.append(len(into))
        return real(self, key, into, start)

    monkeypatch.setattr(remote._Files, "get", get)
    with opened(f"{place.url}/big") as file:
        assert len(file.read(100)) == 100
    assert sum(asked) < 2**20


# ---- what must not be replaced, and what may


@pytest.mark.parametrize("old", [{"m": b"file"}, below("m", FOLDER), GROUP], ids=["file", "folder", "group"])
def test_what_is_there_stays(near: Place, old: dict[str, bytes]) -> None:
    near.put(old)
    with pytest.raises(ObjectExistsError, match=r"/m: something is there.*overwrite=True"), near.staged("m"):
        raise AssertionError("the work was begun")
    assert near.all() == old


@pytest.mark.parametrize("new", [b"small", FOLDER], ids=["file", "folder"])
def test_what_comes_meanwhile_stays(near: Place, new: Files) -> None:
    others = {"m": b"another's"} if isinstance(new, bytes) else {"m/saved_model.pb": b"another's"}
    with pytest.raises(ObjectExistsError, match="/m: something is there"):
        near.write("m", new, meanwhile=lambda: near.put(others))
    assert near.all() == others


def test_what_comes_between_the_look_and_the_writing_stays(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second look sees nothing; the write itself does."""

    def meanwhile() -> None:
        place.put({"m": b"another's"})
        for kind in (LocalPlace, RemotePlace):
            monkeypatch.setattr(kind, "all", lambda self: {})

    with pytest.raises(ObjectExistsError):
        place.write("m", b"ours", meanwhile=meanwhile)
    assert place.all() == {"m": b"another's"}


@pytest.mark.parametrize("size", [3, LARGE])
def test_a_file_is_replaced(place: Place, size: int) -> None:
    place.put({"m": b"old", "m.index": b"a neighbour"})
    data = os.urandom(size)
    with place.staged("m", overwrite=True) as path:
        write(path, data)
    assert place.all() == {"m": data, "m.index": b"a neighbour"}


def test_a_folder_is_replaced_and_nothing_of_the_old_is_left(place: Place) -> None:
    place.put(below("m", FOLDER | {"assets/old": b"old", "fingerprint.pb": b"old"}) | {"m2/x": b"", "m.index": b""})
    new = FOLDER | {"saved_model.pb": b"new", "assets/new": b"new"}
    with place.staged("m/", overwrite=True) as path:
        write(path, new)
    assert place.all() == below("m", new) | {"m2/x": b"", "m.index": b""}


def test_a_group_is_replaced(place: Place) -> None:
    place.put(GROUP | {"m": b"a neighbour"})
    with place.staged("m", overwrite=True) as path:
        write(path + ".index", b"new")
        write(path + ".data-00000-of-00001", b"new")
    assert place.all() == {"m": b"a neighbour", "m.index": b"new", "m.data-00000-of-00001": b"new"}


def test_a_file_for_a_folder_and_back(near: Place) -> None:
    near.put(below("m", FOLDER))
    with near.staged("m", overwrite=True) as path:
        write(path, b"file")
    assert near.all() == {"m": b"file"}
    with near.staged("m", overwrite=True) as path:
        write(path, FOLDER)
    assert near.all() == below("m", FOLDER)


def test_an_empty_folder_is_free(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with staged(str(tmp_path / "m"), overwrite=False) as path:
        write(path, FOLDER)
    assert read(str(tmp_path / "m")) == FOLDER
    (tmp_path / "n").mkdir()
    with pytest.raises(ObjectExistsError), staged(str(tmp_path / "n"), overwrite=False) as path:
        write(path, b"file")
    with staged(str(tmp_path / "n"), overwrite=True) as path:
        write(path, b"file")
    assert (tmp_path / "n").read_bytes() == b"file"


RUN = {
    "run/lineage/000001.json": b"claim",
    "run/000000000001-i0001/manifest.json": b"manifest",
    "run/000000000001-i0001/shard-00000-of-00001-0000.safetensors": b"values",
}


def test_runs_and_checkpoints_are_never_replaced(near: Place) -> None:
    runs = below("runs", RUN)
    near.put(runs)
    for name in ("runs", "runs/run", "runs/run/lineage"):
        with pytest.raises(UsageError, match=rf"{name}.*never replaced"), near.staged(name, overwrite=True):
            raise AssertionError("the work was begun")
    for name in ("000000000001-i0001", "000000000001-i0001/new.keras", "000000000001-i0001/manifest.json"):
        with pytest.raises(UsageError, match="checkpoint's folder"), near.staged(f"runs/run/{name}", overwrite=True):
            raise AssertionError("the work was begun")
    assert near.all() == runs
    with near.staged("runs/run/exports/m.keras") as path:
        write(path, b"beside checkpoints there is room")
    assert len(near.all()) == 4


def test_only_what_was_asked_for_is_published(near: Place) -> None:
    with pytest.raises(UsageError, match="no file was written"):
        near.write("m", {})
    with pytest.raises(UsageError, match=r"'m2' was written in addition to 'm'"), near.staged("m") as path:
        write(path + "2", b"x")
    with pytest.raises(UsageError, match="neither a file nor a folder"), near.staged("m") as path:
        os.symlink("/etc/passwd", path)
    assert near.all() == {}


@pytest.mark.parametrize("url", ["s3://bucket", "gs://bucket/", "memory://", "/"])
def test_no_name_to_write_to(url: str) -> None:
    with pytest.raises(UsageError, match="does not name a file"), staged(url, overwrite=True):
        pass


# ---- what is refused before it is read


def test_bounds(near: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    near.put(below("m", {"a": b"x" * 600, "b": b"x" * 600}))
    if near.url.startswith("/"):  # is used where it is
        return
    with near.fetched("m", max_bytes=1200) as path:
        assert len(read(path)) == 2
    with pytest.raises(UsageError, match="1,200 bytes"), near.fetched("m", max_bytes=1199):
        pass
    monkeypatch.setattr(remote, "MAX_FILES", 1)
    with pytest.raises(UsageError, match="2 objects"), near.fetched("m"):
        pass
    monkeypatch.undo()
    monkeypatch.setattr("shutil.disk_usage", lambda path: _Usage(1199))
    with pytest.raises(StorageFullError, match=r"room for 1,199.*TMPDIR"), near.fetched("m"):
        pass


@dataclass
class _Usage:
    free: int


@pytest.mark.parametrize("key", ["m/../../escaped", "m//x", "m/./x", "m/a\\b", "m/x\n", "m/file/x"])
def test_names_that_no_folder_can_hold(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backends.FsspecMemoryBackend()
    backend.raw_put("m/file", b"x")
    real = remote._Files.list
    monkeypatch.setattr(remote._Files, "list", lambda self, prefix="": [*real(self, prefix), Entry(key, 1)])
    place = Place("memory:/" + backend.root, {}, backend)
    with pytest.raises(CorruptCheckpointError, match="cannot be brought to a disk"), place.fetched("m"):
        pass


def test_an_object_that_is_replaced_while_it_is_read(near: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    if near.url.startswith("/"):
        return
    real = remote._Files.get
    for size, other in ((LARGE, LARGE), (LARGE, LARGE - PART), (100, 99), (100, 101)):
        near.put({"m": os.urandom(size)})
        left = [1]

        def get(
            self: Any, key: str, into: memoryview, start: int = 0, *, left: list[int] = left, n: int = other
        ) -> int:
            if left and left.pop():
                near.put({"m": os.urandom(n)})
            return real(self, key, into, start)

        monkeypatch.setattr(remote._Files, "get", get)
        with pytest.raises(StorageError, match="was replaced while it was read"), near.fetched("m"):
            pass
        monkeypatch.undo()
        monkeypatch.setattr(remote, "PART_BYTES", PART)
