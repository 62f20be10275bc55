"""The leaves of the state: each is one tensor of the checkpoint, and knows how it is held, read and put back."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from ckptflow.errors import UnsupportedStateError
from ckptflow.format import dtypes
from ckptflow.format.boxes import Box
from ckptflow.format.components import Components
from ckptflow.format.dtypes import Array
from ckptflow.format.record import MAX_NUMBER, MAX_RANK
from ckptflow.format.spec import Bytes1D, TensorSpec
from ckptflow.state import strategies
from ckptflow.state.bundle import Bundle
from ckptflow.state.kinds import is_distributed, is_on_read, is_resource_variable, local_copies
from ckptflow.state.private.tensorflow import rank

StaticShape: TypeAlias = tuple[int | None, ...] | None

_MAX_EMPTY_DIMENSION = 2**31 - 1

_AGGREGATIONS: dict[Any, Components] = {
    tf.VariableAggregation.SUM: "sum",
    tf.VariableAggregation.MEAN: "mean",
    tf.VariableAggregation.ONLY_FIRST_REPLICA: "first",
    # TensorFlow's own checkpoints refuse these; replica 0's copy is what a reader on replica 0 sees.
    tf.VariableAggregation.NONE: "first",
}


class Leaf(ABC):
    """One tensor of the checkpoint.

    `shape` has None if the variable leaves a dimension open, and is None if it leaves the rank open. `boxes` are
    what `assign` takes: all of it (None), or one block after the other. `own`: this worker's, no other has it.
    """

    boxes: tuple[Box | None, ...] = (None,)
    needs_all = False

    def __init__(self, name: str, dtype: Any, shape: StaticShape) -> None:
        self.name = name
        self.tf_dtype = dtype
        self.dtype: str = dtype.name
        self.shape = shape
        self.aliases: tuple[str, ...] = ()
        self.metric = False
        self.own = False
        self.is_kept_equal = False  # by the optimizer it belongs to
        if self.dtype not in dtypes.names() or dtype == tf.variant:  # a variant's bytes are known to its owner alone
            raise UnsupportedStateError(f"{name}: a checkpoint cannot store the dtype {self.dtype}")
        check_shape(name, self.dtype, shape or ())

    @abstractmethod
    def specs(self) -> tuple[TensorSpec, ...]:
        """What the checkpoint says of it: one for each block that is written here."""

    @abstractmethod
    def read(self) -> list[Any]:
        """What is held for each of `specs`. On the training thread, between two steps."""

    @abstractmethod
    def assign(self, values: Mapping[Box | None, Any]) -> None:
        """Gives it these values, of some of `boxes`, or of all where it `needs_all` at once.

        The tensors become the variable's own: they must be nobody else's.
        """

    @property
    def shape_or_scalar(self) -> tuple[int, ...]:
        """The shape where it is known, with 0 for what is open."""
        return tuple(size or 0 for size in self.shape or ())

    def _spec(self, shape: tuple[int, ...], **more: Any) -> TensorSpec:
        return TensorSpec(self.name, self.dtype, shape, aliases=self.aliases, metric=self.metric, own=self.own, **more)


_MOST_AXES = MAX_RANK if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32  # of an array


def check_shape(name: str, dtype: str, shape: Sequence[int | None]) -> None:
    """Raises `UnsupportedStateError` for what NumPy or a manifest cannot hold, even of no element."""
    size_bytes = math.prod(size for size in shape if size) * dtypes.numpy_dtype(dtype).itemsize
    if len(shape) > _MOST_AXES or size_bytes > MAX_NUMBER:
        raise UnsupportedStateError(
            f"{name}: a checkpoint cannot store the shape {tuple(shape)}: at most {_MOST_AXES} axes and 2**62 bytes, "
            "with a dimension of 0 taken as 1. Reshape it, or leave it out of the state"
        )


class VariableLeaf(Leaf):
    """A variable: a plain one, a mirrored one (its first copy), or one kept per replica (its aggregate here).

    `parts` are its resource variables on this worker. `on_read` is how a variable that is kept per replica aggregates,
    else None.
    """

    def __init__(self, name: str, variable: Any) -> None:
        if not (is_distributed(variable) or is_resource_variable(variable)):
            raise UnsupportedStateError(
                f"{name} is a {type(variable).__module__}.{type(variable).__qualname__}, a kind of variable that "
                "ckptflow does not know"
            )
        self._copies = local_copies(variable)
        self.parts = tuple(part for copy in self._copies for part in copy)
        static = self.parts[0].shape
        super().__init__(name, self.parts[0].dtype, None if static.rank is None else tuple(static.as_list()))
        self.variable = variable
        self.handle = self.parts[0].handle
        self.on_read: Components | None = _AGGREGATIONS[variable.aggregation] if is_on_read(variable) else None
        check_shape(name, self.dtype, [*(self.shape or ()), *[None] * bool(self.on_read)])  # one more for the workers'

    def specs(self) -> tuple[TensorSpec, ...]:
        dynamic = dtypes.is_encoded(self.dtype) or self.shape is None or None in self.shape
        is_divided = self.on_read and not self.own and strategies.worker_count(self.variable.distribute_strategy) > 1
        components = self.on_read if is_divided else None
        shape = () if dynamic else self.shape_or_scalar
        # What a step changes by itself, without the other replicas, can differ between them: moving averages do.
        may_differ = not (is_distributed(self.variable) and (self.is_kept_equal or _is_trained(self.variable)))
        return (self._spec(shape, dynamic=dynamic, components=components, may_differ=may_differ),)

    @property
    def is_simple(self) -> bool:
        """Whether one ReadVariableOp on `handle` is its whole capture."""
        return self.on_read is None or len(self._copies) == 1

    def read(self) -> list[Any]:
        return [[tf.raw_ops.ReadVariableOp(resource=copy[0].handle, dtype=self.tf_dtype) for copy in self._copies]]

    def assign(self, values: Mapping[Box | None, Any]) -> None:
        """Gives every replica here the value.

        A sum goes whole to the chief's first replica and the others get zero. TensorFlow's own checkpoints give each
        replica value / replicas instead, which is not exact: not for integers, nor where the count is no power of 2.
        """
        value = values[None]
        if self.on_read == "sum":
            takes_it = self.own or strategies.worker_index(self.variable.distribute_strategy) == 0
            zeros = as_tensor(np.zeros_like(host_array(value)))  # `tf.zeros_like` does not know every dtype
            for position, copy in enumerate(self._copies):
                for part in copy:
                    self._assign(part, _copy(value if takes_it and position == 0 else zeros))
            return
        # Copies first: two variables must never share one buffer that is known to neither of them.
        copies = [_copy(value) for _ in self.parts[1:]]
        for part, own in zip(self.parts, [value, *copies], strict=True):
            self._assign(part, own)

    def _assign(self, part: Any, value: Any) -> None:
        # Without validation the op silently takes another shape; with it, it refuses what a variable of open shape may.
        is_open = self.shape is None or None in self.shape
        give(part, value, validate_shape=not is_open)


class PartLeaf(Leaf):
    """One part of a bundle, which reads and writes all its parts at once."""

    def __init__(self, name: str, bundle: Bundle, part: str) -> None:
        super().__init__(name, tf.as_dtype(bundle.dtypes[part]), None)
        self.bundle = bundle
        self.part = part

    def specs(self) -> tuple[TensorSpec, ...]:
        return (self._spec((), dynamic=True),)

    def read(self) -> list[Any]:
        raise TypeError(f"{self.name} is read with its bundle")

    def assign(self, values: Mapping[Box | None, Any]) -> None:
        raise TypeError(f"{self.name} is written with its bundle")


def _is_trained(variable: Any) -> bool:
    """Whether gradients of all workers change it, or nothing does. By how it was made: a frozen one counts."""
    return bool(variable.trainable) and variable.aggregation != tf.VariableAggregation.ONLY_FIRST_REPLICA


def _copy(value: Any) -> Any:
    if value.dtype.name in _EMPTY_DTYPES:
        return tf.raw_ops.DeepCopy(x=value)
    return as_tensor(host_array(value))


# The dtypes for which TensorFlow can make an empty tensor (and a deep copy); found by trying, and held by a test.
_EMPTY_DTYPES = frozenset(
    {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "bfloat16", "float32"}
    | {"float64", "complex64", "complex128"}
)


_STRING = tf.string  # looking it up in the module takes longer than all else that is asked of a tensor here


def host_array(tensor: Any) -> Array:
    """A tensor's value as an array on the host, without a copy where TensorFlow shares its memory. Read-only."""
    if isinstance(tensor, np.ndarray):
        return tensor
    if "CPU" not in tensor.backing_device:
        with tf.device("CPU:0"):
            tensor = tf.identity(tensor)
    if tensor.dtype is _STRING:
        flat = tf.reshape(tensor, [-1])  # more than 32 dimensions of strings end the process, in either direction
        return np.asarray(flat.numpy(), dtype=object).reshape(tensor.shape)
    if not rank(tensor):  # NumPy's protocol fails for scalars of bfloat16, float8 and int4
        return np.asarray(tensor.numpy())
    return np.asarray(tensor)


