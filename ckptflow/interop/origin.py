"""Which checkpoint a file or folder was exported from, read where it lies, without its data."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from ckptflow.errors import ObjectNotFoundError
from ckptflow.interop.formats import by_suffix, handler
from ckptflow.interop.provenance import IN_SAVED_MODEL, MAX_BYTES, Provenance, decode
from ckptflow.places.files import fetched, opened


def find_provenance(url: str, storage_options: dict[str, Any] | None = None) -> Provenance | None:
    """The provenance that the export at `url` carries; None where it carries none, or nothing of ours is there.

    Reads a file's directory or header, not its tensors. Loads TensorFlow for a tf-checkpoint alone. Raises
    `CorruptCheckpointError` where the file is damaged, and a `StorageError` where the storage refuses.
    """
    told = by_suffix(url)
    if told is not None and told.origin is not None:
        with contextlib.suppress(ObjectNotFoundError), opened(url, storage_options) as file:
            found: Provenance | None = handler(told.origin)(file, url)
            return found
    inside = f"{url.rstrip('/')}/{IN_SAVED_MODEL}"
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
