"""Writing the format `tf-checkpoint`: part by part, each by TensorFlow's own writer, then all as one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from ckptflow.errors import CorruptCheckpointError, StorageError, StorageFullError
from ckptflow.format import dtypes
from ckptflow.format.boxes import Box, volume
from ckptflow.format.object_graph import Zeros, tensor_of
from ckptflow.format.spec import Bytes1D, Wanted
from ckptflow.interop import provenance as provenances
from ckptflow.interop.provenance import Provenance
from ckptflow.interop.tensorflow.bundle import GRAPH_KEY
from ckptflow.interop.tensorflow.object_graph_proto import to_proto
from ckptflow.places.room import FULL_ERRNOS
from ckptflow.reading import OpenCheckpoint, to_array
from ckptflow.state.graph import graph_of_names
from ckptflow.state.leaves import Landing
from ckptflow.transfer.buffers import memory_for

PART_BYTES = 256 * 2**20  # one data file, and what is held of a checkpoint at a time


def write_tf_checkpoint(prefix: str, opened: OpenCheckpoint, provenance: Provenance) -> tuple[str, ...]:
    """Writes `PREFIX.index` and `PREFIX.data-…`: what `tf.train.Checkpoint(**state).restore(prefix)` takes.

    Returns the names of tensors that are left out, because TensorFlow's object graph has no place for them. Streams: at
    most `PART_BYTES` and a few tensors are held, and a tensor larger than that goes slice by slice. Raises
    `CorruptCheckpointError` for a damaged checkpoint, `StorageError` where the disk refuses.
    """
    manifest = opened.manifest
    graph = manifest.object_graph or graph_of_names(tensor.name for tensor in manifest.tensors)
    try:
        proto, keys = to_proto(graph)
    except ValueError as error:
        raise CorruptCheckpointError(f"{opened.checkpoint.url}: {error}") from error
    places: dict[str, list[tuple[str, str]]] = {}
    folder = os.path.dirname(prefix) or "."
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".ckptflow-parts-", dir=folder, ignore_cleanup_errors=True) as parts_folder:
        parts = _Parts(os.path.join(parts_folder, "part"), opened, places)
        for key, (attribute, _, value) in keys.items():
            name = tensor_of(value)
            if name is not None:
                places.setdefault(name, []).append((key, attribute))
            elif isinstance(value, Zeros):
                parts.add(key, _zeros(value, opened.checkpoint.url))
        opened.read_into(parts.wanted(), parts)
        parts.add(GRAPH_KEY, tf.constant(proto.SerializeToString()))
        parts.add(provenances.NAME, tf.constant(provenances.encode(provenance)))
        parts.merge_into(prefix)
    return tuple(tensor.name for tensor in manifest.tensors if tensor.name not in places)


def _zeros(value: Zeros, url: str) -> Any:
    try:
        return tf.zeros(value.shape, value.dtype)
    except (tf.errors.OpError, TypeError, ValueError) as error:
        raise CorruptCheckpointError(f"{url}: its object graph wants zeros of {value.dtype}") from error


class _Parts:
    """Tensors on their way into files, as many at a time as `PART_BYTES` hold; implements `format.spec.Target`."""

    def __init__(self, prefix: str, opened: OpenCheckpoint, places: Mapping[str, list[tuple[str, str]]]) -> None:
        self._prefix = prefix
        self._tensors = opened.manifest.tensors
        self._url = opened.checkpoint.url
        self._places = places
        self._landings: dict[Wanted, Landing | Bytes1D] = {}
        self._held: list[tuple[str, str, Any]] = []
        self._held_bytes = 0
        self._written: list[str] = []

    def wanted(self) -> list[Wanted]:
        """Everything that has a place: whole, or a slice at a time where it is large."""
        found = []
        for index, tensor in enumerate(self._tensors):
            if tensor.name in self._places:
                is_cut = self._is_plain(index) and tensor.size_bytes > PART_BYTES
                boxes: list[Box | None] = [(piece.start, piece.shape) for piece in tensor.slices] if is_cut else [None]
                found += [Wanted(index, box) for box in boxes]
        return found

    def _is_plain(self, index: int) -> bool:
        return self._tensors[index].encoded_bytes is None and self._tensors[index].components is None

    def open(self, wanted: Wanted) -> Bytes1D:
        tensor = self._tensors[wanted.tensor]
        if not self._is_plain(wanted.tensor):
            memory = self._landings[wanted] = memory_for(f"tensor {tensor.name!r}", tensor.size_bytes)
            return memory
        shape = tensor.shape if wanted.box is None else wanted.box[1]
        size_bytes = volume(shape) * dtypes.item_size_bytes(tensor.dtype)
        landing = self._landings[wanted] = Landing(tensor.dtype, shape, size_bytes)
        return landing.bytes

    def finish(self, wanted: Wanted) -> None:
        tensor, landing = self._tensors[wanted.tensor], self._landings.pop(wanted)
        if isinstance(landing, Landing):
            value = landing.take()
        else:
            array = to_array(tensor, landing)
            with tf.device("CPU:0"):
                value = tf.convert_to_tensor(array) if array.size else tf.zeros(array.shape, tensor.dtype)
        box = "" if wanted.box is None else _box_text(tensor.shape, wanted.box)
        for key, attribute in self._places[tensor.name]:
            is_position = attribute == "ITERATOR" and value.dtype == tf.string
            self.add(key, self._iterator_state(value, tensor.name) if is_position else value, box)

    def _iterator_state(self, value: Any, name: str) -> Any:
        try:
            return tf.io.parse_tensor(value, tf.variant)
        except tf.errors.OpError as error:
            raise CorruptCheckpointError(f"{self._url}: {name!r} is not the position of an iterator") from error

    def add(self, key: str, value: Any, box: str = "") -> None:
        """One more tensor, or slice of one."""
        self._held.append((key, box, value))
        self._held_bytes += value.shape.num_elements() * (value.dtype.size or 1)
        if self._held_bytes >= PART_BYTES:
            self._write()

    def _write(self) -> None:
        if self._held:
            prefix = f"{self._prefix}-{len(self._written):05d}"
            keys, boxes, tensors = zip(*self._held, strict=True)
            with storage_errors(prefix), tf.device("CPU:0"):
                tf.raw_ops.SaveV2(prefix=prefix, tensor_names=keys, shape_and_slices=boxes, tensors=list(tensors))
            self._written.append(prefix)
        self._held, self._held_bytes = [], 0

    def merge_into(self, prefix: str) -> None:
        """Makes one checkpoint of all parts: their data files are renamed, the index is written last."""
        self._write()
        with storage_errors(prefix), tf.device("CPU:0"):
            tf.raw_ops.MergeV2Checkpoints(
                checkpoint_prefixes=self._written, destination_prefix=prefix, delete_old_dirs=False
            )


class storage_errors:  # noqa: N801 - reads as a statement
    """TensorFlow's errors of files as ours."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, tf.errors.OpError):
            words = (os.strerror(code) for code in FULL_ERRNOS)
            is_full = isinstance(error, tf.errors.ResourceExhaustedError) or any(
                word in error.message for word in words
            )
            raise (StorageFullError if is_full else StorageError)(f"{self._path}: {error.message}") from error


def _box_text(shape: tuple[int, ...], box: Box) -> str:
    """A box of a tensor as TensorFlow writes it: `8 4 0,4:-`."""
    axes = ("-" if extent == size else f"{start},{extent}" for start, extent, size in zip(*box, shape, strict=True))
    return f"{' '.join(map(str, shape))} {':'.join(axes)}"
