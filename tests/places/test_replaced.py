"""What an export takes the place of, on this disk, when the export is stopped halfway."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckptflow.errors import StorageUnavailableError
from ckptflow.places import local
from ckptflow.places.files import staged
from ckptflow.storage import local_calls
from tests.places.test_files import FOLDER, below, read, write

NEW_GROUP = {"m.index": b"new", "m.data-00000-of-00001": b"new values"}
OLD_GROUP = {"m.index": b"old index", "m.data-00000-of-00001": b"old data"}


def put_over(folder: Path, new: dict[str, bytes], before: Callable[[], None]) -> None:
    """Exports to `folder`/m over what is there; `before` is called when all is staged."""
    with staged(str(folder / "m"), overwrite=True) as path:
        write(os.path.dirname(path), new)
        before()


@pytest.mark.parametrize("call", ["link", "unlink"])
@pytest.mark.parametrize("struck", range(1, 5))
def test_ctrl_c_at_the_end_of_a_move_leaves_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, struck: int
) -> None:
    write(str(tmp_path), OLD_GROUP)
    real, calls = getattr(os, call), 0

    def interrupted(*args: Any, **words: Any) -> None:
        nonlocal calls
        real(*args, **words)
        calls += 1
        if calls == struck:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        put_over(tmp_path, NEW_GROUP, lambda: monkeypatch.setattr(os, call, interrupted))
    monkeypatch.undo()
    assert read(str(tmp_path)) == OLD_GROUP


def test_a_share_that_has_moved_a_file_and_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(str(tmp_path), OLD_GROUP)
    real = os.unlink

    def lost(*args: Any, **words: Any) -> None:
        real(*args, **words)
        raise FileNotFoundError(errno.ENOENT, "sent twice")

    put_over(tmp_path, NEW_GROUP, lambda: monkeypatch.setattr(os, "unlink", lost))
    monkeypatch.undo()
    assert {name: data for name, data in read(str(tmp_path)).items() if not name.startswith(".")} == NEW_GROUP


def fails_to_sync(folder: str) -> Callable[[str], None]:
    real = local_calls.fsync_path

    def fsync(path: str) -> None:
        if path == folder:
            raise OSError(errno.EIO, "a failing disk")
        real(path)

    return fsync


@pytest.mark.parametrize("old", [OLD_GROUP, below("m", FOLDER)], ids=["a group", "a folder"])
def test_the_old_is_kept_until_the_new_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: dict[str, bytes]
) -> None:
    write(str(tmp_path), old)
    new = NEW_GROUP if old is OLD_GROUP else old | {"m/more": b"new"}
    fsync = fails_to_sync(str(tmp_path))
    with pytest.raises(StorageUnavailableError):
        put_over(tmp_path, new, lambda: monkeypatch.setattr(local, "fsync_path", fsync))
    assert read(str(tmp_path)) == old


def test_the_old_that_cannot_be_put_back_is_kept_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(str(tmp_path), OLD_GROUP)
    fsync = fails_to_sync(str(tmp_path))

    def rename(source: str, target: str) -> None:
        raise OSError(errno.EIO, "a failing disk")

    def break_it() -> None:
        monkeypatch.setattr(local, "fsync_path", fsync)
        monkeypatch.setattr(os, "rename", rename)

    with pytest.raises(StorageUnavailableError) as raised:
        put_over(tmp_path, NEW_GROUP, break_it)
    (note,) = raised.value.__notes__
    assert read(note.partition(" is kept in ")[2]) == OLD_GROUP
