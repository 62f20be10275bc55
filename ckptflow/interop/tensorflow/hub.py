"""Modules of TensorFlow Hub: a SavedModel, packed. All of this is done without TensorFlow."""

from __future__ import annotations

import os
from typing import Any, BinaryIO

from ckptflow.interop.provenance import IN_SAVED_MODEL, MAX_BYTES, Provenance, decode
from ckptflow.interop.untrusted.archives import read_member, unpack_tar


def read_provenance(file: BinaryIO, where: str) -> Provenance | None:
    """What the packed SavedModel says; None where it says nothing. Raises `CorruptCheckpointError`."""
    data = read_member(file, IN_SAVED_MODEL, max_bytes=MAX_BYTES, where=where)
    return None if data is None else decode(data, where)


def as_folder(local: str, place: str, folder: str, source_options: dict[str, Any] | None, *, is_compared: bool) -> str:
    """The folder of a module, unpacked in `folder` if it is a file."""
    if not os.path.isfile(local):
        return local
    unpacked = os.path.join(folder, "module")
    unpack_tar(local, unpacked)
    inside = os.listdir(unpacked)
    if len(inside) == 1 and os.path.isdir(os.path.join(unpacked, inside[0])):  # packed with its folder
        return os.path.join(unpacked, inside[0])
    return unpacked
