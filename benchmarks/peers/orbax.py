"""Orbax on JAX's CPU backend: the same bytes in the framework next door."""

from __future__ import annotations

from typing import Any

from benchmarks.meters import fsync_all
from benchmarks.peers.base import Peer, Point, Samples


class OrbaxAsync(Peer):
    """`AsyncCheckpointer` with its standard handler (OCDBT)."""

    note = "JAX arrays on the CPU; its files are fsynced by the benchmark"

    def __init__(self, point: Point) -> None:
        import jax
        import jax.numpy as jnp
        import orbax.checkpoint as ocp

        self._ocp, self._point, self._path = ocp, point, f"{point.url}/orbax"
        self._checkpointer = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
        key = jax.random.key(0)
        self._state = {f"v{i}": jax.random.normal(key, (point.element_count,)) for i in range(point.variable_count)}
        self._change = jax.jit(lambda state: {name: value * 1.5 + 1.0 for name, value in state.items()})
        self._spoil = jax.jit(lambda state: {name: jnp.zeros_like(value) for name, value in state.items()})
        self._abstract = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in self._state.items()}
        self._jax = jax
        self._samples = Samples(lambda: list(self._state.values()))

    def change(self) -> None:
        self._state = self._jax.block_until_ready(self._change(self._state))
        self._samples.remember()

    def save(self, round_number: int) -> None:
        self._checkpointer.save(self._path, args=self._ocp.args.StandardSave(self._state), force=True)

    def finish(self) -> None:
        self._checkpointer.wait_until_finished()
        fsync_all(self._point.url)

    def spoil(self) -> None:
        self._state = self._jax.block_until_ready(self._spoil(self._state))

    def restore(self) -> None:
        restored: Any = self._checkpointer.restore(self._path, args=self._ocp.args.StandardRestore(self._abstract))
        self._state = self._jax.block_until_ready(restored)

    def check(self) -> None:
        self._samples.compare()

    def close(self) -> None:
        self._checkpointer.close()
