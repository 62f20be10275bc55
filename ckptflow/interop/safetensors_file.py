"""All tensors of a checkpoint in one safetensors file, and any safetensors file as named tensors. No TensorFlow.

Beside `ckptflow`, the provenance, a file's metadata has `ckptflow.checkpoint`: JSON of what a checkpoint holds and
safetensors does not, from which an import makes the whole checkpoint again. Of a dtype that safetensors has no name for
the bytes are there under another one, as in a shard; strings are one sequence of bytes (`format.dtypes`).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec
from msgspec import field

from ckptflow.decoding import decode_json, is_flat
from ckptflow.errors import CorruptCheckpointError, UnsupportedStateError
from ckptflow.format import boxes, dtypes
from ckptflow.format.dtypes import Array
from ckptflow.format.layout import own_name
from ckptflow.format.manifest import MAX_CONTAINERS, Manifest, TensorRecord
from ckptflow.format.object_graph import ObjectGraph, check_graph
from ckptflow.format.record import Record, Shape, ShortText, TensorName
from ckptflow.format.shard import (
    MAX_HEADER_BYTES,
    FileEntry,
    HeaderEntry,
    ShardLayout,
    header_size_bytes,
    layout_file,
    parse_file,
)
from ckptflow.format.spec import Bytes1D, Wanted
from ckptflow.format.values import from_json
from ckptflow.interop import provenance as origin
from ckptflow.interop.provenance import Provenance
from ckptflow.interop.tensors import NamedTensors, TensorInfo, bytes_of
from ckptflow.reading import OpenCheckpoint
from ckptflow.storage.faults import os_errors
from ckptflow.storage.positional import read_at, write_at
from ckptflow.transfer.buffers import memory_for

if TYPE_CHECKING:
    from ckptflow.interop.sources import Source

CARRIED = "ckptflow.checkpoint"
_METADATA = "__metadata__"  # a key that no tensor can have
_PREFIX_BYTES = 8
# What others' files hold and no checkpoint does: bits of an element.
_OTHER_BITS = {"F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}
# A dtype by the name that safetensors has for it and for no other.
_OWN_NAMES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32",
              "float64", "complex64", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz",
              "float8_e5m2fnuz")  # fmt: skip
_DTYPES = {dtypes.safetensors_name(name): name for name in _OWN_NAMES}


class _Disguised(Record, frozen=True, kw_only=True):
    """A tensor that the header names by another dtype or shape than it has."""

    dtype: ShortText
    shape: Shape


class _Carried(Record, frozen=True, kw_only=True):
    """What of a checkpoint the header has no place for. `names`: a tensor's name, where its key is another one."""

    version: int = 1
    disguised: dict[str, _Disguised] = field(default_factory=dict)
    names: dict[str, TensorName] = field(default_factory=dict)
    aliases: dict[str, tuple[TensorName, ...]] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    per_worker: tuple[TensorName, ...] = ()
    python_state: dict[str, Any] = field(default_factory=dict)
    models: dict[str, Any] = field(default_factory=dict)
    object_graph: ObjectGraph | None = None


# Writing


@dataclass(frozen=True, slots=True)
class _Item:
    """One tensor on its way into the file: how it counts in the manifest, its key, and the shape of its value."""

    index: int
    key: str
    record: TensorRecord
    shape: tuple[int, ...]

    @property
    def entry(self) -> FileEntry:
        dtype = self.record.dtype
        if self.record.encoded_bytes is not None:
            return FileEntry(self.key, "U8", (self.record.encoded_bytes,), self.record.encoded_bytes)
        size_bytes = boxes.volume(self.shape) * dtypes.item_size_bytes(dtype)
        return FileEntry(
            self.key, dtypes.safetensors_name(dtype), dtypes.safetensors_shape(dtype, self.shape), size_bytes
        )


