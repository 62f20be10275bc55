"""What the processes of test_unchanged_kinds.py run: every kind of state, saved again and again while parts change.

Each state is saved by two managers, one that copies and one that sends everything, and both checkpoints are compared
bit for bit. What is named "still …" is left alone, and must be copied once that is known; what is named "moving …" is
changed before each save, and must never be.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import ml_dtypes
import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor

from ckptflow import CheckpointManager, KeepLast, open_checkpoint

ROOT = Path(os.environ.get("ROOT", "."))
SHARD_BYTES = 2**18
LENGTH = 2**15  # elements: what has less than 64 KiB is not watched
LARGE = 2**17  # for what is with no others: for less than 1 MiB in all no shards are made anew
SAVES = 6  # until what nobody calls frozen is known, apart, and in both families, a copy-on-read variable too
STILL = ("still", "adapted/kernel")  # what a LoRA layer adapts
MOVING = ("moving", "lora_kernel")
HASHED = ("copy-on-read", "strings", "table", "words", "servers")  # what no memory tells of


class Twins:
    """Two managers of one state."""

    def __init__(self, root: Path, state: dict[str, Any], strategy: Any = None) -> None:
        self.state = state
        self._managers = [
            CheckpointManager(
                root / name,
                state,
                strategy=strategy,
                keep=[KeepLast(3)],
                shard_bytes=SHARD_BYTES,
                memory_budget_bytes=2**22,
                reuse_unchanged=name == "copies",
            )
            for name in ("copies", "whole")
        ]
        self._restored = [manager.restore_latest() for manager in self._managers]
        self._step = self._restored[0].step if self._restored[0] else 0

    def save(self) -> tuple[set[str], set[str]]:
        """The names of all, and of what was copied; fails where the two checkpoints differ."""
        self._step += 1
        copies, whole = [manager.save(self._step).result().url for manager in self._managers]
        with open_checkpoint(copies) as first, open_checkpoint(whole) as second:
            assert list(first) == list(second)
            for (name, left), right in zip(
                first.read(list(first)).items(), second.read(list(first)).values(), strict=True
            ):
                assert (left.dtype, left.shape, to_bytes(left)) == (right.dtype, right.shape, to_bytes(right)), name
            assert all(shard.copied_from is None for shard in second.manifest.shards)
            copied = {i for i, shard in enumerate(first.manifest.shards) if shard.copied_from is not None}
            whole_names = {t.name for t in first.manifest.tensors if {piece.shard for piece in t.slices} <= copied}
            return set(first), whole_names

    def hashed(self) -> set[str]:
        """The names of what is read at each save, though it is not sent."""
        incarnation = self._managers[0].session._footing.incarnation
        assert incarnation is not None
        watched = incarnation._saver.unchanged._watched
        return {name for name, each in watched.items() if each.is_still and each.references is None}

    def close(self) -> None:
        for manager in self._managers:
            manager.close()


def to_bytes(array: Any) -> object:
    return array.tolist() if array.dtype == object else array.tobytes()


def run(
    root: Path, make: Callable[[], dict[str, Any]], change: Callable[[dict[str, Any]], object], strategy: Any = None
) -> None:
    """Saves, until all that is still is copied; a restart into a new state; saves that copy it at once."""
    for saves, learning in ((SAVES, SAVES - 1), (2, 0)):
        twins = Twins(root, make(), strategy)
        for number in range(saves):
            change(twins.state)
            every, copied = twins.save()
            assert not {name for name in copied if any(word in name for word in MOVING)}, copied
            still = {name for name in every if any(word in name for word in STILL)}
            assert still
            assert number < learning or still <= copied, (number, sorted(still - copied))
        unexpected = {name for name in twins.hashed() if not any(word in name for word in HASHED)}
        assert not unexpected, unexpected
        twins.close()
    print("well")


# ---- without a strategy

WORDS = [f"word {i}" for i in range(100_000)]
DTYPES = {
    np.dtype(name): name for name in ("bool", "int8", "int32", "uint16", "float16", "float32", "float64", "complex64")
} | {np.dtype(getattr(ml_dtypes, name)): name for name in ("bfloat16", "float8_e5m2", "float8_e4m3fn", "int4", "uint4")}


def _random(dtype: Any, length: int, seed: int) -> Any:
    """Any bit pattern, NaN payloads too."""
    random = np.random.default_rng(seed)
    if DTYPES[dtype] in ("bool", "int4", "uint4"):
        return random.integers(0, 2, length).astype(np.int8).astype(dtype)
    return np.frombuffer(random.bytes(length * dtype.itemsize), dtype)


def _dtypes(length: int) -> tf.Module:
    module = tf.Module()
    module.held = {
        f"{kind} {name}": tf.Variable(_random(dtype, length // dtype.itemsize, 1))
        for dtype, name in DTYPES.items()
        for kind in ("still", "moving")
    }
    module.held |= {f"{kind} copy-on-read": tf.Variable(tf.zeros([2**19])) for kind in ("still", "moving")}
    for kind in ("still", "moving"):
        module.held[f"{kind} copy-on-read"][:3].assign([1.0, 2.0, 3.0])
        module.held[f"{kind} strings"] = tf.Variable(tf.constant(WORDS[:5_000]))
    module.held |= {"moving scalar": tf.Variable(0.0), "empty": tf.Variable(tf.zeros([0, 3]))}
    module.held["moving xla"] = tf.Variable(tf.zeros([LENGTH]))
    return module


def _ones(shape: Any, dtype: Any) -> Any:
    return tf.cast(tf.ones(shape), dtype)


class Odd(keras.layers.Layer):  # type: ignore[misc]
    """Weights as small as can be, of odd dtypes."""

    def build(self, shape: Any) -> None:
        self.scalar = self.add_weight(shape=(), name="scalar")
        self.none = self.add_weight(shape=(0, 4), name="none")
        self.half = self.add_weight(shape=(3,), dtype="bfloat16", name="half")
        self.eighth = self.add_weight(shape=(5,), dtype="float8_e4m3fn", name="eighth", initializer=_ones)

    def call(self, x: Any) -> Any:
        return x


def _keras_models() -> dict[str, Any]:
    layers = keras.layers
    lora = keras.Sequential([keras.Input((64,)), layers.Dense(1024, name="adapted"), layers.Dense(1, name="h")])
    lora.layers[0].enable_lora(2)
    quantized = keras.Sequential([keras.Input((64,)), layers.Dense(1024, name="int8"), layers.Dense(1, name="h")])
    quantized.quantize("int8")
    quantized.layers[0].enable_lora(2)
    odd = keras.Sequential([keras.Input((8,)), Odd(name="still_odd")])
    odd.trainable = False
    return {"lora": lora, "quantized": quantized, "odd": odd}


def _old_model() -> Any:
    import tf_keras

    layers = tf_keras.layers
    frozen = layers.Dense(256, trainable=False, name="still_frozen")
    model = tf_keras.Sequential([layers.InputLayer(64), frozen, layers.BatchNormalization(name="n"), layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def _alone() -> dict[str, Any]:
    words, moving = keras.layers.StringLookup(vocabulary=WORDS), keras.layers.StringLookup(vocabulary=WORDS[:5_000])
    tables = {
        name: tf.lookup.experimental.DenseHashTable(tf.int64, tf.int64, -1, -2, -3) for name in ("still", "moving")
    }
    for table in tables.values():
        table.insert(tf.range(LENGTH, dtype=tf.int64), tf.range(LENGTH, dtype=tf.int64))
    models = _keras_models()
    for name in ("lora", "quantized"):
        models[name].compile("sgd", "mse")
    return {
        "dtypes": _dtypes(2**17),
        "still words": words,
        "moving words": moving,
        "still table": tables["still"],
        "moving table": tables["moving"],
        "moving position": iter(tf.data.Dataset.range(10**6)),
        "old": _old_model(),
        **models,
    }


@tf.function(jit_compile=True)
def _compiled(variable: Any) -> None:
    variable.assign_add(tf.ones_like(variable))


def _change(state: dict[str, Any]) -> None:
    step = int(next(state["moving position"]))
    held = state["dtypes"].held
    for dtype, name in DTYPES.items():
        variable = held[f"moving {name}"]
        variable.assign(_random(dtype, variable.shape[0], step + 2))
    held["moving copy-on-read"][step : step + 2].assign([step + 4.0, step + 5.0])
    held["moving strings"].scatter_nd_update([[step]], ["another"])
    held["moving scalar"].assign_add(1.0)
    _compiled(held["moving xla"])
    state["moving words"].set_vocabulary([*WORDS[:5_000], *(f"new {i}" for i in range(step + 1))])
    state["moving table"].insert(tf.constant([step + 10**6], tf.int64), tf.constant([step], tf.int64))
    inputs, targets = np.ones((8, 64), np.float32), np.ones((8, 1), np.float32)
    for name in ("old", "lora", "quantized"):
        state[name].train_on_batch(inputs, targets)


def alone() -> None:
    """All that one process has without a strategy."""
    run(ROOT, _alone, _change)


# ---- several devices, and several processes

ON_READ = {
    name: {"synchronization": tf.VariableSynchronization.ON_READ, "aggregation": how, "trainable": False}
    for name, how in {
        "sum": tf.VariableAggregation.SUM,
        "mean": tf.VariableAggregation.MEAN,
        "first": tf.VariableAggregation.ONLY_FIRST_REPLICA,
    }.items()
}
ON_WRITE = {"mirrored": {}, "averaged": {"aggregation": tf.VariableAggregation.MEAN}}


def replicated() -> None:
    """Mirrored variables of all kinds and a model that is trained; blocks of a mesh."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

    def make() -> dict[str, Any]:
        with strategy.scope():
            found = {
                f"{kind} {name}": tf.Variable(tf.zeros([LARGE]), **options)
                for name, options in (ON_READ | ON_WRITE).items()
                for kind in ("still", "moving")
            }
            return found | {"old": _old_model()}

    def one_step(state: dict[str, Any]) -> None:
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        for name in (*ON_READ, "averaged"):
            state[f"moving {name}"].assign_add(tf.fill([LARGE], tf.cast(replica + 1, tf.float32)))

    def change(state: dict[str, Any]) -> None:
        strategy.run(one_step, args=({name: v for name, v in state.items() if name != "old"},))
        state["moving mirrored"].assign_add(tf.ones([LARGE]))
        state["old"].fit(np.ones((8, 64), np.float32), np.ones((8, 1), np.float32), batch_size=8, verbose=0)

    run(ROOT / "mirrored", make, change, strategy)
    mesh = dtensor.create_mesh([("x", 2), ("y", 2)], devices=[f"CPU:{i}" for i in range(4)])
    run(ROOT / "mesh", lambda: _blocks(mesh), _change_blocks)


