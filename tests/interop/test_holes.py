"""A file that is holes for the most part: what was never written is not copied as zeros, nor read for nothing."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

import ckptflow
from ckptflow.errors import CorruptCheckpointError, StateMismatchError
from ckptflow.interop.untrusted import budget, zips
from ckptflow.interop.untrusted.private_copy import check_regular, measured_bytes
from tests.processes import run_python

TIB = 2**40


def sparse(path: Path, size_bytes: int = TIB) -> Path:
    """A safetensors file of a small tensor and of one that is a hole."""
    small = np.arange(4, dtype="f4").tobytes()
    header = json.dumps({
        "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "w": {"dtype": "F32", "shape": [size_bytes // 4], "data_offsets": [16, 16 + size_bytes]},
    }).encode()  # fmt: skip
    path.write_bytes(len(header).to_bytes(8, "little") + header + small)
    os.truncate(path, 8 + len(header) + 16 + size_bytes)
    return path


def in_parts(folder: Path) -> Path:
    sparse(folder / "m-00001-of-00002.safetensors")
    safetensors.numpy.save_file({"b": np.ones(3)}, folder / "m-00002-of-00002.safetensors")
    names = {"a": 1, "w": 1, "b": 2}
    weight_map = {name: f"m-0000{number}-of-00002.safetensors" for name, number in names.items()}
    index = folder / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


def in_checkpoint(folder: Path) -> Path:
    tf.train.Checkpoint(v=tf.Variable(1.0)).write(str(folder / "m.ckpt"))
    os.truncate(folder / "m.ckpt.data-00000-of-00001", TIB)
    return folder / "m.ckpt"


def in_hdf5(folder: Path) -> Path:
    (folder / "m.weights.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    os.truncate(folder / "m.weights.h5", TIB)
    return folder / "m.weights.h5"


KINDS: dict[str, Callable[[Path], Path]] = {
    "safetensors": lambda folder: sparse(folder / "m.safetensors"),
    "in parts": in_parts,
    "checkpoint": in_checkpoint,
    "hdf5": in_hdf5,
}


@pytest.mark.parametrize("kind", KINDS)
def test_holes_are_not_copied(kind: str, tmp_path: Path) -> None:
    with pytest.raises(CorruptCheckpointError, match=rf"never written.*{budget.MEMORY_VARIABLE}"):
        ckptflow.import_model(KINDS[kind](tmp_path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_may_be_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros, as of slots that were not used yet, may be; and what the user allows."""
    monkeypatch.setattr(zips, "FREE_BYTES", 2**16)
    path = sparse(tmp_path / "m.safetensors", 2**22)
    with pytest.raises(CorruptCheckpointError, match="never written"):
        ckptflow.import_model(path, tmp_path / "run")
    with path.open("r+b") as file:
        file.seek(2**21)
        file.write(b"x" * 2**16)
    ckptflow.import_model(path, tmp_path / "run")
    monkeypatch.setenv(budget.MEMORY_VARIABLE, str(2**23))
    ckptflow.import_model(sparse(path, 2**22), tmp_path / "allowed")


def test_what_does_not_fit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(budget.MEMORY_VARIABLE, str(2 * TIB))
    path = sparse(tmp_path / "m.safetensors")
    state = {"a": tf.Variable(tf.zeros(4)), "w": tf.Variable(tf.zeros(3))}
    with pytest.raises(StateMismatchError, match=rf"w: shape \({TIB // 4}\) in the source, \(3\)"):
        ckptflow.import_model(path, tmp_path / "run", model=state)
    ckptflow.import_model(path, tmp_path / "run", model=state, partial=True)
    assert state["a"].numpy().tolist() == [0, 1, 2, 3]


def test_a_tensor_larger_than_memory(tmp_path: Path) -> None:
    path = sparse(tmp_path / "m.safetensors")
    program = (
        "import resource, sys; from ckptflow.interop.safetensors_file import read_safetensors; "
        f"resource.setrlimit(resource.RLIMIT_AS, ({TIB // 2}, {TIB // 2})); read_safetensors(sys.argv[1]).read('w')"
    )
    done = run_python("-c", program, str(path))
    assert "UsageError" in done.stderr
    assert "m.safetensors: tensor 'w' takes 1.00 TiB, more memory" in done.stderr


def holes(path: Path, size_bytes: int, filled_bytes: int = 0) -> Path:
    path.write_bytes(b"x" * filled_bytes)
    os.truncate(path, size_bytes)
    return path


def test_holes_count_over_all_files_of_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One part may be all zeros where others are not; and many parts are as long as one file."""
    monkeypatch.setattr(zips, "FREE_BYTES", 2**16)
    many = [str(holes(tmp_path / f"{number}", 2**16)) for number in range(2)]
    check_regular(many[:1], "one")
    with pytest.raises(CorruptCheckpointError, match=r"both has 131,072 bytes, of which all but 0 were never written"):
        check_regular(many, "both")
    check_regular([*many, str(holes(tmp_path / "full", 2**16, 2**16))], "all")


def test_parts_are_as_long_as_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zips, "FREE_BYTES", 2**20)
    names = {key: f"m-0000{number}-of-00002.safetensors" for number, key in enumerate(("a", "b"), 1)}
    for key, name in names.items():
        header = json.dumps({key: {"dtype": "U8", "shape": [2**20 - 4096], "data_offsets": [0, 2**20 - 4096]}}).encode()
        holes(tmp_path / name, 0).write_bytes(len(header).to_bytes(8, "little") + header)
        os.truncate(tmp_path / name, 8 + len(header) + 2**20 - 4096)
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    monkeypatch.setattr(zips, "MAX_RATIO", 1.0)
    with pytest.raises(CorruptCheckpointError, match=r"m\.safetensors\.index\.json has .*never written"):
        ckptflow.import_model(tmp_path / "m.safetensors.index.json", tmp_path / "run")


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO])
@pytest.mark.parametrize("refused", [os.SEEK_DATA, os.SEEK_HOLE])
def test_a_file_system_that_cannot_tell(
    refused: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file system that is here answers so."""
    path = holes(tmp_path / "m", 2**30, 5)
    seek = os.lseek

    def lseek(descriptor: int, at: int, how: int) -> int:
        if how == refused:
            raise OSError(code, os.strerror(code))
        return seek(descriptor, at, how)

    monkeypatch.setattr(os, "lseek", lseek)
    with path.open("rb") as file:
        if code == errno.EIO:
            with pytest.raises(OSError, match="Input/output"):
                measured_bytes(file)
            return
        assert measured_bytes(file) == (2**30, 2**30)
        assert file.read(5) == b"xxxxx"
