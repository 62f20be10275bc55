"""What the workers of test_inputs.py run: loops that print each element of the input that they have seen."""

from __future__ import annotations

import json
import os
from typing import Any

import tensorflow as tf

import ckptflow

STEPS = 30
SAVE_EVERY = 4


def dataset(worker: int, world_size: int) -> tf.data.Dataset:
    """Some epochs of shuffled batches, in an order that the seed decides, other ones for each worker."""
    tf.random.set_seed(5)  # a shuffle's order hangs on the process's seed, too, which other tests may have set
    return tf.data.Dataset.range(36).shard(world_size, worker).shuffle(7, seed=11 + worker).batch(3).repeat()


class Position:
    """A position in Python: how many files this worker has read."""

    def __init__(self) -> None:
        self.files = 0

    def get_state(self) -> Any:
        return {"files": self.files}

    def set_state(self, state: Any) -> None:
        self.files = state["files"]

    def resize(self, states: list[Any], world_size: int, index: int) -> Any:
        total = sum(state["files"] for state in states)
        return {"files": total // world_size + (index < total % world_size)}


def read_and_save() -> None:
    """An iterator of this worker's own, from which the replicas are fed, and a position in Python."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    worker, world_size = strategy.cluster_resolver.task_id, strategy.num_replicas_in_sync
    own = iter(dataset(worker, world_size))
    with strategy.scope():
        total = tf.Variable(0, dtype=tf.int64)
    position = Position()
    state = {"total": total, "position": ckptflow.PerWorker(position)}
    if not os.environ.get("WITHOUT_ITERATORS"):
        state["own"] = ckptflow.PerWorker(own)
    with ckptflow.CheckpointManager(os.environ["ROOT"], state, strategy=strategy) as manager:
        try:
            restored = manager.restore_latest()
        except ckptflow.StateMismatchError as error:
            print(f"refused: {error}", flush=True)
            return
        first = restored.step + 1 if restored else 1
        print(json.dumps({"first": first, "files": position.files}), flush=True)
        for step in range(first, STEPS + 1):
            batch = strategy.experimental_distribute_values_from_function(lambda context: next(own))
            (seen,) = strategy.experimental_local_results(batch)
            position.files += 1 + worker
            total.assign_add(1)
            print(json.dumps({"step": step, "seen": seen.numpy().tolist(), "files": position.files}), flush=True)
            if step % SAVE_EVERY == 0:
                manager.save(step).result()


def replicas() -> None:
    """Two replicas in one process, and the strategy's own iterator, from datasets made by a function."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    options = tf.distribute.InputOptions(
        experimental_fetch_to_device=False,
        experimental_replication_mode=tf.distribute.InputReplicationMode.PER_REPLICA,
    )
    made: list[int] = []

    def make(context: tf.distribute.InputContext) -> tf.data.Dataset:
        made.append(len(made))
        return dataset(made[-1] % 2, 2)

    iterator = iter(strategy.distribute_datasets_from_function(make, options))
    seen = []
    with ckptflow.CheckpointManager(
        os.environ["ROOT"], {"data": ckptflow.PerWorker(iterator)}, strategy=strategy
    ) as manager:
        restored = manager.restore_latest()
        for step in range(restored.step + 1 if restored else 1, STEPS + 1):
            seen.append([part.numpy().tolist() for part in strategy.experimental_local_results(next(iterator))])
            if step == 13 and not restored:
                manager.save(step)
                break
    print(json.dumps({"seen": seen}))


def unmarked() -> None:
    """An iterator that several workers have, not marked as each one's own."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    try:
        ckptflow.CheckpointManager(os.environ["ROOT"], {"data": iter(dataset(0, 1))}, strategy=strategy)
    except ckptflow.UnsupportedStateError as error:
        print(f"refused: {error}")
