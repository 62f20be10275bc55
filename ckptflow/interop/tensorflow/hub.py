"""Modules of TensorFlow Hub: a SavedModel, packed. Which checkpoint one holds is read without TensorFlow."""

from __future__ import annotations

from typing import BinaryIO

from ckptflow.interop.provenance import IN_SAVED_MODEL, MAX_BYTES, Provenance, decode
from ckptflow.interop.untrusted.archives import read_member


def read_provenance(file: BinaryIO, where: str) -> Provenance | None:
    """What the packed SavedModel says; None where it says nothing. Raises `CorruptCheckpointError`."""
    data = read_member(file, IN_SAVED_MODEL, max_bytes=MAX_BYTES, where=where)
    return None if data is None else decode(data, where)
