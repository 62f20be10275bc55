"""What the processes of `test_distributed` run."""

from __future__ import annotations

import os
import signal
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from ckptflow.errors import PeerError
from ckptflow.peers.cluster import find_cluster
from ckptflow.state.assign import match
from ckptflow.state.capture import capture
from ckptflow.state.kinds import raw_variable
from ckptflow.state.leaves import host_array
from ckptflow.state.tree import as_mapping, walk
from tests.state import roundtrip

ON_READ = tf.VariableSynchronization.ON_READ
AGGREGATIONS = {
    "sum": tf.VariableAggregation.SUM,
    "mean": tf.VariableAggregation.MEAN,
    "first": tf.VariableAggregation.ONLY_FIRST_REPLICA,
}
KINDS = [
    (how, dtype)
    for how in AGGREGATIONS
    for dtype in ("float32", "int64", "float16")
    if (how, dtype) != ("mean", "int64")
]


def on_read_variables() -> dict[str, Any]:
    """One variable per replica for every way to aggregate, by "how dtype"."""
    return {
        f"{how} {dtype}": tf.Variable(
            tf.zeros([3], dtype), aggregation=AGGREGATIONS[how], synchronization=ON_READ, trainable=False
        )
        for how, dtype in KINDS
    }


def _keras_models() -> dict[str, Any]:
    import keras
    import tf_keras

    layers = keras.layers
    new = keras.Sequential([layers.Dense(3), layers.BatchNormalization(), layers.Dropout(0.2), layers.Dense(1)])
    new.compile("adam", "mse")
    old_layers = [tf_keras.layers.Dense(3), tf_keras.layers.BatchNormalization(), tf_keras.layers.Dense(1)]
    old = tf_keras.Sequential(old_layers)
    old.build((None, 4))
    old.compile("adam", "mse")
    return {"new": new, "old": old}


