"""The provenance in a LiteRT file's metadata, read without TensorFlow, by seeking: the file is a FlatBuffer
(https://flatbuffers.dev/internals), of which a few tables are looked at."""

from __future__ import annotations

import os
from typing import Any, BinaryIO

from flatbuffers.number_types import Uint32Flags, UOffsetTFlags
from flatbuffers.table import Table

from ckptflow.errors import CorruptCheckpointError
from ckptflow.interop.provenance import MAX_BYTES, NAME, Provenance, decode

IDENTIFIER = b"TFL3"
# Where a table says where its field is: 4 bytes, and 2 for each field before. In a model, an entry and a buffer.
_BUFFERS, _METADATA = 12, 16
_ENTRY_NAME, _ENTRY_BUFFER = 4, 6
_BUFFER_DATA = 4
_MAX_ENTRIES = 1024


def read_provenance(file: BinaryIO, where: str) -> Provenance | None:
    """What `write_tflite` noted in the file, None where it was written by something else.

    Does not import TensorFlow. Raises `CorruptCheckpointError`, naming `where`, for a file that is no whole LiteRT
    file.
    """
    try:
        text = _entry(_Table(_File(file), 0).table_at(0), NAME.encode())
    except (TypeError, ValueError) as error:  # flatbuffers raises TypeError for a place that can be none
        raise CorruptCheckpointError(f"{where} is no LiteRT file, or a damaged one: {error}") from error
    return None if text is None else decode(text, where)


def _entry(model: _Table, name: bytes) -> bytes | None:
    (buffers, buffer_count), (entries, count) = model.vector(_BUFFERS), model.vector(_METADATA)
    if count > _MAX_ENTRIES:
        raise ValueError(f"it has {count:,} entries of metadata")
    for position in range(count):
        entry = model.table_at(entries + 4 * position)
        if entry.bytes_in(_ENTRY_NAME) == name:
            number = entry.GetSlot(_ENTRY_BUFFER, 0, Uint32Flags)
            if number >= buffer_count:
                raise ValueError("a metadata entry has no buffer")
            return model.table_at(buffers + 4 * number).bytes_in(_BUFFER_DATA)
    return None


class _File:
    """A file of which no more is read than is asked for. Raises ValueError for what lies outside of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, os.SEEK_END)
        if self._size < 8 or self.read(4, 4) != IDENTIFIER:
            raise ValueError(f"it does not begin as one ({self._size:,} bytes)")

    def read(self, place: int, count: int) -> bytes:
        if not 0 <= place <= self._size - count:
            raise ValueError(f"it leads to byte {place:,}, and has {self._size:,}")
        self._file.seek(place)
        return self._file.read(count)


class _Table(Table):  # type: ignore[misc]
    """One in such a file, which flatbuffers would have in memory."""

    def Get(self, flags: Any, off: int) -> Any:  # noqa: N802 - the name is flatbuffers'
        return flags.packer_type.unpack(self.Bytes.read(off, flags.bytewidth))[0]

    def table_at(self, place: int) -> _Table:
        """The table that an offset at `place` leads to."""
        return _Table(self.Bytes, place + self.Get(UOffsetTFlags, place))

    def vector(self, slot: int) -> tuple[int, int]:
        """Where a vector's first element lies, and how many it has."""
        offset = self.Offset(slot)
        start = self.Vector(offset) if offset else 0
        return start, self.Get(UOffsetTFlags, start - UOffsetTFlags.bytewidth) if offset else 0

    def bytes_in(self, slot: int) -> bytes:
        start, count = self.vector(slot)
        found: bytes = self.Bytes.read(start, min(count, MAX_BYTES + 1))
        return found
