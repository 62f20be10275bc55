"""Modules of TensorFlow Hub: a SavedModel, packed. All of this is done without TensorFlow."""

from __future__ import annotations

import os
from typing import Any, BinaryIO

from ckptflow.errors import UsageError
from ckptflow.format.words import some_of
from ckptflow.interop.provenance import IN_SAVED_MODEL, MAX_BYTES, Provenance, decode
from ckptflow.interop.untrusted.archives import read_member, unpack_tar
from ckptflow.places.names import listed

_SHOWN = 5


def read_provenance(file: BinaryIO, where: str) -> Provenance | None:
    """What the packed SavedModel says; None where it says nothing. Raises `CorruptCheckpointError`."""
    data = read_member(file, IN_SAVED_MODEL, max_bytes=MAX_BYTES, where=where)
    return None if data is None else decode(data, where)


def as_folder(local: str, place: str, folder: str, source_options: dict[str, Any] | None, *, is_compared: bool) -> str:
    """The folder of a module, unpacked in `folder` if it is a file: what lies in that, or in one folder of it.

    Raises `UsageError` where that is no SavedModel, or several.
    """
    if not os.path.isfile(local):
        return local
    unpacked = os.path.join(folder, "module")
    unpack_tar(local, unpacked)
    names = listed(unpacked)
    found = [path for path in (unpacked, *(os.path.join(unpacked, name) for name in names)) if _is_module(path)]
    if len(found) != 1 and unpacked not in found:
        what = "several SavedModels" if found else "no SavedModel, for want of a saved_model.pb"
        raise UsageError(f"{local} holds {what}: it has {some_of(names, _SHOWN)}. Unpack it, and name what is meant")
    return found[0]


def _is_module(folder: str) -> bool:
    return any(os.path.isfile(os.path.join(folder, name)) for name in ("saved_model.pb", "saved_model.pbtxt"))
