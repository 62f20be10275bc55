"""Orbax on JAX's CPU backend: the same bytes in the framework next door."""

from __future__ import annotations

from typing import Any

from benchmarks.meters import fsync_all
from benchmarks.peers.base import Digests, Peer, Places, Point


class OrbaxAsync(Peer):
    """`AsyncCheckpointer` with its standard handler (OCDBT)."""

    note = "JAX arrays on the CPU; its files are fsynced by the benchmark"

    def __init__(self, point: Point) -> None:
        import jax
        import jax.numpy as jnp
        import orbax.checkpoint as ocp

        self._ocp, self._point, self._places = ocp, point, Places(point.url)
        self._checkpointer = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
        key = jax.random.key(0)
        self._state = {f"v{i}": jax.random.normal(key, (point.element_count,)) for i in range(point.variable_count)}
        self._abstract = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in self._state.items()}
        self._jax, self._zeros = jax, jnp.zeros_like
        self._digests = Digests(lambda: list(self._state.values()))

    def change(self) -> None:
        self._state = self._jax.block_until_ready({name: value * 1.5 + 1.0 for name, value in self._state.items()})
        self._digests.remember()

    def save(self, round_number: int) -> None:
        self._checkpointer.save(self._places.next(), args=self._ocp.args.StandardSave(self._state))

    def finish(self) -> None:
        self._checkpointer.wait_until_finished()
        fsync_all(self._point.url)

    def tidy(self) -> None:
        self._places.remove_old()

    def spoil(self) -> None:
        self._state = self._jax.block_until_ready({name: self._zeros(value) for name, value in self._state.items()})

    def restore(self) -> None:
        restored: Any = self._checkpointer.restore(
            self._places.now, args=self._ocp.args.StandardRestore(self._abstract)
        )
        self._state = self._jax.block_until_ready(restored)

    def check(self) -> None:
        self._digests.compare()

    def close(self) -> None:
        self._checkpointer.close()
