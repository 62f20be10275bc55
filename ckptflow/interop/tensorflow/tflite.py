"""LiteRT (TensorFlow Lite): a model's signatures converted by TensorFlow's own converter, for inference alone.

Where the checkpoint came from is an entry of the file's metadata. It is read without TensorFlow, by seeking: the file
is a FlatBuffer (https://flatbuffers.dev/internals), of which a few tables are looked at.
"""

from __future__ import annotations

import logging
import os
import re
import struct
from typing import Any, BinaryIO

from ckptflow.errors import CorruptCheckpointError, UnsupportedStateError
from ckptflow.format.words import some_of
from ckptflow.interop.provenance import MAX_BYTES, NAME, Provenance, decode, encode
from ckptflow.places.shown_as import private_folder

logger = logging.getLogger("ckptflow")

MAX_TFLITE_BYTES = 2**31 - 1  # offsets in the file are signed and of 32 bits
_IDENTIFIER = b"TFL3"
_FLEX = "Flex"  # how the file calls an operation of TensorFlow's own
_SHOWN = 10


# Writing


def write_tflite(
    path: str, model: Any, provenance: Provenance | None, *, signatures: Any = None, input_signature: Any = None
) -> tuple[str, ...]:
    """Writes `model` as a LiteRT file that answers to its signatures by name, in float32 as the model is.

    `signatures` and `input_signature` are as for a SavedModel. Returns the operations that LiteRT does not have and
    TensorFlow's own kernels must do ("select TensorFlow ops"): none for most models.

    Raises `UnsupportedStateError`, naming the operations, where the converter cannot convert the model, or where it is
    larger than the format allows; `UsageError` as a SavedModel does.
    """
    import tensorflow as tf

    from ckptflow.interop.tensorflow.reusable import write_signatures

    with private_folder("ckptflow-tflite-", path, beside=os.path.dirname(path) or ".") as folder:
        written = write_signatures(folder, model, signatures=signatures, input_signature=input_signature)
        _check_size(written.size_bytes)
        ops = tf.lite.OpsSet
        try:
            data = _convert(folder, written.names, [ops.TFLITE_BUILTINS])
        except _errors() as first:
            logger.info("LiteRT's own operations do not do (%s); trying with TensorFlow's", _operations(first))
            try:
                data = _convert(folder, written.names, [ops.TFLITE_BUILTINS, ops.SELECT_TF_OPS])
            except _errors() as error:
                raise UnsupportedStateError(
                    f"LiteRT's converter cannot convert the model, because of {_operations(error) or error}. Hand over "
                    "signatures= that leave these operations out (preprocessing of text can stay outside of the "
                    'graph), or export format="saved-model"'
                ) from error
    finished, selected = _finish(data, provenance)
    _check_size(len(finished))
    with open(path, "wb") as file:
        file.write(finished)
    if selected:
        logger.warning(
            "the LiteRT file needs operations of TensorFlow's own beside LiteRT's: %s. It runs where the Flex delegate "
            "is (select TensorFlow ops: in Android's tensorflow-lite-select-tf-ops, in tensorflow 2.19's "
            "tf.lite.Interpreter; not in the packages ai-edge-litert and tensorflow 2.21). Text can be prepared "
            "outside of the graph; a recurrent layer needs none of them where input_signature= fixes the batch size",
            some_of(selected, _SHOWN),
        )
    return selected


def _convert(folder: str, names: tuple[str, ...], operations: list[Any]) -> bytes:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(names))
    converter.target_spec.supported_ops = operations
    return bytes(converter.convert())


def _errors() -> tuple[type[Exception], ...]:
    from tensorflow.lite.python.convert_phase import ConverterError

    return (ConverterError, ValueError, RuntimeError)


def _operations(error: Exception) -> str:
    """The operations that an error of the converter names."""
    found = {entry.operator.name for entry in getattr(error, "errors", ()) if entry.operator.name}
    found |= set(re.findall(r"'(tf\.\w+)' op", str(error)))
    return some_of(sorted({name.removeprefix("tf.") for name in found}), _SHOWN)


def _check_size(size_bytes: int) -> None:
    if size_bytes > MAX_TFLITE_BYTES:
        raise UnsupportedStateError(
            f"the model has {size_bytes:,} bytes, and a LiteRT file at most {MAX_TFLITE_BYTES:,}; export "
            'format="saved-model" instead'
        )