def _blocks(mesh: Any) -> dict[str, Any]:
    def block(*axes: str) -> Any:
        whole = dtensor.copy_to_mesh(tf.zeros([LARGE // 64, 64]), dtensor.Layout.replicated(mesh, 2))
        return dtensor.DVariable(dtensor.relayout(whole, dtensor.Layout(list(axes), mesh)))

    unsharded = dtensor.UNSHARDED
    return {
        f"{kind} {number}": block(*axes)
        for number, axes in enumerate([("x", "y"), ("y", unsharded), (unsharded, unsharded)])
        for kind in ("still", "moving")
    }


def _change_blocks(state: dict[str, Any]) -> None:
    for name, variable in state.items():
        if name.startswith("moving"):
            variable.assign_add(
                dtensor.relayout(
                    dtensor.call_with_layout(
                        tf.ones, dtensor.Layout.replicated(variable.layout.mesh, 2), shape=variable.shape
                    ),
                    variable.layout,
                )
            )


def servers() -> None:
    """Parts on two parameter servers: the chief pulls them, and their hashes decide."""
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if resolver.task_type != "chief":
        tf.distribute.Server(resolver.cluster_spec(), job_name=resolver.task_type, task_index=resolver.task_id).join()
    partitioner = tf.distribute.experimental.partitioners.FixedShardsPartitioner(2)
    strategy = tf.distribute.ParameterServerStrategy(resolver, variable_partitioner=partitioner)

    def make() -> dict[str, Any]:
        with strategy.scope():
            return {f"{kind} on servers": tf.Variable(tf.zeros([2**18, 2])) for kind in ("still", "moving")}

    def change(state: dict[str, Any]) -> None:
        part = state["moving on servers"].variables[1]
        part.assign_add(tf.ones_like(part))

    run(ROOT, make, change, strategy)