def as_tensor(array: Array) -> Any:
    """An array as a tensor with memory of its own."""
    if array.dtype != object:
        return tf.convert_to_tensor(array)
    return tf.reshape(tf.convert_to_tensor(array.reshape(-1), tf.string), tf.constant(array.shape, tf.int64))


def give(part: Any, value: Any, *, validate_shape: bool = True) -> None:
    """Gives a resource variable a value, which becomes its own where it is in this process."""
    handle = part.handle
    if _ON_SERVERS in handle.device and value.dtype is not _STRING and value.shape.num_elements() >= _SENT_ELEMENTS:
        _sending(handle.device, value.dtype, validate_shape)(handle, value)
        return
    tf.raw_ops.AssignVariableOp(resource=handle, value=value, validate_shape=validate_shape)


_ON_SERVERS = "/job:ps/"
_SENT_ELEMENTS = 2**14


@functools.cache
def _sending(device: str, dtype: Any, validate_shape: bool) -> Any:
    """A function that assigns on another process's device. What a function is called with goes there as tensors go
    between devices; an operation that is called by itself packs it into a message, at a quarter of the speed."""

    def assign(handle: Any, value: Any) -> None:
        with tf.device(device):
            tf.raw_ops.AssignVariableOp(resource=handle, value=value, validate_shape=validate_shape)

    return tf.function(assign).get_concrete_function(tf.TensorSpec([], tf.resource), tf.TensorSpec(None, dtype))


