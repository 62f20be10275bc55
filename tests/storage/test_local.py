"""The local disk: durability, direct I/O, debris, races of processes."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from ckptflow.errors import (
    ObjectExistsError,
    StorageError,
    StorageUnavailableError,
)
from ckptflow.storage.local import DIRECT_MIN_BYTES, RESERVED, LocalStore
from ckptflow.testing import read_whole
from tests.waiting import HANG_S

REPO = Path(__file__).resolve().parents[2]
X = memoryview(b"x")


def aligned(size: int, fill: int = 7) -> memoryview:
    memory = mmap.mmap(-1, size)
    memory[:] = bytes([fill]) * size
    return memoryview(memory)


def debris(root: Path) -> list[str]:
    return [name for _, _, names in os.walk(root) for name in names if name.startswith(RESERVED)]


def run_python(code: str, *args: str, expect: int = 0) -> str:
    """Runs `code` in a fresh interpreter and returns what it printed."""
    command = [sys.executable, "-c", textwrap.dedent(code), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, cwd=REPO)
    assert done.returncode == expect, done.stderr
    return done.stdout


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every call that makes something durable, in order, as (call, path); the real calls are made."""
    made: list[tuple[str, str]] = []
    real_fsync, real_link, real_replace = os.fsync, os.link, os.replace

    def fsync(descriptor: int) -> None:
        made.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        real_fsync(descriptor)

    def link(source: str, target: str, **words: Any) -> None:
        made.append(("link", os.path.join(os.readlink(f"/proc/self/fd/{words['dst_dir_fd']}"), target)))
        real_link(source, target, **words)

    def replace(source: str, target: str, **words: Any) -> None:
        made.append(("replace", os.path.join(os.readlink(f"/proc/self/fd/{words['dst_dir_fd']}"), target)))
        real_replace(source, target, **words)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "replace", replace)
    return made


# ---- durability


@pytest.mark.parametrize("verb", ["create", "put"])
def test_file_then_name_then_folders_are_made_durable(tmp_path: Path, calls: list[tuple[str, str]], verb: str) -> None:
    root = tmp_path / "new" / "run-7"
    getattr(LocalStore(str(root)), verb)("f/manifest.json", X)
    folder = str(root / "f")
    made_durable = [path for call, path in calls[:-3] if call == "fsync"]
    assert made_durable == [str(tmp_path), str(tmp_path / "new"), str(root)]  # where new, root and f have their entries
    file_fsync, named, folder_fsync = calls[-3:]
    assert file_fsync[0] == "fsync"
    assert os.path.basename(file_fsync[1]).startswith(RESERVED)
    assert named == ("link" if verb == "create" else "replace", f"{folder}/manifest.json")
    assert folder_fsync == ("fsync", folder)


