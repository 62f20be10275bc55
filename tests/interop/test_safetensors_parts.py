"""A model in several safetensors files, as others save large ones: all of it or nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import ckptflow
from ckptflow.errors import CorruptCheckpointError, ObjectNotFoundError, UsageError

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
VALUES: dict[str, Any] = {
    "a/kernel": np.arange(600_000, dtype="f4").reshape(600, 1000),
    "a/bias": np.arange(3, dtype="i8"),
    "b": np.array(True),
    "none": np.zeros((0, 2), "f2"),
}


def parts(folder: Path) -> dict[str, str]:
    """The files and their index; returns its map."""
    folder.mkdir()
    names = {"a/kernel": FIRST, "none": FIRST, "a/bias": SECOND, "b": SECOND}
    for name in (FIRST, SECOND):
        save_file({key: value for key, value in VALUES.items() if names[key] == name}, folder / name, {"format": "pt"})
    write_index(folder, names)
    return names


def write_index(folder: Path, names: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))


@pytest.mark.parametrize("name", [INDEX, ""])
def test_all_of_it_comes(name: str, tmp_path: Path) -> None:
    parts(tmp_path / "m")
    checkpoint = ckptflow.import_model(tmp_path / "m" / name, tmp_path / "run")
    assert checkpoint.metadata["imported"]["format"] == "safetensors"
    with ckptflow.open_checkpoint(checkpoint.url) as opened:
        assert set(opened) == set(VALUES)
        assert all(np.array_equal(opened[key], value) for key, value in VALUES.items())


def test_from_another_storage(tmp_path: Path) -> None:
    import fsspec

    parts(tmp_path / "m")
    memory = fsspec.filesystem("memory")
    for file in (tmp_path / "m").iterdir():
        memory.pipe(f"/parts/{file.name}", file.read_bytes())
    for number, name in enumerate((f"/{INDEX}", "")):
        checkpoint = ckptflow.import_model(f"memory://parts{name}", tmp_path / f"run-{number}")
        with ckptflow.open_checkpoint(checkpoint.url) as opened:
            assert all(np.array_equal(opened[key], value) for key, value in VALUES.items())


def test_a_part_is_not_the_whole(tmp_path: Path) -> None:
    parts(tmp_path / "m")
    with pytest.raises(UsageError, match=f"has a part of the tensors of {INDEX}"):
        ckptflow.import_model(tmp_path / "m" / FIRST, tmp_path / "run")
    (tmp_path / "m" / INDEX).unlink()
    with pytest.raises(UsageError, match=f"has a part of the tensors of {INDEX}"):
        ckptflow.import_model(tmp_path / "m" / FIRST, tmp_path / "run", format="safetensors")
    with pytest.raises(UsageError, match="with 0 files"):
        ckptflow.import_model(tmp_path / "m", tmp_path / "run", format="safetensors")
    whole = tmp_path / "m" / "model-00001-of-00001.safetensors"
    (tmp_path / "m" / FIRST).rename(whole)
    assert ckptflow.import_model(whole, tmp_path / "run").step == 0


def moved(names: dict[str, str]) -> Any:
    return names | {"b": FIRST}


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        (moved, CorruptCheckpointError, "'b' is not in it"),
        (
            lambda names: {key: name for key, name in names.items() if key != "b"},
            CorruptCheckpointError,
            "'b' is in it",
        ),
        (lambda names: names | {"c": "other.safetensors"}, ObjectNotFoundError, "other.safetensors"),
        (lambda names: names | {"c": "../m/other.safetensors"}, CorruptCheckpointError, "not a file next to it"),
        (lambda names: names | {"c": "/etc/passwd"}, CorruptCheckpointError, "not a file next to it"),
        (lambda names: names | {"c": 3}, CorruptCheckpointError, "not an index"),
        (lambda names: {}, CorruptCheckpointError, "names no tensors"),
        (lambda names: [names], CorruptCheckpointError, "not an index"),
    ],
)
def test_an_index_that_lies(change: Callable[[Any], Any], error: type[Exception], why: str, tmp_path: Path) -> None:
    write_index(tmp_path / "m", change(parts(tmp_path / "m")))
    with pytest.raises(error, match=why):
        ckptflow.import_model(tmp_path / "m" / INDEX, tmp_path / "run")
    assert not ckptflow.list_checkpoints(tmp_path / "run")
