"""Named tensors: what a file holds where there is no model to put it in, each read when it is asked for."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptflow.errors import CorruptCheckpointError, UsageError
from ckptflow.format import boxes, dtypes
from ckptflow.format.boxes import Box
from ckptflow.format.dtypes import Array
from ckptflow.format.object_graph import ObjectGraph
from ckptflow.format.spec import Bytes1D, TensorSpec

LARGE_BYTES = 2**26  # what is larger is read in parts where that can be


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's dtype (TensorFlow's name, as in `format.dtypes`) and shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NamedTensors:
    """Tensors by the name that they get in a checkpoint, and what belongs to them.

    `read(name)` gives one whole tensor as an array of the dtype and shape that `infos` says (strings as an array of
    objects, bytes each); it is called from several threads, once for each tensor. `read_part(name, begin, end)`, where
    there is one, gives these bytes of a tensor in row-major order: large tensors of numbers are read by it, and never
    whole. `python_state`, `models` and `object_graph` are as in a manifest. `aliases`: further names of a tensor.
    `left_out` names what the file has and a checkpoint cannot hold.
    """

    infos: Mapping[str, TensorInfo]
    read: Callable[[str], Array]
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    metrics: frozenset[str] = frozenset()  # names of variables of metrics
    per_worker: tuple[str, ...] = ()  # as in a manifest of one worker
    python_state: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, Any] = field(default_factory=dict)
    object_graph: Any = None
    left_out: tuple[str, ...] = ()
    read_part: Callable[[str, int, int], npt.NDArray[np.uint8]] | None = None


def bytes_of(array: Array) -> npt.NDArray[np.uint8]:
    """The bytes of a numeric array in row-major order, sharing its memory where it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


class CapturedTensors:
    """Named tensors as a save wants its snapshot, and a state an offer: each is read when it is first asked for.

    Thread-safe.
    """

    own_names: frozenset[str] = frozenset()

    def __init__(self, tensors: NamedTensors) -> None:
        self._tensors = tensors
        self._names = sorted(tensors.infos)
        counts = Counter(name for names in (self._names, *tensors.aliases.values()) for name in names)
        if len(counts) < counts.total():
            raise CorruptCheckpointError(f"{counts.most_common(1)[0][0]!r} is the name of two tensors")
        self.specs = tuple(map(self._spec, self._names))
        self._locks = [threading.Lock() for _ in self._names]
        self._held: list[Bytes1D | None] = [None] * len(self._names)
        self.per_worker = tensors.per_worker
        self.python_state = tensors.python_state
        self.models = tensors.models
        self.object_graph: ObjectGraph | None = tensors.object_graph

    def _spec(self, name: str) -> TensorSpec:
        info = self._tensors.infos[name]
        dtypes.item_size_bytes(info.dtype)
        is_encoded = dtypes.is_encoded(info.dtype)
        return TensorSpec(
            name,
            info.dtype,
            () if is_encoded else tuple(info.shape),
            dynamic=is_encoded,
            aliases=tuple(self._tensors.aliases.get(name, ())),
            metric=name in self._tensors.metrics,
        )

    def shape(self, index: int) -> tuple[int, ...]:
        return tuple(self._tensors.infos[self._names[index]].shape)

    def data(self, index: int) -> Bytes1D:
        with self._locks[index]:
            held = self._held[index]
            if held is None:
                held = self._held[index] = self._read(self._names[index])
            return held

    def _read(self, name: str) -> Bytes1D:
        info = self._tensors.infos[name]
        array = self._tensors.read(name)
        if array.dtype != dtypes.numpy_dtype(info.dtype) or array.shape != tuple(info.shape):
            raise CorruptCheckpointError(
                f"{name!r} was to be {info.dtype} of shape {list(info.shape)}, and is {array.dtype} of shape "
                f"{list(array.shape)}"
            )
        return dtypes.encode_strings(array) if dtypes.is_encoded(info.dtype) else bytes_of(array)

    def is_fetched(self, index: int) -> bool:
        """Whether it is fetched in parts: no large tensor need ever be in memory as a whole."""
        info = self._tensors.infos[self._names[index]]
        size_bytes = boxes.volume(info.shape) * dtypes.item_size_bytes(info.dtype)
        return self._tensors.read_part is not None and not dtypes.is_encoded(info.dtype) and size_bytes > LARGE_BYTES

    def fetch(self, index: int, box: Box) -> Bytes1D:
        name = self._names[index]
        info, read_part = self._tensors.infos[name], self._tensors.read_part
        if read_part is None:
            raise UsageError(f"{name} is not read in parts")
        item = dtypes.item_size_bytes(info.dtype)
        parts = [
            read_part(name, there * item, (there + count) * item) for there, _, count in boxes.spans(info.shape, box)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def release(self, index: int) -> None:
        self._held[index] = None
