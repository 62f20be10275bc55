"""TensorFlow's own checkpoints, `PREFIX.index` and `PREFIX.data-…`, read by TensorFlow's reader; nothing is trusted.

TensorFlow's reader trusts: a length or a shape in an index with right checksums is an abort, or as much memory as it
says. So a process of its own reads all of a checkpoint first, see `probe`.
"""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from ckptflow.errors import CheckpointNotFoundError, CorruptCheckpointError
from ckptflow.format import dtypes
from ckptflow.format.dtypes import Array
from ckptflow.interop.tensors import TensorInfo
from ckptflow.interop.untrusted import probe
from ckptflow.interop.untrusted.private_copy import check_regular
from ckptflow.state.private.tensorflow import TrackableObjectGraph

T = TypeVar("T")

GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
_MAX_ELEMENTS = 2**62
_MAX_RANK = 64


class TensorBundle:
    """One checkpoint of TensorFlow's, opened: its tensors by TensorFlow's key, and its object graph.

    Every byte of a tensor is checked against its crc32c before it is handed out, by TensorFlow. Raises
    `CorruptCheckpointError`, naming the file, for whatever is damaged or missing, and `CheckpointNotFoundError` where
    there is no index. From any thread.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        if not os.path.isfile(f"{prefix}.index"):
            raise CheckpointNotFoundError(
                f"{prefix}: there is no {prefix}.index, so this is not a TensorFlow checkpoint"
            )
        check_regular(files_of(prefix), prefix)
        probe.check("ckptflow.interop.tensorflow.bundle:read_all", prefix, files_of(prefix), what=probe.BUNDLE)
        self._lock = threading.Lock()  # the reader has one position in the index
        self._reader = self._call("index", lambda: tf.train.load_checkpoint(prefix))
        self.infos = self._call("index", self._read_infos)
        self._check_sizes()

    def read(self, key: str) -> Array:
        """A whole tensor: strings as an array of objects, a variant as one serialized tensor in an array of no axes."""
        info = self.infos[key]
        if info.dtype == "variant":
            return self._call("data", lambda: self._read_variant(key))

        def read() -> Array:
            with self._lock:
                value = self._reader.get_tensor(key)
            return np.asarray(value, dtype=dtypes.numpy_dtype(info.dtype)).reshape(info.shape)

        return self._call("data", read)

    def object_graph(self) -> Any:
        """The `TrackableObjectGraph`, or None where the checkpoint was written by names alone."""
        if GRAPH_KEY not in self.infos:
            return None
        info, graph = self.infos[GRAPH_KEY], TrackableObjectGraph()
        try:
            if (info.dtype, info.shape) != ("string", ()):
                raise ValueError(f"it is {info.dtype} of shape {list(info.shape)}")
            graph.ParseFromString(self.read(GRAPH_KEY).item())
        except CorruptCheckpointError:
            raise
        except Exception as error:  # protobuf's own
            raise CorruptCheckpointError(f"{self.prefix}.index: its object graph cannot be read: {error}") from error
        return graph

    def _read_infos(self) -> Mapping[str, TensorInfo]:
        shapes = self._reader.get_variable_to_shape_map()
        kinds = self._reader.get_variable_to_dtype_map()
        return {key: TensorInfo(kinds[key].name, tuple(shapes[key])) for key in sorted(shapes)}

    def _read_variant(self, key: str) -> Array:
        (value,) = tf.raw_ops.RestoreV2(
            prefix=self.prefix, tensor_names=[key], shape_and_slices=[""], dtypes=[tf.variant]
        )
        return np.array(tf.io.serialize_tensor(value).numpy(), dtype=object)

    def _check_sizes(self) -> None:
        """Before memory is taken on the index's word: the data must be as long as the tensors say."""
        held, wanted = sum(os.path.getsize(path) for path in files_of(self.prefix)[1:]), 0
        for key, info in self.infos.items():
            count = math.prod(size or 1 for size in info.shape)
            if len(info.shape) > _MAX_RANK or count > _MAX_ELEMENTS:
                raise CorruptCheckpointError(f"{self.prefix}.index: {key!r} cannot have the shape {list(info.shape)}")
            wanted += _size_bytes(info)
        if wanted > held:
            raise CorruptCheckpointError(
                f"{self.prefix}: its data files have {held:,} bytes, and the tensors in its index {wanted:,} or more: "
                "a file is missing or cut short"
            )

    def _call(self, part: str, do: Callable[[], T]) -> T:
        """What TensorFlow raises becomes an error of ours, for nothing else than damage can be meant here."""
        try:
            return do()
        except (tf.errors.OpError, IndexError, KeyError, ValueError, TypeError, RuntimeError) as error:
            where = f"{self.prefix}.index" if part == "index" else f"{self.prefix}.data-*"
            message = getattr(error, "message", None) or str(error)
            raise CorruptCheckpointError(f"{where}: {message.splitlines()[0] if message else error!r}") from error


def files_of(prefix: str) -> list[str]:
    """The files of a checkpoint: its index, and then its data."""
    folder, name = os.path.split(prefix)
    is_data = re.compile(re.escape(name) + r"\.data-\d{5,}-of-\d{5,}")
    found = sorted(entry.name for entry in os.scandir(folder or ".") if is_data.fullmatch(entry.name))
    return [f"{prefix}.index", *(os.path.join(folder, each) for each in found)]


def read_all(prefix: str) -> None:
    """Reads every tensor of a checkpoint, and its object graph. For a process of its own: it may die of it."""
    bundle = TensorBundle(prefix)
    bundle.object_graph()
    for key in bundle.infos:
        bundle.read(key)


def _size_bytes(info: TensorInfo) -> int:
    """The bytes that a tensor has at least in the data files: one for each element whose size is not known."""
    size = (
        1 if info.dtype not in dtypes.names() or dtypes.is_encoded(info.dtype) else dtypes.item_size_bytes(info.dtype)
    )
    return math.prod(info.shape) * size
