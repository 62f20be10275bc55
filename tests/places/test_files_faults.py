"""What goes wrong while whole files are moved: full disks, dropped connections, kills. Nothing is left half."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ckptflow.errors import (
    StorageAccessError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
)
from ckptflow.places import local, remote
from ckptflow.places.files import fetched, opened, staged
from tests.places.test_files import FOLDER, GROUP, LARGE, PART, Place, below, make_place, read, temporary, write
from tests.servers import Server, s3_client
from tests.storage import backends
from tests.storage.test_remote import LossyProxy
from tests.waiting import HANG_S

__all__ = ["temporary"]  # a fixture


@contextlib.contextmanager
def files_at_most(size_bytes: int) -> Iterator[None]:
    """A full disk: no file of this process can grow beyond `size_bytes`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# ---- this disk


@pytest.mark.parametrize("error", [ValueError("the writer's own"), KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_block_that_raises(tmp_path: Path, error: BaseException, overwrite: bool) -> None:
    if overwrite:
        write(str(tmp_path / "a" / "m"), FOLDER)

    def work() -> None:
        with staged(str(tmp_path / "a" / "m"), overwrite=overwrite) as path:
            write(path, FOLDER | {"saved_model.pb": b"new"})
            raise error

    with pytest.raises(type(error)):
        work()
    assert read(str(tmp_path)) == (below("a/m", FOLDER) if overwrite else {})
    assert os.path.exists(tmp_path / "a") == overwrite  # a parent that had to be made is gone, too


def test_a_full_disk(tmp_path: Path) -> None:
    write(str(tmp_path / "m"), b"old")

    def work() -> None:
        with staged(str(tmp_path / "m"), overwrite=True) as path:
            write(path, bytes(2 * 2**20))

    with files_at_most(2**20), pytest.raises(StorageFullError, match=r"/m: cannot write: .*make room"):
        work()
    assert read(str(tmp_path)) == {"m": b"old"}
    for words in ("ResourceExhausted: variables/x; No space left on device", "Disk quota exceeded"):
        with pytest.raises(StorageFullError, match=r"staging-m-.*, to be .*/m: cannot write"):
            with staged(str(tmp_path / "m"), overwrite=True):
                raise RuntimeError(words)


def test_no_room_for_what_is_fetched(tmp_path: Path) -> None:
    backend = backends.FsspecMemoryBackend()
    backend.raw_put("m", bytes(2 * 2**20))
    place = Place("memory:/" + backend.root, {}, backend)
    with files_at_most(2**20), pytest.raises(StorageFullError, match="cannot write"), place.fetched("m"):
        pass  # what is left of it the fixture sees


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    write(str(tmp_path / "file"), b"x")
    with pytest.raises(StorageError, match="file"), staged(str(tmp_path / "file" / "m"), overwrite=False):
        raise AssertionError("the work was begun")
    assert read(str(tmp_path)) == {"file": b"x"}


def replace(path: str, new: Any) -> None:
    with staged(path, overwrite=True) as staging:
        if isinstance(new, dict) and "m.index" in new:
            for name, data in new.items():
                write(staging + name.removeprefix("m"), data)
        else:
            write(staging, new)


NEW_GROUP = {"m.index": b"new", "m.data-00000-of-00001": b"new values"}
CHANGES = {
    "file": ({"m": b"old"}, b"new", {"m": b"new"}),
    "folder": (below("m", FOLDER), {"saved_model.pb": b"new"}, {"m/saved_model.pb": b"new"}),
    "group": (GROUP, NEW_GROUP, NEW_GROUP),
    "folder for file": ({"m": b"old"}, {"saved_model.pb": b"new"}, {"m/saved_model.pb": b"new"}),
}


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_an_error_at_any_call_leaves_the_old_or_the_new(
    change: str, exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, after = CHANGES[change]
    if not exchange:
        monkeypatch.setattr(local, "_exchange", lambda one, other: False)
    real = {name: getattr(os, name) for name in ("rename", "replace", "link", "unlink", "fsync")}
    outcomes = []
    for number in range(30):
        root = tmp_path / f"{number}"
        write(str(root), old)
        left = [number]

        def failing(call: Callable[..., Any], left: list[int] = left) -> Callable[..., Any]:
            def once(*arguments: Any, **words: Any) -> Any:
                if "dir_fd" in words:  # it is a folder of leftovers that goes
                    return call(*arguments, **words)
                left[0] -= 1
                if left[0] == -1:
                    raise OSError(5, "Input/output error")
                return call(*arguments, **words)

            return once

        for name, call in real.items():
            monkeypatch.setattr(os, name, failing(call))
        try:
            replace(str(root / "m"), new)
        except StorageUnavailableError:
            outcomes.append(read(str(root)))
        else:
            assert read(str(root)) == after
            break
        finally:
            for name, call in real.items():
                monkeypatch.setattr(os, name, call)
    assert len(outcomes) >= 3
    assert all(outcome in (old, after) for outcome in outcomes)


KILLED = """
    import json, os, sys
    from tests.places.test_files import read, write
    from tests.places.test_files_faults import CHANGES, replace
    from ckptflow.places import local

    change, exchange, root = json.loads(sys.argv[1])
    old, new, after = CHANGES[change]
    if not exchange:
        local._exchange = lambda one, other: False
    real = {name: getattr(os, name) for name in ("rename", "replace", "link", "unlink", "fsync", "rmdir")}
    outcomes = []
    for number in range(60):
        folder = os.path.join(root, str(number))
        write(folder, old)
        child = os.fork()
        if not child:
            left = [number]
            def dying(call):
                def once(*arguments, **words):
                    left[0] -= 1
                    if left[0] == -1:
                        os._exit(9)
                    return call(*arguments, **words)
                return once
            exchange_really = local._exchange
            local._exchange = dying(exchange_really)
            for name, call in real.items():
                setattr(os, name, dying(call))
            replace(os.path.join(folder, "m"), new)
            os._exit(0)
        is_whole = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        found = read(folder)
        named = {key: data.decode("latin1") for key, data in found.items() if not key.startswith(".ckptflow-")}
        outcomes.append((named, sorted(key for key in found if key.startswith(".ckptflow-"))))
        if is_whole:
            break
    print(json.dumps(outcomes))
"""


@pytest.mark.parametrize(
    ("change", "exchange"),
    [("file", True), ("folder", True), ("folder for file", True), ("folder", False), ("group", True)],
)
def test_a_kill_at_any_call_leaves_the_old_or_the_new(change: str, exchange: bool, tmp_path: Path) -> None:
    """Beside what is clearly a leftover. Where folders cannot be exchanged, the old may be found in it alone."""
    argument = json.dumps([change, exchange, str(tmp_path / "killed")])
    command = [sys.executable, "-c", textwrap.dedent(KILLED), argument]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    old, _, after = ({key: data.decode("latin1") for key, data in files.items()} if isinstance(files, dict) else {}
                     for files in CHANGES[change])  # fmt: skip
    assert len(outcomes) >= 5
    assert outcomes[-1] == [after, []]
    is_atomic = exchange and change != "group"
    for named, leftovers in outcomes:
        if named not in (old, after):
            assert not is_atomic
            assert not {"m/saved_model.pb", "m.index"} & named.keys()  # not readable, and no mixture
            assert any(key.startswith(".ckptflow-replaced-m-") for key in leftovers)


# ---- remote storage


def refuse(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """The storage refuses to write objects whose key has `key` in it."""
    real = remote._Files._write

    def write_or_not(self: Any, name: str, data: memoryview, *, is_new: bool) -> None:
        if key in name:
            raise StorageAccessError(f"{name}: cannot write: refused")
        real(self, name, data, is_new=is_new)

    monkeypatch.setattr(remote._Files, "_write", write_or_not)


@pytest.mark.parametrize("kind", ["memory", "moto", "fake_gcs"])
def test_an_upload_that_fails_leaves_nothing(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_place(kind, request, tmp_path)
    refuse(monkeypatch, "saved_model.pb")
    with pytest.raises(StorageAccessError, match="refused"):
        place.write("m", FOLDER)
    assert place.all() == {}


def test_a_replacement_that_fails_says_what_it_has_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backends.FsspecMemoryBackend()
    place = Place("memory:/" + backend.root, {}, backend)
    place.put(below("m", FOLDER) | {"n": b"old"})
    refuse(monkeypatch, "saved_model.pb")
    with pytest.raises(StorageAccessError) as raised:
        place.write("m", FOLDER, overwrite=True)
    assert any("can no longer be read" in note for note in raised.value.__notes__)
    assert "m/saved_model.pb" not in place.all()
    refuse(monkeypatch, "n")
    with pytest.raises(StorageAccessError) as raised:
        place.write("n", b"new", overwrite=True)
    assert not getattr(raised.value, "__notes__", [])
    assert place.all()["n"] == b"old"


def test_what_makes_it_readable_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backends.FsspecMemoryBackend()
    place = Place("memory:/" + backend.root, {}, backend)
    calls: list[str] = []
    real_write, real_delete = remote._Files._write, remote._Files.delete

    def note_write(self: Any, key: str, data: memoryview, *, is_new: bool) -> None:
        calls.append(key)
        real_write(self, key, data, is_new=is_new)

    def note_delete(self: Any, keys: Any) -> None:
        calls.extend(f"-{key}" for key in keys)
        real_delete(self, keys)

    monkeypatch.setattr(remote._Files, "_write", note_write)
    monkeypatch.setattr(remote._Files, "delete", note_delete)
    place.write("m", FOLDER)
    assert calls[-2:] == ["m/variables/variables.index", "m/saved_model.pb"]
    calls.clear()
    place.write("m", {key: data for key, data in FOLDER.items() if "assets" not in key}, overwrite=True)
    assert calls[:2] == ["-m/saved_model.pb", "-m/variables/variables.index"]
    assert calls[-3] == "m/saved_model.pb"
    assert sorted(calls[-2:]) == ["-m/assets/ein Wörterbuch.txt", "-m/assets/empty"]


@pytest.mark.parametrize("kind", ["seaweedfs", "moto"])
def test_a_large_upload_that_fails_leaves_no_parts(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_place(kind, request, tmp_path)
    server: Server = request.getfixturevalue(kind)
    real = os.pread

    def read_but_for_the_last(descriptor: int, size: int, offset: int) -> bytes:
        if offset == 2 * PART:
            raise StorageAccessError("the third part was refused")
        return real(descriptor, size, offset)

    with pytest.raises(StorageAccessError, match="third part"):
        place.write("m", os.urandom(LARGE), meanwhile=lambda: monkeypatch.setattr(os, "pread", read_but_for_the_last))
    assert place.all() == {}
    uploads = s3_client(server).list_multipart_uploads(Bucket=backends.BUCKET).get("Uploads", [])
    assert [upload["Key"] for upload in uploads if place.url.endswith(upload["Key"].rpartition("/")[0])] == []


@pytest.mark.parametrize("marker", [b"partNumber=2", b"POST /", b"?uploadId=", b"GET /"])
def test_lost_replies_are_got_over(seaweedfs: Server, marker: bytes) -> None:
    """Of a part, of the first and of the last word on an upload, of a range that is read."""
    proxy = LossyProxy(int(seaweedfs.endpoint.rpartition(":")[2]))
    try:
        kwargs = {**seaweedfs.storage_options["client_kwargs"], "endpoint_url": proxy.endpoint}
        options = {**seaweedfs.storage_options, "client_kwargs": kwargs}
        backend = backends.S3Backend(seaweedfs, "fsspec")
        place = Place(f"s3://{backends.BUCKET}/{backend.prefix}", options, backend)
        data = os.urandom(LARGE)

        def meanwhile() -> None:
            proxy.marker = marker

        if marker == b"GET /":
            place.put({"m": data})
            meanwhile()
        else:
            place.write("m", data, meanwhile=meanwhile)
            assert place.all() == {"m": data}
        with place.fetched("m") as path:
            assert Path(path).read_bytes() == data
        assert proxy.dropped == 1
    finally:
        proxy.close()


def test_wrong_credentials_are_not_shown(seaweedfs: Server) -> None:
    options = seaweedfs.storage_options | {"key": "AKIAPLANTEDWRONG", "secret": "PLANTED/SECRET"}
    for call in (fetched("s3://ckptflow-tests/m", options), staged("s3://ckptflow-tests/m", overwrite=True,
                 storage_options=options), opened("s3://ckptflow-tests/m", options)):  # fmt: skip
        with pytest.raises(StorageAccessError, match=r"s3://ckptflow-tests/m.*check the cred") as raised, call:
            pass
        assert "PLANTED" not in "".join(map(str, (raised.value, raised.value.__cause__)))


def test_no_such_bucket(moto: Server) -> None:
    for call in (fetched("s3://no-such-bucket/m", moto.storage_options), staged("s3://no-such-bucket/m", overwrite=True,
                 storage_options=moto.storage_options)):  # fmt: skip
        with pytest.raises(StorageError, match="no such bucket") as raised, call:
            pass
        assert type(raised.value) is StorageError


def test_tensorflow_is_not_loaded() -> None:
    program = "import sys, ckptflow.places.files; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=HANG_S, check=False).returncode == 0
