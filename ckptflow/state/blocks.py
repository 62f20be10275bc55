"""Leaves that are held in blocks: the parts of a sharded variable on parameter servers, a DTensor on its mesh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.experimental import dtensor

from ckptflow.errors import UnsupportedStateError
from ckptflow.format import boxes, dtypes
from ckptflow.format.boxes import Box
from ckptflow.format.spec import TensorSpec
from ckptflow.state.leaves import Leaf, give

SMALL_BYTES = 2**20  # blocks below this are written by the first client that holds them


class PartsLeaf(Leaf):
    """One tensor in several resource variables of this process: a ShardedVariable, or an optimizer's slots for one.

    How many parts there are is no property of the checkpoint: each is a slice of the one tensor.
    """

    def __init__(self, name: str, parts: Sequence[Any], starts: Sequence[Sequence[int]], shape: Sequence[int]) -> None:
        super().__init__(name, parts[0].dtype, tuple(shape))
        self.parts = tuple(parts)
        if dtypes.is_encoded(self.dtype):
            raise UnsupportedStateError(
                f"{name}: a sharded variable of {self.dtype} cannot be saved; keep it in a lookup table, "
                "or create it so that the partitioner does not split it"
            )
        held = [(tuple(start), tuple(part.shape.as_list())) for part, start in zip(parts, starts, strict=True)]
        boxes.check_cover(tuple(shape), held)
        self.boxes: tuple[Box | None, ...] = tuple(held)

    def specs(self) -> tuple[TensorSpec, ...]:
        return tuple(self._spec(self.shape_or_scalar, box=box) for box in self.boxes)

    def read(self) -> list[Any]:
        return [tf.raw_ops.ReadVariableOp(resource=part.handle, dtype=self.tf_dtype) for part in self.parts]

    def assign(self, values: Mapping[Box | None, Any]) -> None:
        for box, value in values.items():
            part = self.parts[self.boxes.index(box)]
            give(part, value)


class MeshLeaf(Leaf):
    """A DTensor variable: this client's blocks of it.

    Of equal blocks one is written: by the first client that holds it, or, where they are large, by each in turn. A
    tensor that is replicated over the whole mesh is like any other that every worker has a copy of.
    """

    needs_all = True

    def __init__(self, name: str, variable: Any) -> None:
        super().__init__(name, variable.dtype, tuple(variable.shape.as_list()))
        self.variable = variable
        self.layout = variable.layout
        try:
            self._place()
        except (AttributeError, KeyError, ValueError, ZeroDivisionError) as error:
            raise UnsupportedStateError(
                f"{name}: a DTensor variable of layout {self.layout} cannot be saved; lay it out on a mesh of named "
                "dimensions that divide its shape"
            ) from error

    def _place(self) -> None:
        mesh, shape = self.layout.mesh, self.shape_or_scalar
        local = mesh.local_device_locations()
        self._of_device = [self._box(shape, location) for location in local]  # in the order of `dtensor.unpack`
        if self.layout.is_fully_replicated() or not boxes.volume(shape):
            self.boxes: tuple[Box | None, ...] = (None,)
            self._written: tuple[int, ...] = (0,)
            return
        self.boxes = tuple(dict.fromkeys(self._of_device))
        everywhere: dict[Box, list[dict[str, int]]] = {}
        for _, location in sorted(mesh.unravel_index().items()):
            everywhere.setdefault(self._box(shape, location), []).append(location)
        item_bytes = dtypes.item_size_bytes(self.dtype)
        written = []
        for number, (box, holders) in enumerate(everywhere.items()):
            turn = number if boxes.volume(box[1]) * item_bytes >= SMALL_BYTES else 0
            if holders[turn % len(holders)] in local:
                written.append(self._of_device.index(box))
        self._written = tuple(written)

    def _box(self, shape: tuple[int, ...], location: dict[str, int]) -> Box:
        start, extents = [], []
        for axis, (size, dimension) in enumerate(zip(shape, self.layout.sharding_specs, strict=True)):
            count = self.layout.num_shards(axis)
            if size % count:
                raise ValueError(f"axis {axis} of {size} is not divided by {count}")
            extents.append(size // count)
            start.append(0 if dimension == dtensor.UNSHARDED else location[dimension] * (size // count))
        return tuple(start), tuple(extents)

    def specs(self) -> tuple[TensorSpec, ...]:
        shape = self.shape_or_scalar
        if self.boxes == (None,):
            return (self._spec(shape),)
        return tuple(self._spec(shape, box=self._of_device[device]) for device in self._written)

    def read(self) -> list[Any]:
        local = dtensor.unpack(tf.raw_ops.ReadVariableOp(resource=self.variable.handle, dtype=self.tf_dtype))
        return [local[device] for device in self._written]

    def assign(self, values: Mapping[Box | None, Any]) -> None:
        if not boxes.volume(self.shape_or_scalar):
            return
        local = [values[None if self.boxes == (None,) else box] for box in self._of_device]
        # A copy for each device: none may share a buffer with another.
        packed = dtensor.pack([tf.identity(value) for value in local], self.layout)
        tf.raw_ops.AssignVariableOp(resource=self.variable.handle, value=packed, validate_shape=True)