def test_a_folder_that_another_worker_made_is_made_durable_too(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    (tmp_path / "run-7" / "f").mkdir(parents=True)
    store = LocalStore(str(tmp_path / "run-7"))
    store.create("f/manifest.json", X)
    fsynced = [path for call, path in calls if call == "fsync"]
    assert fsynced[:2] == [str(tmp_path), str(tmp_path / "run-7")]
    calls.clear()
    store.create("f/other", X)
    assert [call for call, _ in calls] == ["fsync", "link", "fsync"]  # known by now
    os.rename(tmp_path / "run-7" / "f", tmp_path / "run-7" / "g")
    (tmp_path / "run-7" / "f").mkdir()
    calls.clear()
    store.create("f/other", X)
    assert ("fsync", str(tmp_path / "run-7")) in calls  # another folder under a known name


def test_a_deletion_is_durable_before_the_next(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    store = LocalStore(str(tmp_path / "run-7"))
    store.put("f/manifest.json", X)
    store.put("f/shard", X)
    calls.clear()
    store.delete(["f/manifest.json"])
    assert calls == [("fsync", str(tmp_path / "run-7" / "f"))]
    calls.clear()
    store.delete(["f/shard"])
    assert calls == [("fsync", str(tmp_path / "run-7"))]
    assert os.listdir(tmp_path / "run-7") == []


def failing_fsync(monkeypatch: pytest.MonkeyPatch, times: int) -> list[str]:
    """Makes the first `times` fsyncs of files fail as a dying disk does; returns the names that were tried."""
    real, tried = os.fsync, list[str]()

    def fsync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if RESERVED in path:
            tried.append(path)
            if len(tried) <= times:
                raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return tried


def test_a_failed_fsync_is_answered_by_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = failing_fsync(monkeypatch, 1)
    LocalStore(str(tmp_path)).create("a", X)
    assert len(tried) == len(set(tried)) == 2
    assert os.listdir(tmp_path) == ["a"]


def test_a_second_failed_fsync_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = failing_fsync(monkeypatch, 2)
    with pytest.raises(StorageUnavailableError, match=r"a: cannot write: Input/output error"):
        LocalStore(str(tmp_path)).create("a", X)
    assert len(tried) == 2
    assert os.listdir(tmp_path) == []


# ---- direct I/O


@pytest.mark.parametrize("tail", [0, 1, 4095])
def test_aligned_memory_goes_past_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tail: int) -> None:
    flags: list[int] = []
    real = os.open

    def noted_open(path: str, flag: int, mode: int = 0o777, **words: Any) -> int:
        flags.append(flag)
        return real(path, flag, mode, **words)

    monkeypatch.setattr(os, "open", noted_open)
    store = LocalStore(str(tmp_path))
    data = aligned(DIRECT_MIN_BYTES + 4096)[: DIRECT_MIN_BYTES + tail]
    store.put("a", data)
    if not store._has_direct:
        pytest.skip(f"the file system under {tmp_path} refuses O_DIRECT")
    assert any(flag & os.O_DIRECT and flag & os.O_CREAT for flag in flags)
    into = aligned(DIRECT_MIN_BYTES * 2, fill=0)
    flags.clear()
    assert store.get("a", into) == len(data)
    assert any(flag & os.O_DIRECT for flag in flags)
    assert into[: len(data)] == data
    assert store.get("a", into[4096:], 4096) == len(data) - 4096
    assert store.get("a", into[:4096], 1) == 4096


def test_short_transfers_are_carried_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write, real_read = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real_write(fd, data[: min(len(data), 100_352)], at))
    monkeypatch.setattr(os, "preadv", lambda fd, parts, at: real_read(fd, [parts[0][:98_304]], at))
    store = LocalStore(str(tmp_path))
    data = aligned(3 * DIRECT_MIN_BYTES)
    for index in range(0, len(data), 1000):
        data[index] = index % 251
    store.put("a", data)
    assert read_whole(store, "a") == bytes(data)
    into = aligned(len(data), fill=0)
    assert store.get("a", into) == len(data)
    assert into == data


# ---- create where there are no hard links


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: str, target: str, **words: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)


