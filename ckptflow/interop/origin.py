"""Which checkpoint a file or folder was exported from, read where it lies, without its data."""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Callable
from typing import Any, BinaryIO

from ckptflow.errors import ObjectNotFoundError
from ckptflow.interop import safetensors_file
from ckptflow.interop.formats import by_suffix
from ckptflow.interop.keras import files as keras_files
from ckptflow.interop.provenance import EXTRA, FILE_NAME, MAX_BYTES, Provenance, decode
from ckptflow.interop.tensorflow import tflite
from ckptflow.interop.untrusted import archives
from ckptflow.places.files import fetched, opened

_IN_SAVED_MODEL = posixpath.join(EXTRA, FILE_NAME)


def find_provenance(url: str, storage_options: dict[str, Any] | None = None) -> Provenance | None:
    """The provenance that the export at `url` carries; None where it carries none, or nothing of ours is there.

    Reads a file's directory or header, not its tensors. Loads TensorFlow for a tf-checkpoint alone. Raises
    `CorruptCheckpointError` where the file is damaged, and a `StorageError` where the storage refuses.
    """
    told = by_suffix(url)
    if told is not None and told.name in _OF_FILE:
        with contextlib.suppress(ObjectNotFoundError), opened(url, storage_options) as file:
            return _OF_FILE[told.name](file, url)
    inside = f"{url.rstrip('/')}/{_IN_SAVED_MODEL}"
    with contextlib.suppress(ObjectNotFoundError), opened(inside, storage_options) as file:
        return decode(file.read(MAX_BYTES + 1), inside)
    prefix = url.removesuffix(".index")
    try:
        with opened(f"{prefix}.index", storage_options):
            pass
    except ObjectNotFoundError:
        return None
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from ckptflow.interop.tensorflow.checkpoint import read_provenance

    with fetched(prefix, storage_options) as local:
        return read_provenance(local)


def _of_tar(file: BinaryIO, url: str) -> Provenance | None:
    data = archives.read_member(file, _IN_SAVED_MODEL, max_bytes=MAX_BYTES, where=url)
    return None if data is None else decode(data, url)


_OF_FILE: dict[str, Callable[[BinaryIO, str], Provenance | None]] = {
    "keras": keras_files.read_provenance,
    "h5": keras_files.read_provenance,
    "weights": keras_files.read_provenance,
    "safetensors": safetensors_file.read_provenance,
    "tflite": tflite.read_provenance,
    "hub": _of_tar,
}