def write_safetensors(path: str, opened: OpenCheckpoint, provenance: Provenance) -> tuple[str, ...]:
    """Writes every tensor of a checkpoint into the new file `path`; returns the names of what is left out.

    Each slice is read, checked against its checksum and written in its place: memory holds the staging buffers and a
    few slices, whatever the checkpoint's size. A variable that workers kept each for themselves is in it as it is
    restored: their sum, their mean, or the first. Left out is only what several workers had each as its own
    (`PerWorker`), and, where the header would become longer than safetensors allows, first the object graph and then
    the models' descriptions.

    Raises `CorruptCheckpointError`, `CheckpointGoneError`; `UnsupportedStateError` where there are too many tensors for
    one header; `StorageError`. After an error there is no file.
    """
    items, left_out = _items(opened.manifest)
    layout, lost = _layout(items, opened.manifest, provenance, path)
    with os_errors("write", path):
        with open(path, "xb", buffering=0) as file:
            try:
                os.truncate(file.fileno(), layout.size_bytes)
                target = _FileTarget(file.fileno(), items, layout)
                write_at(file.fileno(), memoryview(layout.header), 0)
                opened.read_into([wanted for item in items for wanted in _slices(item)], target)
                for item, offset in zip(items, layout.offsets, strict=True):
                    if item.record.components:
                        write_at(file.fileno(), bytes_of(opened[item.record.name]).data, offset)
            except BaseException:
                os.unlink(path)
                raise
    return left_out + lost


def _items(manifest: Manifest) -> tuple[list[_Item], tuple[str, ...]]:
    """What goes into the file, and the names of what does not."""
    others = _anothers(manifest)
    names = {tensor.name for tensor in manifest.tensors}
    items, left_out = [], [name for name in manifest.python_state if name.startswith(others)]
    for index, record in enumerate(manifest.tensors):
        if record.name.startswith(others):
            left_out.append(record.name)
            continue
        shape = record.shape[1:] if record.components else record.shape
        items.append(_Item(index, _free_key(names) if record.name == _METADATA else record.name, record, shape))
    return items, tuple(sorted(left_out))


def _anothers(manifest: Manifest) -> tuple[str, ...]:
    """How names begin of what several workers had each for itself; where there was one worker, it is the run's."""
    return () if manifest.world_size == 1 else tuple(own_name(entry, 0)[:-1] for entry in manifest.per_worker)


def _free_key(names: Iterable[str]) -> str:
    taken = set(names)
    return next(key for key in (f"{_METADATA}{n}" for n in itertools.count(1)) if key not in taken)


def _layout(
    items: Sequence[_Item], manifest: Manifest, provenance: Provenance, where: str
) -> tuple[ShardLayout, tuple[str, ...]]:
    """The file's layout with as much of the checkpoint in its metadata as the header holds, and what is lost."""
    carried = _carry(items, manifest)
    steps: tuple[dict[str, Any], ...] = ({}, {"object_graph": None}, {"object_graph": None, "models": {}})
    for without in steps:
        kept = msgspec.structs.replace(carried, **without)
        text = msgspec.json.encode(kept)
        metadata = {"format": "tf", origin.NAME: origin.encode(provenance), CARRIED: text.decode()}
        layout = layout_file([item.entry for item in items], metadata)
        if len(layout.header) <= MAX_HEADER_BYTES and _is_flat(text):
            lost = (name for name in ("object_graph", "models") if getattr(manifest, name) and not getattr(kept, name))
            return layout, tuple(lost)
    raise UnsupportedStateError(
        f"{where}: {len(items):,} tensors, with the Python state, need a header of {len(layout.header):,} bytes, and "
        f"safetensors allows {MAX_HEADER_BYTES:,}: the format tf-checkpoint has no such limit"
    )


def _carry(items: Sequence[_Item], manifest: Manifest) -> _Carried:
    others = _anothers(manifest)
    return _Carried(
        disguised={
            item.key: _Disguised(dtype=item.record.dtype, shape=item.shape)
            for item in items
            if _DTYPES.get(item.entry.dtype) != item.record.dtype or item.entry.shape != item.shape
        },
        names={item.key: item.record.name for item in items if item.key != item.record.name},
        aliases={item.record.name: item.record.aliases for item in items if item.record.aliases},
        metrics=tuple(item.record.name for item in items if item.record.metric),
        per_worker=() if others else manifest.per_worker,
        python_state={
            name: value for name, value in manifest.python_state.items() if not others or not name.startswith(others)
        },
        models=manifest.models,
        object_graph=_graph(manifest.object_graph, items),
    )


