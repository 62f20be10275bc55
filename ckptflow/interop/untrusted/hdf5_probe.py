"""Does HDF5 live through a file? Asked of another process, since on a damaged file libhdf5 can crash the one that asks.

Seen with libhdf5 1.14: one changed byte in a table of texts, and reading an attribute is a segmentation fault. What
Python can catch is left to `keras.hdf5`; this is for what it cannot.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

from ckptflow.interop.keras import hdf5 as keras_hdf5
from ckptflow.interop.untrusted import probe  # HDF5 is loaded before there are limits
from ckptflow.interop.untrusted.zips import bound_of, check_zip
from ckptflow.places.room import ensure_room
from ckptflow.places.shown_as import private_file

WEIGHTS_MEMBER = "model.weights.h5"  # of a .keras
_JSON_MEMBERS, _JSON_ATTRIBUTES = ("config.json", "metadata.json"), ("model_config", "training_config")
_COPY_BYTES = 2**20


def check_survives(path: str) -> None:
    """Raises `CorruptCheckpointError` where a process that reads all of a `.keras` or HDF5 file dies of it, comes to no
    end, or takes far more memory than is in proportion to the file. Loads no TensorFlow.
    """
    try:
        size_bytes = os.path.getsize(path)
    except OSError:
        return  # whoever reads it says so
    probe.check("ckptflow.interop.untrusted.hdf5_probe:read_all", path, [path], scratch_bytes=bound_of(size_bytes))


@contextlib.contextmanager
def surviving(file: BinaryIO, where: str) -> Iterator[str | BinaryIO]:
    """A file that another process has read to the end: as it was given where it lies on this disk, else a copy."""
    name = getattr(file, "name", None)
    if isinstance(name, str) and os.path.isfile(name):
        check_survives(name)
        yield file
        return
    with private_file("ckptflow-keras-", "whole.h5", where) as path:
        ensure_room(os.path.dirname(path), file.seek(0, os.SEEK_END))
        file.seek(0)
        with open(path, "xb") as copy:
            shutil.copyfileobj(file, copy, _COPY_BYTES)
        check_survives(path)
        yield path


def read_all(path: str) -> None:
    """Reads every attribute, every value that HDF5 does not just copy, and the configs. For a process of its own: it
    may die."""
    size_bytes = os.path.getsize(path)
    with open(path, "rb") as file:
        is_zip = file.read(2) == b"PK"
    if not is_zip:
        with keras_hdf5.opened(path, path) as found:
            keras_hdf5.touch(found, path, size_bytes)
            for name in _JSON_ATTRIBUTES:
                keras_hdf5.json_of(keras_hdf5.text_of(found, name) or "{}", name, path)
        return
    check_zip(path)
    with zipfile.ZipFile(path) as archive:
        for name in {*_JSON_MEMBERS} & {*archive.namelist()}:
            keras_hdf5.json_of(archive.read(name), name, path)
        with keras_hdf5.member(archive, WEIGHTS_MEMBER, path) as inside, keras_hdf5.opened(inside, path) as found:
            taken_bytes = keras_hdf5.touch(found, path, size_bytes)
        keras_hdf5.check_assets(archive, path, taken_bytes)
