"""Untrusted HDF5 files, as Keras writes them: validated before Keras, or anything else, reads a value.

An HDF5 file can name other files of the machine (external links, external and virtual datasets), ask for memory that it
does not fill (a shape is a promise), and load filters as plug-ins. Keras writes none of that.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, BinaryIO

import h5py
import numpy as np

from ckptflow.errors import CkptflowError, CorruptCheckpointError, ObjectNotFoundError
from ckptflow.format import dtypes
from ckptflow.format.dtypes import Array
from ckptflow.interop.provenance import MAX_BYTES, NAME, Provenance, decode
from ckptflow.interop.tensors import NamedTensors, TensorInfo
from ckptflow.interop.untrusted import budget
from ckptflow.places.range_file import RangeFile

MAGIC = b"\x89HDF\r\n\x1a\n"
MAX_DEPTH = 64
MAX_OBJECTS = 2**21
MAX_JSON_BYTES = 2**28
ASSETS = "assets/"  # the members of a `.keras` that layers hold beside weights
_WORD_BYTES = 64  # what an object takes beside its text
_ENDS_OF_LINES = (b"\n", b"\r", b"\v", b"\f", b"\x1c", b"\x1d", b"\x1e", b"\xc2\x85", b"\xe2\x80\xa8", b"\xe2\x80\xa9")
_LOCAL_HEADER_BYTES = 30  # of a member of a zip, before its name
_FILTERS = frozenset({1, 2, 3, 4, 5, 6, 32000})  # gzip, shuffle, checksum, and what else HDF5 and h5py bring along
_WIDER = {"float16": ("float32", "float64"), "bfloat16": ("float32", "float64"), "float32": ("float64",),
          "int8": ("int16", "int32", "int64"), "int16": ("int32", "int64"), "int32": ("int64",)}  # fmt: skip
# Keras's weights lie in groups of this name; h5py and others give them attributes alone.
_VARIABLES = "vars"


@dataclass(frozen=True)
class Stored:
    """One dataset: its path, and what reading it gives."""

    path: str
    dtype: str  # TensorFlow's name
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """The memory that it takes."""
        return math.prod(self.shape) * dtypes.item_size_bytes(self.dtype)


@contextlib.contextmanager
def opened(source: str | BinaryIO, where: str) -> Iterator[h5py.File]:
    """An HDF5 file for reading. Raises `CorruptCheckpointError` for whatever HDF5 and h5py raise meanwhile."""
    with damage(where):
        file = h5py.File(source, "r", locking=False) if isinstance(source, str) else h5py.File(source, "r")
        with file:
            yield file


@contextlib.contextmanager
def damage(where: str) -> Iterator[None]:
    """Turns what readers of damaged files raise into `CorruptCheckpointError`."""
    try:
        yield
    except CkptflowError:
        raise
    except FileNotFoundError as error:
        raise ObjectNotFoundError(f"{where} does not exist") from error
    except (
        OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, OverflowError, MemoryError, EOFError,
        zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise CorruptCheckpointError(
            f"{where} is damaged or not what it says: {type(error).__name__}: {str(error)[:300]}"
        ) from error


def check_file(file: h5py.File, where: str, size_bytes: int) -> list[Stored]:
    """Every dataset of a file, once all of it has been looked over; reads no value. `size_bytes` is how long the file
    is, or the archive that it lies in: packed twice, it may take no more.

    Raises `CorruptCheckpointError` for links other than hard ones, data outside of the file, filters that are plug-ins,
    dtypes that no variable has, and datasets that take far more memory than they store.
    """
    found: list[Stored] = []
    seen: set[int] = set()
    waiting: list[tuple[h5py.Group, str, int]] = [(file, "", 0)]
    total = objects = 0
    while waiting:
        group, path, depth = waiting.pop()
        _check_attributes(group, path, where, size_bytes)
        if depth > MAX_DEPTH:
            raise CorruptCheckpointError(f"{where}: its groups are nested more than {MAX_DEPTH} deep")
        for name in group:
            objects += 1
            inside = f"{path}/{name}" if path else name
            link = group.get(name, getclass=True, getlink=True)
            if link is not h5py.HardLink:
                raise CorruptCheckpointError(
                    f"{where}: {inside} is a {link.__name__}, which can point outside the file; Keras never writes one"
                )
            obj = group[name]
            if isinstance(obj, h5py.Group):
                address = h5py.h5o.get_info(obj.id).addr
                if address in seen:
                    raise CorruptCheckpointError(f"{where}: {inside} is a group with a second path")
                seen.add(address)
                waiting.append((obj, inside, depth + 1))
            elif isinstance(obj, h5py.Dataset):
                _check_attributes(obj, inside, where, size_bytes)
                found.append(_check_dataset(obj, inside, where, size_bytes))
                total += found[-1].size_bytes
            else:
                raise CorruptCheckpointError(f"{where}: {inside} is neither a group nor a dataset")
        if objects > MAX_OBJECTS or total > budget.unpacked_bytes(size_bytes):
            raise CorruptCheckpointError(
                f"{where}: its {objects:,} datasets and groups take {total:,} bytes, in a file of {size_bytes:,}. If "
                f"it is what it should be, {budget.MEMORY_VARIABLE} in the environment allows more bytes"
            )
    return found


def touch(file: h5py.File, where: str, size_bytes: int) -> int:
    """Reads all of a file that HDF5 has to make sense of: attributes, texts, what is in chunks. Returns the bytes that
    all values take."""
    every = check_file(file, where, size_bytes)
    for stored in every:
        dataset = file[stored.path]
        _read_attributes(dataset)
        if stored.dtype == "string" or dataset.chunks is not None:
            dataset[()]
    waiting: list[h5py.Group] = [file]
    while waiting:
        group = waiting.pop()
        _read_attributes(group)
        waiting += [each for each in group.values() if isinstance(each, h5py.Group)]
    return sum(each.size_bytes for each in every)


def _read_attributes(obj: Any) -> None:
    for name in obj.attrs:
        obj.attrs[name]


def _check_attributes(obj: Any, path: str, where: str, size_bytes: int) -> None:
    for name in obj.attrs:
        attribute = obj.attrs.get_id(name)
        if math.prod(attribute.shape or ()) * attribute.dtype.itemsize > size_bytes:
            raise CorruptCheckpointError(
                f"{where}: the attribute {name!r} of {path or 'the root'} is longer than the file"
            )


def _check_dataset(dataset: h5py.Dataset, path: str, where: str, size_bytes: int) -> Stored:
    if dataset.external or dataset.is_virtual:
        raise CorruptCheckpointError(f"{where}: the values of {path} are in another file; Keras never writes this")
    properties = dataset.id.get_create_plist()
    filters = {properties.get_filter(index)[0] for index in range(properties.get_nfilters())}
    if not filters <= _FILTERS:
        raise CorruptCheckpointError(f"{where}: {path} is packed by a plug-in (filter {max(filters - _FILTERS)})")
    if dataset.shape is None:
        raise CorruptCheckpointError(f"{where}: {path} has no shape")
    stored = Stored(path, dtype_of(dataset, path, where), tuple(dataset.shape))
    on_disk = dataset.id.get_storage_size()
    if stored.size_bytes > budget.unpacked_bytes(size_bytes):
        raise CorruptCheckpointError(
            f"{where}: {path} asks for {stored.size_bytes:,} bytes of memory and stores {on_disk:,}. If it is what it "
            f"should be, {budget.MEMORY_VARIABLE} in the environment allows more bytes"
        )
    return stored


def dtype_of(dataset: h5py.Dataset, path: str, where: str) -> str:
    """TensorFlow's name of what a dataset holds."""
    dtype = dataset.dtype
    if h5py.check_string_dtype(dtype) is not None:
        return "string"
    named = _attribute(dataset, "dtype")
    if dtype.kind == "V" and named == "bfloat16" and dtype.itemsize == 2:  # as Keras 3 marks it
        return "bfloat16"
    if dtype.kind in "biufc" and dtype.name in dtypes.names():
        return str(dtype.name)
    raise CorruptCheckpointError(f"{where}: {path} has the dtype {str(dtype)[:80]}, which is not a dtype of a variable")


