"""The manifest that the chief has read, on its way to the other workers: the storage is asked for it once per job."""

from __future__ import annotations

import zlib

from ckptflow.errors import CorruptCheckpointError, UnknownVersionError
from ckptflow.format.layout import Folder
from ckptflow.format.manifest import MAX_MANIFEST_BYTES, Manifest, decode, encode
from ckptflow.peers.team import MAX_MESSAGE_BYTES

MAX_PACKED_BYTES = MAX_MESSAGE_BYTES * 3 // 4 - 2**16  # in a message it is text: four characters for three bytes
_LEVEL = 1  # a fifth of the time of the usual one, for a few percent more bytes


def pack(manifest: Manifest) -> bytes:
    """The manifest for a message: its sealed bytes, compressed. Empty where they are too many for one."""
    packed = zlib.compress(encode(manifest), _LEVEL)
    return packed if len(packed) <= MAX_PACKED_BYTES else b""


def unpack(packed: bytes, folder: Folder, where: str) -> Manifest | None:
    """The manifest of `folder`, checked as one that was read from storage; None where that did not arrive.

    Takes no more memory than the largest manifest may have.
    """
    unpacking = zlib.decompressobj()
    try:
        data = unpacking.decompress(packed, MAX_MANIFEST_BYTES)
        manifest = decode(data, Manifest, where) if unpacking.eof else None
    except (zlib.error, CorruptCheckpointError, UnknownVersionError):
        return None
    return manifest if manifest is not None and manifest.folder == str(folder) else None