def mirrored() -> None:
    """Two replicas in one process: Keras of both kinds trained, and restored inside and outside the scope."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

    def make() -> dict[str, Any]:
        with strategy.scope():
            module = tf.Module()
            module.held = on_read_variables()
            large = tf.Variable(tf.random.normal([200, 200]))
            return {"on_read": module, "large": large, "generator": tf.random.Generator.from_seed(3), **_keras_models()}

    def add(state: dict[str, Any]) -> None:
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        for variable in state["on_read"].held.values():
            variable.assign_add(tf.cast(tf.fill([3], replica * 2 + 1), variable.dtype))

    state = make()
    strategy.run(add, args=(state,))
    inputs, targets = np.ones((8, 4), np.float32), np.ones((8, 1), np.float32)
    for name in ("new", "old"):
        state[name].fit(inputs, targets, batch_size=8, epochs=2, verbose=0)
    snapshot = capture(walk(as_mapping(state)), is_chief=True)
    saved = roundtrip.of_snapshot(snapshot)
    held = {spec.name: data for spec, data in zip(saved.specs, saved.data, strict=True)}
    assert all(spec.components is None for spec in saved.specs)
    for how, expected in (("sum", 4), ("mean", 2), ("first", 1)):
        assert held[f"on_read/held/{how} float32"].view(np.float32).tolist() == [expected] * 3

    state["new"].fit(inputs, targets, batch_size=8, verbose=0)
    state["large"].assign_add(tf.ones([200, 200]))
    again = roundtrip.of_snapshot(snapshot)
    assert all((left == right).all() for left, right in zip(saved.data, again.data, strict=True))

    for inside in (False, True):
        fresh = make()
        if inside:
            with strategy.scope():
                roundtrip.restore(fresh, saved)
                roundtrip.assert_equal(saved, roundtrip.save(fresh))
                assert find_cluster().exchange(b"3", "a test") == [b"3"]
        else:
            roundtrip.restore(fresh, saved)
            roundtrip.assert_equal(saved, roundtrip.save(fresh))
        _check_replicas(fresh)
    plain = {"large": tf.Variable(tf.zeros([200, 200])), "on_read": tf.Module()}
    plain["on_read"].held = {f"{how} {dtype}": tf.Variable(tf.zeros([3], dtype)) for how, dtype in KINDS}
    roundtrip.fill(match(walk(plain), saved.offer(), partial=True), saved)
    assert (plain["large"].numpy() == fresh["large"].values[1].numpy()).all()
    assert plain["on_read"].held["sum int64"].numpy().tolist() == [4] * 3


def _check_replicas(state: dict[str, Any]) -> None:
    parts = {name: [part.numpy() for part in variable.values] for name, variable in state["on_read"].held.items()}
    assert [part.tolist() for part in parts["sum float32"]] == [[4.0] * 3, [0.0] * 3]
    assert [part.tolist() for part in parts["mean float32"]] == [[2.0] * 3] * 2
    assert [part.tolist() for part in parts["first int64"]] == [[1] * 3] * 2
    first, second = state["large"].values
    assert (first.numpy() == second.numpy()).all()
    addresses = {host_array(part.read_value()).ctypes.data for part in (first, second)}
    assert len(addresses) == 2  # no buffer is shared between replicas
    assert raw_variable(state["new"].layers[0].kernel).values[1].numpy().any()


def workers() -> None:
    """Several processes: rows, names, components, and what a restore gives each worker."""
    folder = Path(os.environ["FOLDER"])
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        module = tf.Module()
        module.held = on_read_variables()
        module.mirrored = tf.Variable([1.0, 2.0])
        inside = find_cluster()
    cluster = find_cluster(strategy)
    assert (cluster.worker, cluster.world_size) == (inside.worker, inside.world_size)
    for size in (0, 1, 30_000):
        messages = cluster.exchange(b'"%s%d"' % (b"x" * size * cluster.worker, cluster.worker), "a test")
        assert messages == [b'"%s%d"' % (b"x" * size * worker, worker) for worker in range(cluster.world_size)]
    with strategy.scope():
        assert inside.exchange(b"5", "a test") == [b"5"] * cluster.world_size

    for variable in module.held.values():  # a different component on each worker, set without a collective
        variable.values[0].assign(tf.cast(tf.fill([3], cluster.worker * 2 + 1), variable.dtype))
    tree = walk({"module": module})
    snapshot = capture(tree, is_chief=cluster.is_chief)
    names = zlib.crc32("\n".join(spec.name for spec in tree.specs).encode())
    assert len(set(cluster.exchange(b"%d" % names, "a test"))) == 1
    assert {spec.name.split("/")[-1].split()[0]: spec.components for spec in tree.specs} == {
        **{how: how for how in AGGREGATIONS},
        "mirrored": None,
    }
    saved = roundtrip.of_snapshot(snapshot)
    saved.write(folder / f"worker-{cluster.worker}")
    cluster.exchange(b"1", "a test")  # all have written
    stacked = stack([roundtrip.read(folder / f"worker-{worker}") for worker in range(cluster.world_size)])
    for variable in module.held.values():
        variable.values[0].assign(tf.zeros_like(variable.values[0]))
    roundtrip.fill(match(tree, stacked.offer(components=True)), stacked)
    local = {name: variable.values[0].numpy().tolist() for name, variable in module.held.items()}
    total = sum(worker * 2 + 1 for worker in range(cluster.world_size))
    assert local["sum int64"] == [total if cluster.is_chief else 0] * 3
    assert local["mean float32"] == [total / cluster.world_size] * 3
    assert local["first float32"] == [1.0] * 3
    assert module.held["sum int64"].read_value().numpy().tolist() == [total] * 3  # a collective, on all workers
    print("done")


def stack(components: list[roundtrip.Saved]) -> roundtrip.Saved:
    """One checkpoint of what each worker held, as storage has it: components along a new first axis."""
    first = components[0]
    shapes, data = [], []
    for place, spec in enumerate(first.specs):
        several = components if spec.components else components[:1]
        shapes.append((len(several), *first.shapes[place]) if spec.components else first.shapes[place])
        data.append(np.concatenate([saved.data[place] for saved in several]))
    return roundtrip.Saved(first.specs, shapes, data, first.python_state, first.models)


def dying_peer() -> None:
    """Worker 1 kills itself; worker 0 is told, and can still read what is local."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    cluster = find_cluster(strategy)
    with strategy.scope():
        variable = tf.Variable([1.0, 2.0])
    cluster.exchange(b"1", "a test")
    if cluster.worker == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        cluster.exchange(b"2", "a test")
    except PeerError as error:
        message = str(error)
        snapshot = capture(walk({"variable": variable}), is_chief=True)
        assert snapshot.data(0).view(np.float32).tolist() == [1.0, 2.0]
        print("told:", message, flush=True)
        os._exit(0)  # TensorFlow's own end would wait for the peer
    raise SystemExit("no PeerError")