def _graph(graph: ObjectGraph | None, items: Sequence[_Item]) -> ObjectGraph | None:
    """The object graph, unless it speaks of a tensor that is left out."""
    if graph is not None:
        try:
            check_graph(graph, {item.record.name for item in items})
        except ValueError:
            return None
    return graph


def _is_flat(text: bytes) -> bool:
    """Whether the lists and objects in it are few enough to be read back, by a manifest's rule."""
    return is_flat(text, len(text), MAX_CONTAINERS)


def _slices(item: _Item) -> Iterator[Wanted]:
    """The slices of a tensor, each as a box of it; none of one whose components are brought together."""
    if not item.record.components:
        for piece in item.record.slices:
            yield Wanted(item.index, (piece.start, piece.shape))


class _FileTarget:
    """Takes boxes of tensors, and writes each to its place in the file."""

    def __init__(self, descriptor: int, items: Sequence[_Item], layout: ShardLayout) -> None:
        self._descriptor = descriptor
        self._places = {item.index: (item.record, at) for item, at in zip(items, layout.offsets, strict=True)}
        self._open: dict[Wanted, Bytes1D] = {}
        self._spare: list[Bytes1D] = []

    def open(self, wanted: Wanted) -> Bytes1D:
        record, _ = self._places[wanted.tensor]
        extents = record.storage_shape if wanted.box is None else wanted.box[1]
        size = boxes.volume(extents) * dtypes.item_size_bytes(record.dtype)
        memory = self._spare.pop() if self._spare else memory_for(f"tensor {record.name!r}", size)
        if memory.size < size:  # grown, but not beyond the largest slice
            memory = memory_for(f"tensor {record.name!r}", size)
        self._open[wanted] = memory
        return memory[:size]

    def finish(self, wanted: Wanted) -> None:
        record, offset = self._places[wanted.tensor]
        memory = self._open.pop(wanted)
        item = dtypes.item_size_bytes(record.dtype)
        box = wanted.box or boxes.whole(record.storage_shape)
        for there, here, count in boxes.spans(record.storage_shape, box):
            write_at(self._descriptor, memory.data[here * item : (here + count) * item], offset + there * item)
        self._spare.append(memory)


# Reading


def read_source(found: Source, **how: Any) -> NamedTensors:
    """What a safetensors file holds, as the table of formats asks for it."""
    return read_safetensors(found.path)