def narrowing(name: str, there: str, wanted: str) -> str | None:
    """How a value of one dtype does not fit a variable of another one, in words; None where no value is changed."""
    if there == wanted or wanted in _WIDER.get(there, ()):
        return None
    return f"{name}: dtype {there} in the file, {wanted} in the model"


def read_array(dataset: h5py.Dataset, stored: Stored) -> Array:
    """A dataset's values: of the dtype that `stored` says, strings as objects of bytes."""
    values = np.asarray(dataset[()])
    if stored.dtype == "string":
        encoded = [each if isinstance(each, bytes) else str(each).encode() for each in values.reshape(-1).tolist()]
        array = np.empty(len(encoded), object)
        array[:] = encoded
        return array.reshape(stored.shape)
    wanted = dtypes.numpy_dtype(stored.dtype)
    return values.view(wanted) if values.dtype.kind == "V" else values.astype(wanted, copy=False)


def text_of(obj: Any, name: str) -> str | None:
    """A text attribute, or None; an array's only element, too. Its length is known by `check_file`."""
    value = _attribute(obj, name)
    return value if isinstance(value, str) else None


def _attribute(obj: Any, name: str) -> Any:
    if name not in obj.attrs:
        return None
    value = obj.attrs[name]
    return value.decode() if isinstance(value, bytes) else value


