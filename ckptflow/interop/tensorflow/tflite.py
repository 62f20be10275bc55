"""LiteRT (TensorFlow Lite): a model's signatures converted by TensorFlow's own converter, for inference alone.

Where the checkpoint came from is an entry of the file's metadata, which `tflite_metadata` reads.
"""

from __future__ import annotations

import logging
import os
import re
from typing import Any

import flatbuffers
import tensorflow as tf

from ckptflow.errors import UnsupportedStateError
from ckptflow.format.words import some_of
from ckptflow.interop.provenance import MAX_BYTES, NAME, Provenance, encode
from ckptflow.interop.tensorflow.reusable import write_signatures
from ckptflow.interop.tensorflow.tflite_metadata import IDENTIFIER
from ckptflow.places.shown_as import private_folder
from ckptflow.state.private.tensorflow import conversion_error, lite_schema

logger = logging.getLogger("ckptflow")

MAX_TFLITE_BYTES = 2**31 - 1  # offsets in the file are signed and of 32 bits
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
            "the LiteRT file needs TensorFlow operations in addition to LiteRT's: %s. It runs where the Flex delegate "
            "is (select TensorFlow ops: in Android's tensorflow-lite-select-tf-ops, in tensorflow 2.19's "
            "tf.lite.Interpreter; not in the packages ai-edge-litert and tensorflow 2.21). Text can be prepared "
            "outside of the graph; a recurrent layer needs none of them where input_signature= fixes the batch size",
            some_of(selected, _SHOWN),
        )
    return selected


def _convert(folder: str, names: tuple[str, ...], operations: list[Any]) -> bytes:
    converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(names))
    converter.target_spec.supported_ops = operations
    return bytes(converter.convert())


def _errors() -> tuple[type[Exception], ...]:
    return (conversion_error(), ValueError, RuntimeError)


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
    schema = lite_schema()
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
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return memoryview(builder.Bytes)[builder.Head() :], selected