def read_safetensors(path: str) -> NamedTensors:
    """The tensors of any safetensors file on this disk, each read from it when it is asked for.

    Of a file that `write_safetensors` wrote also what belongs to them: names, aliases, Python state, models, the object
    graph. `left_out` names tensors of dtypes that TensorFlow has not. Raises `CorruptCheckpointError` unless the header
    is right in every part and the file as long as it says, now and when a tensor is read; `ObjectNotFoundError`,
    `StorageError`.
    """
    with os_errors("read", path), open(path, "rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        entries, metadata = read_header(file, path)
    try:
        return _named(path, size_bytes, entries, metadata)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        if isinstance(error, CorruptCheckpointError):
            raise
        raise CorruptCheckpointError(f"{path}: its {CARRIED!r} cannot be read: {error}") from error


def read_provenance(file: BinaryIO, where: str) -> Provenance | None:
    """Which checkpoint a safetensors file holds; None for others' files. Reads its header. `where` names it in errors.

    Raises `CorruptCheckpointError` where it is no safetensors file.
    """
    _, metadata = read_header(file, where)
    text = metadata.get(origin.NAME)
    return None if text is None else origin.decode(text, where)


def read_header(file: BinaryIO, where: str) -> tuple[tuple[HeaderEntry, ...], dict[str, str]]:
    """What a safetensors file has, and its metadata. Raises `CorruptCheckpointError` unless all of it is right."""
    size_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        prefix = file.read(_PREFIX_BYTES)
        head = prefix + file.read(header_size_bytes(prefix, size_bytes) - _PREFIX_BYTES)
        return parse_file(head, size_bytes, _OTHER_BITS)
    except ValueError as error:
        raise CorruptCheckpointError(f"{where} is not a safetensors file, or is damaged: {error}") from error


def _named(path: str, size_bytes: int, entries: Sequence[HeaderEntry], metadata: Mapping[str, str]) -> NamedTensors:
    text = metadata.get(CARRIED, "{}").encode()
    if not _is_flat(text):
        raise ValueError("it has too many lists and objects for its size")
    carried = decode_json(text, _Carried)
    if carried.version != 1:
        raise ValueError(f"version {carried.version} is not known to this ckptflow; upgrade it")
    infos: dict[str, TensorInfo] = {}
    places: dict[str, HeaderEntry] = {}
    for entry in entries:
        name = carried.names.get(entry.key, entry.key)
        info = _info(entry, carried.disguised.get(entry.key))
        if name in places:
            raise ValueError(f"two tensors are called {name!r}")
        places[name] = entry
        if info is not None:
            infos[name] = info
    for name, value in carried.python_state.items():
        from_json(value, f"{path}: {name}")
    if carried.object_graph is not None:
        check_graph(carried.object_graph, set(infos))
    return NamedTensors(
        infos=infos,
        read=lambda name: _read(path, size_bytes, places[name], infos[name]),
        read_part=lambda name, begin, end: _read_bytes(path, size_bytes, places[name], infos[name], begin, end),
        aliases={name: names for name, names in carried.aliases.items() if name in infos},
        metrics=frozenset(carried.metrics) & infos.keys(),
        per_worker=carried.per_worker,
        python_state=carried.python_state,
        models=carried.models,
        object_graph=carried.object_graph,
        left_out=tuple(sorted(places.keys() - infos.keys())),
    )


def _info(entry: HeaderEntry, disguised: _Disguised | None) -> TensorInfo | None:
    """What a tensor is; None where no checkpoint holds such a thing. Raises ValueError where its two names differ."""
    if disguised is None:
        dtype = _DTYPES.get(entry.dtype)
        return None if dtype is None else TensorInfo(dtype, entry.shape)
    dtype, shape = disguised.dtype, disguised.shape
    under = dtypes.safetensors_name(dtype), dtypes.safetensors_shape(dtype, shape)
    if dtypes.is_encoded(dtype):
        under = under[0], entry.shape if len(entry.shape) == 1 else ()
    if under != (entry.dtype, entry.shape):
        raise ValueError(f"{entry.key!r} cannot be {dtype} of shape {list(shape)}")
    return TensorInfo(dtype, shape)


def _read(path: str, size_bytes: int, entry: HeaderEntry, info: TensorInfo) -> Array:
    data = _read_bytes(path, size_bytes, entry, info, 0, entry.end - entry.begin)
    if dtypes.is_encoded(info.dtype):
        try:
            return dtypes.decode_strings(data, info.shape)
        except ValueError as error:
            raise CorruptCheckpointError(f"{path}: {entry.key!r}: {error}") from error
    return data.view(dtypes.numpy_dtype(info.dtype)).reshape(info.shape)


def _read_bytes(path: str, size_bytes: int, entry: HeaderEntry, info: TensorInfo, begin: int, end: int) -> Bytes1D:
    data = memory_for(f"{path}: tensor {entry.key!r:.200}", end - begin)
    with os_errors("read", path), open(path, "rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size != size_bytes:
            raise CorruptCheckpointError(f"{path} has changed since it was opened")
        if read_at(file.fileno(), data.data, entry.begin + begin) < data.size:
            raise CorruptCheckpointError(f"{path} ends within {entry.key!r}")
    if info.dtype == "bool" and data.size and data.max() > 1:
        raise CorruptCheckpointError(f"{path}: {entry.key!r} has bytes that are not a bool")
    return data
