"""What merely is something else than it is called is said to be that, and not called damaged; what macOS adds is not
looked at."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

import ckptflow
from ckptflow.errors import CkptflowError, CorruptCheckpointError, UsageError
from ckptflow.interop.keras.parts import zip_model
from ckptflow.interop.untrusted.private_copy import open_regular
from tests.interop.models import without_graph

pytestmark = pytest.mark.usefixtures("unprobed")

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n"
PAGES = [b"\n<!DOCTYPE html><html>", b"\xef\xbb\xbf<html lang='en'>404"]
SOURCES = ["m.keras", "m.h5", "m.weights.h5", "m.safetensors", "m.tar.gz", "m.weights.json"]
# What lies in a folder, the first of it in another's place; and what is imported.
INSIDE = {
    "saved_model.pb": (["saved_model.pb"], "."),
    "m.index": (["m.index", "m.data-00000-of-00001"], "."),
    "m.data-00000-of-00001": (["m.data-00000-of-00001", "m.index"], "m"),
    "model.weights.h5": (["model.weights.h5", "config.json"], "."),
    "m.weights.json": (["m.weights.json"], "m.weights.json"),
    "m.safetensors.index.json": (["m.safetensors.index.json"], "."),
}


def refused(source: Path, run: Path, match: str) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        ckptflow.import_model(source, run)
    assert not isinstance(caught.value, CorruptCheckpointError)


@pytest.mark.parametrize("name", SOURCES)
def test_a_file_that_stands_in_for_another(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    for data, what in ((LFS, "Git LFS"), *((page, "web page") for page in PAGES), (b"", "an empty file")):
        path.write_bytes(data)
        refused(path, tmp_path / "run", rf"{name} is .*{what}")


@pytest.mark.parametrize("name", INSIDE)
def test_a_file_in_a_folder_that_stands_in_for_another(name: str, tmp_path: Path) -> None:
    for member in INSIDE[name][0]:
        (tmp_path / member).write_bytes(b"{}")
    for data, what in ((LFS, "Git LFS"), (PAGES[0], "web page")):
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / INSIDE[name][1], tmp_path / "run", rf"{name} is .*{what}")


def test_a_shard_that_stands_in_for_another(tmp_path: Path) -> None:
    names = [f"m-0000{number}-of-00002.safetensors" for number in (1, 2)]
    safetensors.numpy.save_file({"1": np.ones(3)}, tmp_path / names[0])
    (tmp_path / names[1]).write_bytes(LFS)
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"1": names[0], "2": names[1]}}))
    refused(index, tmp_path / "run", rf"{names[1]} is .*Git LFS")


@pytest.mark.parametrize("data", [LFS, *PAGES])
def test_an_asset_may_hold_anything(data: bytes, tmp_path: Path) -> None:
    unzipped(tmp_path / "m")
    (tmp_path / "m" / "assets").mkdir(exist_ok=True)
    (tmp_path / "m" / "assets" / "vocabulary.txt").write_bytes(data)
    zip_model(str(tmp_path / "m"), str(tmp_path / "m.keras"))
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        assert archive.read("assets/vocabulary.txt") == data


@pytest.mark.parametrize("data", [b"", LFS])
def test_a_file_of_the_name_of_a_checkpoint(data: bytes, tmp_path: Path) -> None:
    """It is none of its files."""
    checkpoint(tmp_path)
    (tmp_path / "m").write_bytes(data)
    ckptflow.import_model(tmp_path / "m", tmp_path / "run")


def test_a_folder_named_checkpoint(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    (tmp_path / "checkpoint").unlink(missing_ok=True)
    (tmp_path / "checkpoint").mkdir()
    ckptflow.import_model(tmp_path, tmp_path / "run")


def test_a_folder_is_no_file_and_is_closed(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(CorruptCheckpointError, match="is not a file"):
        open_regular(str(tmp_path))
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("name", ["m.zip", "m.keras", "m.h5"])
def test_a_zip_of_something_else(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("sm/saved_model.pb", b"x")
    refused(tmp_path / name, tmp_path / "run", rf"{name} is a zip, but .*sm/saved_model\.pb.*unpack it")


@pytest.mark.parametrize(("members", "match"), [
    (["m.index", "m.data-00000-of-00001"], r"no SavedModel.*m\.data.*Unpack it"),
    (["a/b/saved_model.pb"], r"no SavedModel.*it has a\. Unpack it"),
    (["a/saved_model.pb", "b/saved_model.pbtxt"], r"several SavedModels.*it has a, b"),
])  # fmt: skip
def test_an_archive_of_something_else(members: list[str], match: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "m.tar.gz", "w:gz") as tar:
        for member in members:
            tar.addfile(tarfile.TarInfo(member))
    refused(tmp_path / "m.tar.gz", tmp_path / "run", match)


# What macOS adds


def saved_model(folder: Path) -> None:
    module = tf.Module()
    module.v = tf.Variable([1.0, 2.0])
    tf.saved_model.save(module, str(folder))


def checkpoint(folder: Path) -> None:
    tf.train.Checkpoint(v=tf.Variable([1.0, 2.0])).write(str(folder / "m"))


def shards(folder: Path) -> None:
    safetensors.numpy.save_file({"v": np.array([1, 2], "f4")}, folder / "m-00001-of-00001.safetensors")
    (folder / "m.safetensors.index.json").write_text('{"weight_map": {"v": "m-00001-of-00001.safetensors"}}')


def one_keras(folder: Path) -> None:
    without_graph(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])).save(folder / "m.keras")


def unzipped(folder: Path) -> None:
    model: Any = without_graph(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
    keras.saving.save_model(model, folder, zipped=False)


@pytest.mark.parametrize("write", [saved_model, checkpoint, shards, one_keras, unzipped])
def test_a_folder_that_macos_copied(write: Any, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    write(folder)
    for path in list(folder.rglob("*")):
        (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    ckptflow.import_model(folder, tmp_path / "run")


@pytest.mark.parametrize("top", ["", "sm/", "./", "./sm/"])
def test_a_module_that_macos_packed(top: str, tmp_path: Path) -> None:
    saved_model(tmp_path / "sm")
    (tmp_path / "note").write_bytes(b"\0\5\x16\7")
    with tarfile.open(tmp_path / "m.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "note", "./._sm")
        tar.add(tmp_path / "note", f"{top}._saved_model.pb")
        tar.add(tmp_path / "sm", top or ".")
        tar.add(tmp_path / "note", "__MACOSX/sm/._saved_model.pb")
        tar.add(tmp_path / "note", "README.md")
    ckptflow.import_model(tmp_path / "m.tar.gz", tmp_path / "run")
    with ckptflow.open_checkpoint(tmp_path / "run") as opened:
        assert [opened[each.name].tolist() for each in opened.manifest.tensors] == [[1, 2]]


def test_a_keras_file_that_macos_packed(tmp_path: Path) -> None:
    one_keras(tmp_path)
    with zipfile.ZipFile(tmp_path / "m.keras", "a") as archive:
        archive.writestr("__MACOSX/._config.json", b"\0\5\x16\7")
        archive.writestr(".DS_Store", b"\0\0\0\1Bud1")
    ckptflow.import_model(tmp_path / "m.keras", tmp_path / "run")


def test_a_folder_that_was_zipped(tmp_path: Path) -> None:
    """As a file manager packs it, with the folder itself."""
    (tmp_path / "m").mkdir()
    unzipped(tmp_path / "m")
    shutil.make_archive(str(tmp_path / "m"), "zip", tmp_path, "m")
    with pytest.raises(CkptflowError, match=r"m\.zip is a zip, but .*unpack it"):
        ckptflow.import_model(tmp_path / "m.zip", tmp_path / "run")