def texts_of(group: Any, name: str) -> list[str]:
    """A list of texts as Keras keeps it: in one attribute, or, where that would be too long, in several."""
    parts = [name] if name in group.attrs else [f"{name}{number}" for number in range(len(group.attrs))]
    parts = [part for part in parts if part in group.attrs]
    values = [each for part in parts for each in np.asarray(group.attrs[part]).reshape(-1).tolist()]
    return [each.decode() if isinstance(each, bytes) else str(each) for each in values]


def json_of(text: str | bytes | None, what: str, where: str) -> dict[str, Any]:
    """A JSON object. Raises `CorruptCheckpointError` for anything else."""
    if text is None:
        raise CorruptCheckpointError(f"{where} has no {what}")
    if len(text) > MAX_JSON_BYTES:
        raise CorruptCheckpointError(f"{where}: its {what} is longer than {MAX_JSON_BYTES:,} bytes")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{where}: its {what} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptCheckpointError(f"{where}: its {what} is not a JSON object")
    return value


# Members of an archive


@contextlib.contextmanager
def member(archive: zipfile.ZipFile, name: str, where: str) -> Iterator[BinaryIO]:
    """A member as a file that can be read anywhere in: as it lies in the archive, or unpacked to a temporary file.

    The archive has passed `archives.check_zip`. Raises `CorruptCheckpointError` where it has no such member, or one for
    which Keras, which reads it whole, would take far more memory than is in proportion to the archive.
    """
    with contextlib.ExitStack() as stack:
        with damage(where):
            information = archive.getinfo(name)
            _check_fits(archive, information)
            if information.compress_type == zipfile.ZIP_STORED and archive.fp is not None:
                archive.fp.seek(information.header_offset)
                lengths = struct.unpack("<2H", archive.fp.read(_LOCAL_HEADER_BYTES)[-4:])
                start = information.header_offset + _LOCAL_HEADER_BYTES + sum(lengths)
                file: Any = _part(archive.fp, start, information.file_size)
            else:
                file = stack.enter_context(tempfile.TemporaryFile())
                with archive.open(information) as source:
                    shutil.copyfileobj(source, file, 2**20)
                file.seek(0)
        yield file


def _check_fits(archive: zipfile.ZipFile, information: zipfile.ZipInfo) -> None:
    packed_bytes = os.fstat(archive.fp.fileno()).st_size if archive.fp is not None else 0
    most = budget.unpacked_bytes(packed_bytes)
    if information.file_size > most:
        raise ValueError(
            f"its {information.filename} unpacks to {information.file_size:,} bytes, more than {most:,}; "
            f"{budget.MEMORY_VARIABLE} allows more"
        )


