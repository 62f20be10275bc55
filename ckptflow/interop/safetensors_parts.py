"""Tensors in several safetensors files and an index of them, as Hugging Face's libraries save large models, made one
file that the reader here knows. No TensorFlow."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, BinaryIO

import msgspec

from ckptflow.errors import CorruptCheckpointError, UnsupportedStateError, UsageError
from ckptflow.format.shard import MAX_HEADER_BYTES, FileEntry, HeaderEntry, layout_file
from ckptflow.interop.safetensors_file import CARRIED, read_header
from ckptflow.interop.untrusted.indexes import read_index
from ckptflow.interop.untrusted.private_copy import check_filled, measured_bytes, open_regular
from ckptflow.places.files import fetched
from ckptflow.places.names import in_folder, listed
from ckptflow.places.room import ensure_room
from ckptflow.storage.faults import os_errors
from ckptflow.storage.positional import write_at
from ckptflow.storage.redaction import redact_url

INDEX_SUFFIX = ".safetensors.index.json"
_PART = re.compile(r"(?P<base>.+)-\d{5,}-of-(?P<count>\d{5,})\.safetensors", re.DOTALL)
_COPY_BYTES = 2**20

ShardAt = Callable[[str], AbstractContextManager[str]]


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def as_one_file(
    local: str, place: str, folder: str, source_options: dict[str, Any] | None, *, is_compared: bool
) -> str:
    """What several safetensors files hold as one of them in `folder`; the path as it is where it is one.

    `place` is the folder or URL where it came from. Raises `UsageError` for one of several files, which is a part, and
    for a folder without an index, or with more than one.
    """

    def beside(name: str) -> AbstractContextManager[str]:
        path = os.path.join(os.path.dirname(index), name)
        return nullcontext(path) if os.path.isfile(path) else fetched(in_folder(place, name), source_options)

    part = _PART.fullmatch(os.path.basename(local))
    if part is not None and int(part["count"]) > 1:
        where = redact_url(in_folder(place, os.path.basename(local)))
        index = os.path.basename(part["base"]) + INDEX_SUFFIX
        raise UsageError(f"{where} has a part of the tensors of {index}: name that file, with all parts next to it")
    index = _index_in(local, place) if os.path.isdir(local) else local
    if not index.endswith(INDEX_SUFFIX):
        return local
    target = os.path.join(folder, "whole.safetensors")
    _merge(index, target, beside)
    return target


def _index_in(folder: str, place: str) -> str:
    names = [name for name in listed(folder) if name.endswith(INDEX_SUFFIX)]
    if len(names) != 1:
        raise UsageError(
            f"{redact_url(place)} is a folder with {len(names)} files *{INDEX_SUFFIX}: name one, or a .safetensors file"
        )
    return os.path.join(folder, names[0])


def _merge(index: str, target: str, shard_at: ShardAt) -> None:
    """Writes all tensors as one file, in parts. Raises `CorruptCheckpointError` where a shard has not what the index
    says of it, or more."""
    entries: list[HeaderEntry] = []
    measured = []
    shards = _shards_of(index)
    for name, expected in shards.items():
        with shard_at(name) as path, os_errors("read", path), open_regular(path) as file:
            measured.append(measured_bytes(file))
            entries += _header_of(file, path, expected, index)
    check_filled(measured, index)
    layout = layout_file([FileEntry(each.key, each.dtype, each.shape, each.end - each.begin) for each in entries], {})
    if len(layout.header) > MAX_HEADER_BYTES:
        raise UnsupportedStateError(f"{index} names more tensors than the header of one safetensors file can")
    places = {entry.key: offset for entry, offset in zip(entries, layout.offsets, strict=True)}
    ensure_room(os.path.dirname(target), layout.size_bytes)
    with os_errors("write", target), open(target, "xb", buffering=0) as out:
        write_at(out.fileno(), memoryview(layout.header), 0)
        for name, expected in shards.items():
            with shard_at(name) as path, os_errors("read", path), open_regular(path) as file:
                for entry in _header_of(file, path, expected, index):
                    _copy(file, path, entry, out.fileno(), places[entry.key])


def _header_of(file: BinaryIO, path: str, expected: set[str], index: str) -> tuple[HeaderEntry, ...]:
    entries, metadata = read_header(file, path)
    if CARRIED in metadata:
        raise UnsupportedStateError(f"{path} is a complete ckptflow checkpoint, not a part of {index}")
    differing = sorted({entry.key for entry in entries} ^ expected)
    if differing:
        what = "is not in it, where it should be" if differing[0] in expected else "is in it, where it should not be"
        raise CorruptCheckpointError(f"{path}: {differing[0]!r:.200} {what} by {index}")
    return entries


def _copy(file: BinaryIO, path: str, entry: HeaderEntry, target: int, at: int) -> None:
    file.seek(entry.begin)
    left = entry.end - entry.begin
    while left:
        data = file.read(min(left, _COPY_BYTES))
        if not data:
            raise CorruptCheckpointError(f"{path} ends within {entry.key!r:.200}")
        write_at(target, memoryview(data), at)
        at, left = at + len(data), left - len(data)


def _shards_of(index: str) -> dict[str, set[str]]:
    """Which tensors each file has, by the names of the files."""
    found = read_index(index, _Index, MAX_HEADER_BYTES, "index of safetensors files").weight_map
    shards: dict[str, set[str]] = {}
    for tensor, name in found.items():
        if name != os.path.basename(name) or not name.endswith(".safetensors"):
            raise CorruptCheckpointError(f"{index}: for {tensor!r:.100} it names {name!r:.200}, not a file next to it")
        shards.setdefault(name, set()).add(tensor)
    if not shards:
        raise CorruptCheckpointError(f"{index} names no tensors")
    return shards
