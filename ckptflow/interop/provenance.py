"""Provenance: which checkpoint an export was made of, as one small JSON that travels inside of the export."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ckptflow.decoding import decode_json
from ckptflow.errors import CorruptCheckpointError

NAME = "ckptflow"  # of the entry, attribute or file that holds it, as each format has one
FILE_NAME = "ckptflow.json"
EXTRA = "assets.extra"  # a SavedModel's place for what TensorFlow itself does not read
IN_SAVED_MODEL = f"{EXTRA}/{FILE_NAME}"
MAX_BYTES = 64 * 2**10

_Text = Annotated[str, Meta(max_length=4096)]
_Number = Annotated[int, Meta(ge=0, le=2**62)]


class Provenance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The checkpoint that an export holds.

    `run_url` is the run's root as it was opened, without credentials; `folder` the checkpoint's folder in it;
    `manifest_sha256` the SHA-256 of its `manifest.json` as it lies in storage, in hex; `format` the export's format;
    `ckptflow` the version that wrote it; `exported_at` the time in UTC, for people.
    """

    run_url: _Text
    run_id: _Text
    folder: _Text
    step: _Number
    incarnation: _Number
    manifest_sha256: _Text
    format: _Text
    ckptflow: _Text
    exported_at: _Text


def encode(provenance: Provenance) -> str:
    """The JSON of it, in ASCII or not as the URL is."""
    return msgspec.json.encode(provenance).decode()


def decode(text: str | bytes, where: str) -> Provenance:
    """What `encode` wrote. Raises `CorruptCheckpointError`, naming `where`, for anything else."""
    if len(text) > MAX_BYTES:
        raise CorruptCheckpointError(f"{where}: its provenance is longer than {MAX_BYTES:,} bytes")
    try:
        return decode_json(text, Provenance)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{where}: its provenance cannot be read: {error}") from error