def check_assets(archive: zipfile.ZipFile, where: str, other_bytes: int = 0) -> None:
    """Raises `CorruptCheckpointError` where the assets of a `.keras`, words which are objects in memory, take
    far more of it than is in proportion to the archive, beside `other_bytes` of weights. Reads them in parts."""
    packed_bytes = os.fstat(archive.fp.fileno()).st_size if archive.fp is not None else 0
    most, total = budget.unpacked_bytes(packed_bytes), other_bytes
    with damage(where):
        for information in archive.infolist():
            if not information.filename.startswith(ASSETS):
                continue
            with archive.open(information) as file:
                while total <= most and (data := file.read(2**20)):
                    total += len(data) + _WORD_BYTES * sum(data.count(each) for each in _ENDS_OF_LINES)
    if total > most:
        raise CorruptCheckpointError(
            f"{where}: its {ASSETS} and weights take more than {most:,} bytes of memory, the file {packed_bytes:,}. "
            f"If the file is trusted, {budget.MEMORY_VARIABLE} in the environment allows more bytes"
        )


def _part(file: IO[bytes], start: int, size_bytes: int) -> BinaryIO:
    """A part of a file as a file of its own."""

    def read_into(view: memoryview, offset: int) -> int:
        file.seek(start + offset)
        data = file.read(len(view))
        view[: len(data)] = data
        return len(data)

    return io.BufferedReader(RangeFile(size_bytes, read_into))


# What is ours in it


def write_provenance(path: str, text: str) -> None:
    """Puts the provenance into a finished file, as an attribute of its root."""
    with h5py.File(path, "r+") as file:
        file.attrs[NAME] = text  # of variable length: such attributes have no limit of 64 KiB


def read_provenance(file: h5py.File, where: str) -> Provenance | None:
    """The provenance of a file, or None. Raises `CorruptCheckpointError`."""
    if NAME not in file.attrs:
        return None
    attribute = file.attrs.get_id(NAME)
    text = _attribute(file, NAME) if not attribute.shape and attribute.dtype.itemsize <= MAX_BYTES else None
    if not isinstance(text, str):
        raise CorruptCheckpointError(f"{where}: its provenance is not a string")
    return decode(text, where)


# Weights without a model


def named_tensors(
    where: str, stored: list[Stored], open_file: Callable[[], Any], renamed: Mapping[str, str] | None = None
) -> NamedTensors:
    """The datasets of a weights file by name. The name is the path in the file, as HDF5 has it, without what only Keras
    needs: the group `vars` that the variables of each object lie in (`layers/dense/0`, `optimizer/3`); in files of the
    legacy format the root `model_weights`, the layer's name where the variable's begins with it, and `:0` at its end
    (`dense/kernel`). Where two would be the same, both keep their path. `renamed` are better names, by path.
    """
    short = {each.path: (renamed or {}).get(each.path) or _short_name(each.path) for each in stored}
    taken: dict[str, int] = {}
    for name in short.values():
        taken[name] = taken.get(name, 0) + 1
    places = {(name if taken[name] == 1 and name else path): path for path, name in short.items()}
    by_path = {each.path: each for each in stored}

    def read(name: str) -> Array:
        each = by_path[places[name]]
        with open_file() as file, damage(f"{where}: {each.path}"):
            return read_array(file[each.path], each)

    return NamedTensors(
        {name: TensorInfo(by_path[path].dtype, by_path[path].shape) for name, path in places.items()}, read
    )


def _short_name(path: str) -> str:
    parts = path.split("/")
    if len(parts) >= 2 and parts[-2] == _VARIABLES:
        return "/".join([*parts[:-2], parts[-1]])
    if parts[0] == "model_weights":
        parts = parts[1:]
    elif parts[0] == "optimizer_weights":
        parts[0] = "optimizer"
    if len(parts) > 2 and (parts[0] == parts[1] or parts[0] == "top_level_model_weights"):
        parts = parts[1:]
    return "/".join(parts).removesuffix(":0")
