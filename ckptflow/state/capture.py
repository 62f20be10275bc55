"""Capture: every tensor of the state at one step, held by reference.

TensorFlow does the copying, and only where it must: an update of a variable whose value is held writes elsewhere. So
the caller is blocked for one read per variable, and bytes are touched only by `data`, later, on other threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from ckptflow.errors import UsageError
from ckptflow.format import values
from ckptflow.format.boxes import Box
from ckptflow.format.components import aggregate
from ckptflow.format.object_graph import ObjectGraph
from ckptflow.format.spec import Bytes1D, TensorSpec
from ckptflow.state import strategies
from ckptflow.state.configs import described
from ckptflow.state.graph import describe_graph
from ckptflow.state.leaves import VariableLeaf, check_shape, host_array, to_bytes
from ckptflow.state.memory import Memory, memory_of
from ckptflow.state.numbers import Place, with_numbers
from ckptflow.state.tree import Tree


class Snapshot:
    """The state at one step; implements `format.spec.TensorSource`. Reading it never starts a collective.

    `python_state` is the plain Python state by entry, ready for JSON; `per_worker` names the entries that are this
    worker's own, `own_names` are theirs in a checkpoint.
    """

    def __init__(
        self,
        tree: Tree,
        held: list[Any],
        remote: frozenset[int],
        python_state: dict[str, Any],
        models: dict[str, Any],
        numbers: dict[Place, Any],
        is_chief: bool,
    ) -> None:
        self._tree = tree
        self._held = held
        self._remote = remote
        self.python_state = python_state
        self._models = models
        self._numbers = numbers
        self.is_chief = is_chief
        self.per_worker = tuple(tree.per_worker)
        self.own_names = tree.own_names

    @property
    def models(self) -> dict[str, Any]:
        """What describes the models and optimizers, with the rates that they had then. From any thread: waits for an
        accelerator to give them."""
        return with_numbers(self._models, {place: host_array(held).item() for place, held in self._numbers.items()})

    @property
    def object_graph(self) -> ObjectGraph | None:
        """The state as TensorFlow's own checkpoints see it, where that can be had. From any thread, one at a time.

        Made when it is first asked for, and again only after a failure: training may have changed an object meanwhile.
        """
        if self._tree.object_graph is None:
            self._tree.object_graph = describe_graph(self._tree.state, self._tree)
        return self._tree.object_graph

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """What is held, sorted by name."""
        return self._tree.specs

    def shape(self, index: int) -> tuple[int, ...]:
        """The captured shape of what is held (the spec's, but for a dynamic tensor)."""
        held = self._value(index)
        shape = tuple(held[0].shape if isinstance(held, list) else held.shape)
        spec = self._tree.specs[index]
        check_shape(spec.name, spec.dtype, shape)  # a variable may leave it open
        return shape

    def data(self, index: int) -> Bytes1D:
        """The tensor's bytes in row-major order. They share TensorFlow's memory where it lends it: never write to them.

        On an accelerator they are copied to the host here. A variable that is kept per replica is aggregated here.
        """
        held, leaf = self._value(index), self._tree.holders[index]
        if isinstance(held, list) and isinstance(leaf, VariableLeaf):
            array = aggregate([host_array(tensor) for tensor in held], leaf.on_read or "first")
        else:
            array = host_array(held)
        return to_bytes(array, leaf.dtype)

    def is_fetched(self, index: int) -> bool:
        """Whether it is in another process's memory."""
        return index in self._remote

    def fetch(self, index: int, box: Box) -> Bytes1D:
        """The bytes of one box of it: cut where it is, so that no more than that crosses the network."""
        held = self._value(index)
        with tf.device(held.backing_device):
            part = tf.slice(held, *np.array(box, np.int64).reshape(2, -1))  # of a scalar: no numbers, but whole ones
        return to_bytes(host_array(part), self._tree.holders[index].dtype)

    def release(self, index: int) -> None:
        """Drops the reference, so that the next update of the variable need not copy."""
        self._held[index] = None

    @property
    def frozen_names(self) -> frozenset[str]:
        """The tensors that training leaves alone, by what the models say."""
        return self._tree.frozen_names

    def reference(self, index: int) -> Memory | None:
        """Keeps a tensor's memory: see `Memory`. None if that proves nothing, as of what another process holds."""
        held = self._held[index]
        return None if held is None or index in self._remote else memory_of(held)

    def put_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Metrics as `read_metrics` held them."""
        for index, spec in enumerate(self.specs) if metrics else ():
            self._held[index] = metrics.get(spec.name, self._held[index])

    def _value(self, index: int) -> Any:
        held = self._held[index]
        if held is None:
            raise UsageError(f"{self._tree.specs[index].name} was released from this snapshot")
        return held


def capture(tree: Tree, *, is_chief: bool) -> Snapshot:
    """A snapshot of the tree's objects, taken on the training thread between two steps; blocks for the reads alone.

    Raises `UsageError`, with their names, for variables that have no value yet, and inside a tf.function or a replica.
    Raises `PeerError` if a parameter server is gone.
    Raises whatever an entry's `get_state` raises, and `UnsupportedStateError` for what it returns and JSON cannot hold.
    """
    if not strategies.is_between_steps():
        raise UsageError("the state is captured between two steps: not inside a tf.function, nor inside strategy.run")
    try:
        plan = tree.read_plan
        held = plan.read()
    except tf.errors.UnavailableError as error:
        raise strategies.server_is_gone(error, "the state cannot be read, and nothing was saved now") from error
    _ = tree.frozen_names  # here, while nobody changes the models
    python_state = {name: values.to_json(entry.get_state(), name) for name, entry in tree.python.items()}
    shared = {name: state for name, state in python_state.items() if name not in tree.own_names}
    values.check_room(shared, values.MAX_STATE_BYTES // 2)
    own = {name: state for name, state in python_state.items() if name in tree.own_names}
    values.check_room(own, values.MAX_STATE_BYTES // 2 // tree.world_size)
    models = described(tree)
    numbers = {place: held[index] for place, index in tree.numbers.items() if is_chief}
    return Snapshot(tree, held, plan.remote, python_state, models, numbers, is_chief)


def prepare(tree: Tree) -> None:
    """Works out how to read these objects, and what to say of them, so that a save does not: 0.1 s for 200 layers."""
    _ = tree.read_plan
    described(tree)


def read_metrics(tree: Tree) -> dict[str, Any]:
    """What `capture` would hold of metrics' variables, by name, and of nothing else."""
    held = tree.metrics_plan.read()
    return {spec.name: value for spec, value in zip(tree.specs, held, strict=True) if spec.metric}