def _finish(data: bytes, provenance: Provenance | None) -> tuple[memoryview, tuple[str, ...]]:
    """The file with one more metadata entry, and the names of TensorFlow's operations in it."""
    import flatbuffers
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(data, 0)
    codes = (code.customCode for code in model.operatorCodes or ())
    custom = {code.decode() if isinstance(code, bytes) else code for code in codes if code}
    selected = tuple(sorted(code.removeprefix(_FLEX) for code in custom if code.startswith(_FLEX)))
    if provenance is None:
        return memoryview(data), selected
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = list(encode(provenance).encode())
    entry.name, entry.buffer = NAME, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or ()), entry]
    builder = flatbuffers.Builder(min(len(data) + 2 * MAX_BYTES, MAX_TFLITE_BYTES))  # it doubles where it is too small
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return memoryview(builder.Bytes)[builder.Head() :], selected


# Reading the metadata

_BUFFERS, _METADATA = 4, 6  # fields of the root table
_ENTRY_NAME, _ENTRY_BUFFER = 0, 1
_BUFFER_DATA = 0
_MAX_ENTRIES = 1024


def read_provenance(file: BinaryIO, where: str) -> Provenance | None:
    """What `write_tflite` noted in the file, None where it was written by something else.

    Does not import TensorFlow. Raises `CorruptCheckpointError`, naming `where`, for a file that is no whole LiteRT
    file.
    """
    try:
        reader = _FlatBuffer(file)
        text = _entry(reader, NAME.encode())
    except (struct.error, ValueError) as error:
        raise CorruptCheckpointError(f"{where} is no LiteRT file, or a damaged one: {error}") from error
    return None if text is None else decode(text, where)


def _entry(reader: _FlatBuffer, name: bytes) -> bytes | None:
    root = reader.root()
    buffers = reader.vector(root, _BUFFERS)
    for entry in reader.tables(root, _METADATA):
        found = reader.vector(entry, _ENTRY_NAME)
        if found is None or reader.bytes_of(found) != name:
            continue
        number = reader.number(entry, _ENTRY_BUFFER)
        if buffers is None or number >= buffers[1]:
            raise ValueError("a metadata entry has no buffer")
        data = reader.vector(reader.table_at(buffers[0] + 4 * number), _BUFFER_DATA)
        return b"" if data is None else reader.bytes_of(data)
    return None


class _FlatBuffer:
    """A FlatBuffer, read where it is asked for. Raises struct.error or ValueError for what lies outside of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, os.SEEK_END)
        if self._size < 8 or self._read(4, 4) != _IDENTIFIER:
            raise ValueError(f"it does not begin as one ({self._size:,} bytes)")

    def root(self) -> int:
        return self.table_at(0)

    def table_at(self, place: int) -> int:
        """The table that an offset at `place` leads to."""
        return place + self._unpack("<I", place)

    def vector(self, table: int, field: int) -> tuple[int, int] | None:
        """Where a vector's first element lies, and how many it has; None where the field is not set."""
        place = self._field(table, field)
        if place is None:
            return None
        start = self.table_at(place)
        return start + 4, self._unpack("<I", start)

    def tables(self, table: int, field: int) -> list[int]:
        """The tables in a vector of them."""
        found = self.vector(table, field)
        if found is None:
            return []
        if found[1] > _MAX_ENTRIES:
            raise ValueError(f"it has {found[1]:,} entries of metadata")
        return [self.table_at(found[0] + 4 * position) for position in range(found[1])]

    def number(self, table: int, field: int) -> int:
        place = self._field(table, field)
        return 0 if place is None else self._unpack("<I", place)

    def bytes_of(self, vector: tuple[int, int]) -> bytes:
        start, count = vector
        return self._read(start, min(count, MAX_BYTES + 1))

    def _field(self, table: int, field: int) -> int | None:
        places = table - self._unpack("<i", table)
        if 4 + 2 * field >= self._unpack("<H", places):
            return None
        offset = self._unpack("<H", places + 4 + 2 * field)
        return table + offset if offset else None

    def _unpack(self, layout: str, place: int) -> int:
        value: int = struct.unpack(layout, self._read(place, struct.calcsize(layout)))[0]
        return value

    def _read(self, place: int, count: int) -> bytes:
        if not 0 <= place <= self._size - count:
            raise ValueError(f"it leads to byte {place:,}, and has {self._size:,}")
        self._file.seek(place)
        return self._file.read(count)
