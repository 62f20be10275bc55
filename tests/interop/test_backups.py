"""A backup of Keras's that cannot be read gives way to the one before it, whatever it has become."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

from ckptflow.errors import CorruptCheckpointError, UsageError
from ckptflow.interop.keras.backup import find_backup


def holes(path: Path) -> None:
    path.write_bytes(b"\x89HDF\r\n\x1a\n")
    os.truncate(path, 2**40)


BECOME: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"),
    "holes": holes,
    "pointer": lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n"),
    "page": lambda path: path.write_bytes(b"<html>"),
    "folder": lambda path: path.mkdir(),
}


@pytest.mark.usefixtures("unprobed")
@pytest.mark.parametrize("what", BECOME)
def test_the_one_before_is_taken(what: str, tmp_path: Path) -> None:
    BECOME[what](tmp_path / "latest.weights.h5")
    before = tmp_path / "latest.weights.h5.bkp"
    with h5py.File(before, "w") as file:
        file["v"] = 1
    assert find_backup(str(tmp_path)) == ("weights", str(before), {"written_by": "BackupAndRestore"})


@pytest.mark.usefixtures("unprobed")
@pytest.mark.parametrize("what", [name for name in BECOME if name != "cut"])  # that one's reader says so
def test_the_last_is_refused(what: str, tmp_path: Path) -> None:
    for suffix in ("", ".bkp"):
        BECOME[what](tmp_path / f"latest.weights.h5{suffix}")
    with pytest.raises((CorruptCheckpointError, UsageError), match=r"latest\.weights\.h5\.bkp"):
        find_backup(str(tmp_path))
