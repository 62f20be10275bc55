"""Where variables live under each setting: how they are made, trained, and looked at without ckptflow."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias
from unittest import mock

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras
from tensorflow.experimental import dtensor
from tensorflow.python.distribute import distribute_utils, tpu_replicated_variable, values

Array = npt.NDArray[Any]
Scope: TypeAlias = contextlib.AbstractContextManager[Any]
Piece = tuple[tuple[int, ...], Array]  # where it begins in the whole tensor, and what is there
ON_READ = tf.VariableSynchronization.ON_READ


class Home(ABC):
    """One setting, in this process. `strategy` is what a manager is told."""

    strategy: Any = None
    mesh: Any = None
    replicas = 1

    @abstractmethod
    def variable(self, name: str, value: Array, *, trainable: bool = True, per_replica: bool = False) -> Any:
        """A variable of that value."""

    def scope(self) -> Scope:
        """Where variables and optimizers are made."""
        return contextlib.nullcontext()

    def rows(self, variable: Any, numbers: Any) -> Any:
        """Rows of an embedding, in a step: its gradient is sparse."""
        return tf.nn.embedding_lookup(variable, numbers)

    def layers(self) -> Scope:
        """Where layers are made that make their own variables."""
        return self.scope()

    @abstractmethod
    def run(self, step: Callable[[], None], count: int) -> None:
        """Trains `count` steps; returns when they are done."""

    def parts(self, variable: Any) -> list[Any]:
        """The variables that an optimizer is built for."""
        return [variable]

    @abstractmethod
    def pieces(self, parts: Sequence[Any]) -> list[Piece]:
        """All that this process holds of a tensor, given by its parts: every copy of every block."""


class Replicated(Home):
    """No strategy, OneDevice, Mirrored, MultiWorkerMirrored: whole copies."""

    def __init__(self, strategy: Any) -> None:
        self.strategy = strategy
        self.replicas = strategy.num_replicas_in_sync

    def scope(self) -> Scope:
        scope: Scope = self.strategy.scope()
        return scope

    def variable(self, name: str, value: Array, *, trainable: bool = True, per_replica: bool = False) -> Any:
        aggregation = tf.VariableAggregation
        how: dict[str, Any] = {"aggregation": aggregation.NONE if trainable else aggregation.ONLY_FIRST_REPLICA}
        if per_replica:
            how = {"synchronization": ON_READ, "aggregation": aggregation.SUM}
        with self.scope():
            return tf.Variable(value, trainable=trainable, name=name, **how)

    def run(self, step: Callable[[], None], count: int) -> None:
        @tf.function
        def on_all() -> None:
            self.strategy.run(step)

        for _ in range(count):
            on_all()

    def pieces(self, parts: Sequence[Any]) -> list[Piece]:
        [variable] = parts
        if not isinstance(variable, values.DistributedVariable):
            return [_whole(variable)]
        if variable.synchronization is ON_READ:
            return [_whole(variable)]  # its sum: a collective where there are several workers
        return [_whole(core) for copy in variable.values for core in _cores(copy)]


class Tpu(Replicated):
    """What TPUStrategy makes its variables of, on two CPU devices that train as mirrored ones do.

    `spmd`: the classes for a model that is partitioned over several cores of each replica, else the default ones.
    """

    def __init__(self, *, spmd: bool) -> None:
        # Without collectives: those of two MirroredStrategies in one process take one another's names.
        by_copying = tf.distribute.ReductionToOneDevice()
        super().__init__(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=by_copying))
        self.strategy.extended._use_var_policy = not spmd

    def rows(self, variable: Any, numbers: Any) -> Any:
        return tf.matmul(tf.one_hot(numbers, variable.shape[0]), variable.read_value())  # takes no sparse gradients

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        with (
            mock.patch.object(distribute_utils, "VARIABLE_CLASS_MAPPING", distribute_utils.TPU_VARIABLE_CLASS_MAPPING),
            mock.patch.object(
                distribute_utils, "VARIABLE_POLICY_MAPPING", distribute_utils.TPU_VARIABLE_POLICY_MAPPING
            ),
            self.strategy.scope(),
        ):
            yield


class Servers(Home):
    """ParameterServerStrategy: parts of a tensor's rows on several processes, steps by a coordinator on a worker."""

    def __init__(self, strategy: Any, coordinator: Any) -> None:
        self.strategy = strategy
        self._coordinator = coordinator

    def scope(self) -> Scope:
        scope: Scope = self.strategy.scope()
        return scope

    def variable(self, name: str, value: Array, *, trainable: bool = True, per_replica: bool = False) -> Any:
        with self.scope():
            return tf.Variable(value, trainable=trainable, name=name)

    def run(self, step: Callable[[], None], count: int) -> None:
        @tf.function
        def on_worker() -> None:
            self.strategy.run(step)

        for _ in range(count):
            self._coordinator.schedule(on_worker)
        self._coordinator.join()

    def parts(self, variable: Any) -> list[Any]:
        return list(variable.variables) if hasattr(variable, "variables") else [variable]

    def pieces(self, parts: Sequence[Any]) -> list[Piece]:
        arrays = [_whole(part)[1] for part in parts]
        rows = np.cumsum([0, *(len(array) for array in arrays[:-1])]) if len(arrays) > 1 else [0]
        return [
            ((int(row), *[0] * (array.ndim - 1)) if array.ndim else (), array)
            for row, array in zip(rows, arrays, strict=True)
        ]


