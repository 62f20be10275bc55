"""The provenance in Keras's files, and the archive that a `.keras` is. Nothing here loads TensorFlow."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from typing import Any, BinaryIO

from ckptflow.errors import CorruptCheckpointError
from ckptflow.interop import provenance
from ckptflow.interop.keras import hdf5 as keras_hdf5
from ckptflow.interop.keras.hdf5 import MAX_JSON_BYTES, damage, json_of, opened
from ckptflow.interop.provenance import Provenance
from ckptflow.interop.untrusted.hdf5_probe import surviving
from ckptflow.interop.untrusted.zips import check_directory

CONFIG = "config.json"
_METADATA = "metadata.json"
_COPY_BYTES = 2**20
_MAX_METADATA_BYTES = 2**20  # versions, a date, and our provenance


def read_provenance(file: BinaryIO, where: str) -> Provenance | None:
    """Which checkpoint a `.keras` or HDF5 file was exported from; None where it was not. Does not import TensorFlow.

    Of a `.keras` elsewhere only what is needed is read; HDF5 comes whole, since another process has to read it first.
    Raises `CorruptCheckpointError` where the file is damaged.
    """
    with damage(where):
        file.seek(0)
        head = file.read(len(keras_hdf5.MAGIC))
        file.seek(0)
        if head == keras_hdf5.MAGIC:
            with surviving(file, where) as whole, opened(whole, where) as found:
                return keras_hdf5.read_provenance(found, where)
        if head[:2] != b"PK":
            raise CorruptCheckpointError(f"{where} is neither a .keras file nor an HDF5 file")
        check_directory(file)
        with zipfile.ZipFile(file) as archive:
            if _METADATA not in archive.namelist():
                return None
            if archive.getinfo(_METADATA).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise CorruptCheckpointError(f"{where}: its {_METADATA} is not packed by deflate")
            origin = metadata_of(archive, where).get(provenance.NAME)
    if origin is None:
        return None
    return provenance.decode(json.dumps(origin), where)


def metadata_of(archive: zipfile.ZipFile, where: str) -> dict[str, Any]:
    if _METADATA not in archive.namelist():
        return {}
    return json_of(member(archive, _METADATA, where, _MAX_METADATA_BYTES), _METADATA, where)


def member(archive: zipfile.ZipFile, name: str, where: str, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """A member's bytes, no more of them than it may have. Raises `CorruptCheckpointError`."""
    if name not in archive.namelist():
        raise CorruptCheckpointError(f"{where} is not a .keras file: it has no {name}")
    with archive.open(name) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise CorruptCheckpointError(f"{where}: its {name} is longer than {max_bytes:,} bytes")
    return data


def zip_folder(folder: str, target: str, origin: Provenance) -> None:
    """Packs what Keras 3 wrote as a folder: the same members as in the file that it writes by itself."""
    with zipfile.ZipFile(target, "w") as archive:
        with open(os.path.join(folder, _METADATA), "rb") as file:
            archive.writestr(_METADATA, _with_origin(file.read(), origin))
        for above, folders, names in os.walk(folder):
            folders.sort()
            for name in sorted(names):
                file_path = os.path.join(above, name)
                inside = os.path.relpath(file_path, folder)
                if inside != _METADATA:
                    archive.write(file_path, inside)


def copy_members(source: zipfile.ZipFile, target: str, origin: Provenance) -> None:
    with zipfile.ZipFile(target, "w") as archive:
        for information in source.infolist():
            if information.filename == _METADATA:
                archive.writestr(_METADATA, _with_origin(source.read(_METADATA), origin))
                continue
            with source.open(information) as old, archive.open(information.filename, "w", force_zip64=True) as new:
                shutil.copyfileobj(old, new, _COPY_BYTES)


def _with_origin(metadata: bytes, origin: Provenance) -> str:
    return json.dumps({**json.loads(metadata), provenance.NAME: json.loads(provenance.encode(origin))})