def is_remote(tensor: Any) -> bool:
    """Whether a held value is in another process's memory: a parameter server's."""
    return not isinstance(tensor, (np.ndarray, list)) and _ON_SERVERS in tensor.backing_device


def to_bytes(array: Array, dtype: str) -> Bytes1D:
    """The bytes that a checkpoint holds of an array, sharing its memory but for encoded dtypes."""
    if dtypes.is_encoded(dtype):
        return dtypes.encode_strings(array.reshape(-1))
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def from_bytes(data: Bytes1D, dtype: str, shape: tuple[int, ...]) -> Array:
    """The array that `to_bytes` made `data` of, sharing its memory but for encoded dtypes."""
    if dtypes.is_encoded(dtype):
        return dtypes.decode_strings(data, shape)
    return data.view(dtypes.numpy_dtype(dtype)).reshape(shape)


class Landing:
    """Memory in which a variable's value arrives, and which then becomes that value without one more copy.

    Large values land in a fresh tensor: TensorFlow's allocator hands out memory that it has freed before, so that no
    page is touched for the first time. Small ones, and dtypes that know no empty tensor, land in an array and are
    copied once. `bytes` keeps the memory alive for as long as anything refers to it.
    """

    SMALL_BYTES = 64 << 10  # below, making an empty tensor costs more than a copy does

    def __init__(self, dtype: str, shape: tuple[int, ...], size_bytes: int) -> None:
        self._dtype, self._shape = dtype, shape
        self._tensor = None
        if dtype in _EMPTY_DTYPES and size_bytes >= self.SMALL_BYTES:
            with tf.device("CPU:0"):
                self._tensor = _empty(shape, tf.as_dtype(dtype))
            self.bytes: Bytes1D = np.asarray(_Memory(self._tensor))
        else:
            self.bytes = np.empty(size_bytes, dtype=np.uint8)

    def take(self) -> Any:
        """The tensor that has landed; nothing else refers to its memory unless a caller has kept `bytes`."""
        tensor, data = self._tensor, self.bytes
        self._tensor, self.bytes = None, np.empty(0, np.uint8)
        if tensor is not None:
            return tensor
        with tf.device("CPU:0"):
            return as_tensor(from_bytes(data, self._dtype, self._shape))


def _empty(shape: tuple[int, ...], dtype: Any) -> Any:
    """A tensor whose memory is to be written. `Empty` takes 32-bit dimensions; a filled one may have any."""
    if max(shape, default=0) <= _MAX_EMPTY_DIMENSION:
        return tf.raw_ops.Empty(shape=shape, dtype=dtype, init=False)
    return tf.raw_ops.Fill(dims=tf.constant(shape, tf.int64), value=tf.zeros([], dtype))


class _Memory:
    """A tensor's buffer as writable bytes. NumPy keeps this object, and so the tensor, for as long as it has a view."""

    def __init__(self, tensor: Any) -> None:
        view = np.asarray(tensor)
        self.tensor = tensor
        self.__array_interface__ = {
            "data": (view.ctypes.data, False),
            "shape": (view.nbytes,),
            "typestr": "|u1",
            "version": 3,
        }
