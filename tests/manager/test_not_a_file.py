"""What is in the place of a file of a checkpoint and is none: it is named, never waited for, never passed over."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

import ckptflow
from ckptflow import CheckpointManager
from ckptflow.commit import catalog
from ckptflow.errors import CkptflowError, CorruptCheckpointError
from ckptflow.storage.local import LocalStore
from tests.manager.states import Weights

PLACES: dict[str, Callable[[Path], None]] = {
    "pipe": lambda path: os.mkfifo(path),
    "link to nothing": lambda path: path.symlink_to(path.parent / "nothing"),
    "folder": lambda path: path.mkdir(),
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
}


def saved(root: Path) -> None:
    weights = Weights()
    with CheckpointManager(root, weights) as manager:
        for step in (10, 20):
            manager.save(step)
            manager.wait()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["manifest.json", "shard"])
def test_is_damage_that_is_named(tmp_path: Path, name: str, place: str, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "run"
    saved(root)
    (newest,) = root.glob("*20-i0001")
    path = next(path for path in newest.iterdir() if path.name.startswith(name))
    path.unlink()
    PLACES[place](path)
    with CheckpointManager(root, Weights(), read_only=True) as manager:
        restored = manager.restore_latest()
    assert restored is not None
    assert restored.step == 10
    assert "damaged checkpoint" in caplog.text
    with pytest.raises(CkptflowError), ckptflow.open_checkpoint(newest) as opened:
        opened.read(list(opened))


@pytest.mark.parametrize("place", PLACES)
def test_a_claim(tmp_path: Path, place: str) -> None:
    """Its number is taken, whatever it is."""
    root = tmp_path / "run"
    saved(root)
    PLACES[place](root / "lineage" / "000002.json")
    with CheckpointManager(root, Weights()) as manager:
        restored = manager.restore_latest()
        assert restored is not None
        assert restored.step == 20
        manager.save(30)
    assert (root / "lineage" / "000003.json").is_file()


def test_a_folder_that_is_there_and_said_not_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "run"
    saved(root)
    scan, store = os.scandir, LocalStore(str(root))

    def scandir(folder: int) -> object:
        path = os.readlink(f"/proc/self/fd/{folder}")
        if path.endswith("20-i0001"):
            raise FileNotFoundError(2, "No such file or directory", path)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ckptflow.StorageError, match="it exists"):
        store.list()


def test_a_manifest_of_another_run_over_one_of_ours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It costs that checkpoint, loudly, and not the whole incarnation."""
    ours, other = tmp_path / "ours", tmp_path / "other"
    saved(other)
    saved(ours)
    with CheckpointManager(ours, Weights()) as manager:
        manager.restore_latest()
        for step in (30, 40):
            manager.save(step)
            manager.wait()
    with CheckpointManager(other, Weights()) as manager:
        manager.restore_latest()
        manager.save(40)
    (theirs,) = other.glob("*40-i0002/manifest.json")
    (mine,) = ours.glob("*40-i0002/manifest.json")
    mine.write_bytes(theirs.read_bytes())
    with CheckpointManager(ours, Weights(), read_only=True) as manager:
        restored = manager.restore_latest()
    assert restored is not None
    assert (restored.step, restored.incarnation) == (30, 2)
    assert "damaged checkpoint" in caplog.text
    shutil.rmtree(mine.parent)
    shutil.copytree(theirs.parent, mine.parent)  # all of it, which is no damage
    caplog.clear()
    with CheckpointManager(ours, Weights(), read_only=True) as manager:
        restored = manager.restore_latest()
    assert restored is not None
    assert (restored.step, restored.incarnation) == (30, 2)
    assert f"skipped, since they belong to another run, or to a job that held the same number: {mine.parent.name}" in (
        caplog.text
    )


def test_a_huge_manifest_is_not_read_whole(tmp_path: Path) -> None:
    saved(tmp_path)
    (manifest,) = tmp_path.glob("*20-i0001/manifest.json")
    os.truncate(manifest, 1 << 40)
    store, asked = LocalStore(str(tmp_path)), 0
    get = store.get

    def counted(key: str, into: memoryview, start: int = 0) -> int:
        nonlocal asked
        asked += len(into)
        return get(key, into, start)

    store.get = counted  # type: ignore[method-assign]
    (folder,) = [folder for folder in catalog.list_root(store).folders if folder.step == 20]
    with pytest.raises(CorruptCheckpointError, match="longer than"):
        catalog.read_manifest(store, folder)
    assert asked < 32 << 20