@pytest.mark.usefixtures("no_links")
def test_without_hard_links_create_is_exclusive_by_a_lock(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    store.create("a/b", X)
    with pytest.raises(ObjectExistsError):
        store.create("a/b", memoryview(b"y"))
    assert store.is_create_only
    assert [entry.key for entry in store.list()] == ["a/b"]
    assert os.listdir(tmp_path / "a") == ["b"]


@pytest.mark.usefixtures("no_links")
def test_a_lock_left_by_a_crash_blocks_its_own_name_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptflow.storage.local_names._LOCK_WAIT_S", 0.05)
    (tmp_path / "a").mkdir()
    lock = tmp_path / "a" / f"{RESERVED}lock-b"
    lock.touch()
    store = LocalStore(str(tmp_path))
    store.create("a/c", X)
    with pytest.raises(StorageUnavailableError, match="was left by a crash"):
        store.create("a/b", X)
    assert [entry.key for entry in store.list()] == ["a/c"]
    lock.unlink()
    store.create("a/b", X)
    lock.touch()
    store.delete(["a/b", "a/c"])
    assert os.listdir(tmp_path) == []


# ---- races and crashes of processes


RACER = """
    import os, sys, time
    from ckptflow.errors import ObjectExistsError
    from ckptflow.storage.local import LocalStore
    root, racer, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if sys.argv[4] == "lock":
        import ckptflow.storage.local as local
        def link(source, target, **words): raise PermissionError(1, "no links here")
        local.os.link = link
    store = LocalStore(root)
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(rounds):
        try:
            store.create(f"race/{number}", memoryview(racer.encode() * 1000))
            print("won", number, flush=True)
        except ObjectExistsError:
            pass
"""


@pytest.mark.parametrize("way", ["link", "lock"])
def test_sixteen_processes_race_and_one_wins(tmp_path: Path, way: str) -> None:
    rounds, command = 30, [sys.executable, "-c", textwrap.dedent(RACER), str(tmp_path)]
    racers = [
        subprocess.Popen([*command, f"<{racer:02d}>", str(rounds), way], stdin=-1, stdout=-1, text=True, cwd=REPO)
        for racer in range(16)
    ]
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        outputs = [racer.communicate(timeout=HANG_S)[0] for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()
    winners = {number: [r for r, out in enumerate(outputs) if f"won {number}\n" in out] for number in range(rounds)}
    for number, winner in winners.items():
        assert len(winner) == 1, f"round {number}"
        assert (tmp_path / "race" / str(number)).read_text() == f"<{winner[0]:02d}>" * 1000
    assert debris(tmp_path) == []


def test_a_killed_writer_leaves_nothing_that_is_seen(tmp_path: Path) -> None:
    code = """
        import os, signal, sys
        from ckptflow.storage.local import LocalStore
        store = LocalStore(sys.argv[1])
        store.put("f/first", memoryview(b"1"))
        os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)  # the file's: its folder's comes after
        store.put("f/second", memoryview(b"2" * 1_000_000))
    """
    run_python(code, str(tmp_path), expect=-9)
    store = LocalStore(str(tmp_path))
    assert len(debris(tmp_path)) == 1
    assert [entry.key for entry in store.list()] == ["f/first"]
    store.delete(["f/first"])
    assert os.listdir(tmp_path) == []  # the debris went with its folder


def test_a_writer_whose_folder_is_pruned_writes_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(str(tmp_path))
    real, swept = os.replace, list[str]()

    def replace(source: str, target: str, **words: Any) -> None:
        if not swept:
            swept.append(source)
            LocalStore(str(tmp_path)).delete(["f/other"])  # the last object beside ours, and so the folder
            assert not (tmp_path / "f" / source).exists()
        real(source, target, **words)

    store.put("f/other", X)
    monkeypatch.setattr(os, "replace", replace)
    store.put("f/mine", memoryview(b"mine"))
    assert swept
    assert (tmp_path / "f" / "mine").read_bytes() == b"mine"


def test_works_in_a_forked_child(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    store.put("a", X)
    child = os.fork()
    if child == 0:
        try:
            store.put("b", memoryview(b"child"))
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert read_whole(store, "b") == b"child"


# ---- listing


def test_names_of_ours_are_neither_listed_nor_taken(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    (tmp_path / f"{RESERVED}tmp-1").write_bytes(b"x")
    assert store.list() == []
    with pytest.raises(ValueError, match="own"):
        store.put(f"a/{RESERVED}tmp-1", X)


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "a", outside / "deep"):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"1")
    (root / "link").symlink_to(outside)
    (root / "loop").symlink_to(root)
    (root / "dangling").symlink_to(root / "nothing")
    store = LocalStore(str(root))
    assert [entry.key for entry in store.list()] == ["a/file"]
    assert store.list("link/") == []
    assert store.list("link/deep/") == []
    through_a_link = tmp_path / "root-link"
    through_a_link.symlink_to(root)
    assert [entry.key for entry in LocalStore(str(through_a_link)).list("a/")] == ["a/file"]


@pytest.mark.parametrize("name", ["000000000020-i0001", "000000000020-i0001-r2", "lineage", "pins"])
@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_in_the_place_of_a_folder_that_decides(tmp_path: Path, name: str, is_there: bool) -> None:
    """Passed over, the newest checkpoint or the claims would be as if they had never been."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    if is_there:
        outside.mkdir()
        (outside / "manifest.json").write_bytes(b"1")
    (root / name).symlink_to(outside)
    store = LocalStore(str(root))
    for prefix in ("", f"{name}/"):
        with pytest.raises(StorageError, match=rf"{name}: cannot list: it is a symbolic link to .*outside; .*Move the"):
            store.list(prefix)
    store.put("elsewhere/key", X)
    assert store.list("elsewhere/") != []


def test_names_that_no_store_of_ours_wrote_are_left_out(tmp_path: Path) -> None:
    for name in ("new\nline", "back\\slash", "fine"):
        (tmp_path / name).write_bytes(b"1")
    (tmp_path / "lost+found").mkdir()
    assert [entry.key for entry in LocalStore(str(tmp_path)).list()] == ["fine"]


def test_a_list_survives_what_vanishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_bytes(b"1")
    real = os.scandir

    def scandir(folder: int) -> Any:
        found = real(folder)
        if Path(f"/proc/self/fd/{folder}").resolve() == tmp_path:
            (tmp_path / "b" / "file").unlink()
            (tmp_path / "b").rmdir()
        return found

    monkeypatch.setattr(os, "scandir", scandir)
    assert sorted(entry.key for entry in LocalStore(str(tmp_path)).list()) == ["a/file", "c/file"]


def test_listing_claims_first_changes_their_folder(tmp_path: Path) -> None:
    (tmp_path / "lineage").mkdir()
    (tmp_path / "lineage" / "000001.json").write_bytes(b"1")
    before = os.stat(tmp_path / "lineage").st_mtime_ns
    os.utime(tmp_path / "lineage", ns=(0, 0))
    assert [entry.key for entry in LocalStore(str(tmp_path)).list("lineage/")] == ["lineage/000001.json"]
    assert os.stat(tmp_path / "lineage").st_mtime_ns >= before
    assert os.listdir(tmp_path / "lineage") == ["000001.json"]