class Mesh(Home):
    """DTensor: each axis of a tensor is divided by the next dimension of the mesh that divides it, or none is."""

    def __init__(self, mesh: Any, *, is_divided: bool = True) -> None:
        self.mesh = mesh
        self._is_divided = is_divided

    def variable(self, name: str, value: Array, *, trainable: bool = True, per_replica: bool = False) -> Any:
        layout = dtensor.Layout(self._specs(value.shape, name), self.mesh)
        tensor = dtensor.call_with_layout(tf.function(lambda: tf.constant(value)), layout)
        return dtensor.DVariable(tensor, name=name, trainable=trainable)

    def _specs(self, shape: tuple[int, ...], name: str) -> list[str]:
        free = [name for name in self.mesh.dim_names if self.mesh.dim_size(name) > 1] if self._is_divided else []
        if name in ("bias", "embedding"):  # as the kernel's columns; and one whose order is not the mesh's
            free.reverse()
        specs = []
        for size in shape:
            fits = [name for name in free if size % self.mesh.dim_size(name) == 0]
            specs.append(fits[0] if fits else dtensor.UNSHARDED)
            free = [name for name in free if name != specs[-1]]
        return specs

    def rows(self, variable: Any, numbers: Any) -> Any:
        return tf.convert_to_tensor(variable)  # all: DTensor has no rule for the scatter of a sparse gradient

    @contextlib.contextmanager
    def layers(self) -> Iterator[None]:
        tf_keras.backend.experimental.enable_tf_random_generator()  # a layout map asks for it
        layouts = tf_keras.dtensor.experimental.LayoutMap(mesh=self.mesh)
        layouts["first.kernel"] = dtensor.Layout(["x", "y"], self.mesh)
        layouts["first.bias"] = dtensor.Layout(["y"], self.mesh)
        with layouts.scope():
            yield

    def run(self, step: Callable[[], None], count: int) -> None:
        traced = tf.function(step)
        for _ in range(count):
            traced()

    def pieces(self, parts: Sequence[Any]) -> list[Piece]:
        [variable] = parts
        blocks = [block.numpy() for block in dtensor.unpack(variable.read_value())]
        numbers = variable.layout.offset_to_shard()  # of all devices; a block's number along each axis
        first = self.mesh.local_device_ids()[0]
        return [
            (tuple(number * size for number, size in zip(numbers[first + device], block.shape, strict=True)), block)
            for device, block in enumerate(blocks)
        ]


def _cores(copy: Any) -> Sequence[Any]:
    return copy.variables if isinstance(copy, tpu_replicated_variable.TPUReplicatedVariable) else (copy,)


def _whole(variable: Any) -> Piece:
    array = np.asarray(variable.read_value().numpy())
    return (0,) * array.ndim, array
