"""One worker of the chaos job: trains for ever, saves all the time, and checks what it was given back.

Each save carries in its metadata the digest of the values that the chief had at that step. After a restore every worker
compares it with the digest of what it now holds, so that each resume is proved bit for bit, on each worker, for
whatever checkpoint it came from.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import ckptflow

SAVE_EVERY = 2
GLOBAL_BATCH = 12


@dataclass(frozen=True)
class Task:
    """What a worker is to do; plain data, since it travels to another process."""

    url: str
    storage_options: dict[str, Any] = field(default_factory=dict)
    width: int = 384  # 0.7 MiB of weights, 2 MiB with Adam's: several shards for each worker
    stop_after_acknowledged: int | None = None


def digest_of(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> str:
    """A digest of every value that is saved, in the order in which the model lists its variables."""
    digest = hashlib.sha256()
    for variable in [*model.variables, *optimizer.variables]:
        digest.update(np.ascontiguousarray(variable.numpy()).tobytes())
    return digest.hexdigest()


def main() -> None:
    """The process's whole life; prints one JSON object a line for the supervisor."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    try:
        _train(Task(**json.loads(sys.argv[1])))
    except (tf.errors.OpError, ckptflow.PeerError) as error:
        _say(event="left", why=type(error).__name__)
        sys.exit(3)


def _train(task: Task) -> None:
    keras.utils.set_random_seed(11)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((64,)),
                keras.layers.Dense(task.width, activation="relu"),
                keras.layers.Dropout(0.2),
                keras.layers.Dense(task.width, activation="relu"),
                keras.layers.Dense(10),
            ]
        )
        optimizer = keras.optimizers.Adam(1e-3)
        optimizer.build(model.trainable_variables)
    step_on = _make_step(strategy, model, optimizer)
    with ckptflow.CheckpointManager(
        task.url,
        {"model": model, "optimizer": optimizer},
        strategy=strategy,
        keep=[ckptflow.KeepLast(2), ckptflow.KeepEvery(steps=40)],
        storage_options=task.storage_options,
        shard_bytes=256 << 10,
        memory_budget_bytes=1 << 20,
        commit_timeout_s=20,
    ) as manager:
        restored = manager.restore_latest()
        _check_restored(restored, model, optimizer)
        acknowledged = 0
        pending: ckptflow.PendingCheckpoint | None = None
        for step in itertools.count(restored.step + 1 if restored else 1):
            step_on(step)
            if step % SAVE_EVERY:
                continue
            if pending is not None:
                if task.stop_after_acknowledged is not None:
                    manager.wait()  # a collective, so that every worker counts the same
                    acknowledged += 1
                if pending.exception() is None:  # a failed save is raised by the next one
                    _say(event="acknowledged", step=pending.step)
            if task.stop_after_acknowledged is not None and acknowledged >= task.stop_after_acknowledged:
                break
            _say(event="saving", step=step)
            pending = manager.save(step, metadata={"digest": digest_of(model, optimizer)})
    _say(event="finished", step=step)


def _make_step(strategy: Any, model: keras.Model, optimizer: Any) -> Callable[[int], None]:
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")

    @tf.function
    def train_step(inputs: Any, labels: Any) -> None:
        def on_replica(inputs: Any, labels: Any) -> None:
            with tf.GradientTape() as tape:
                losses = loss_of(labels, model(inputs, training=True))
                loss = tf.nn.compute_average_loss(losses, global_batch_size=GLOBAL_BATCH)
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

        strategy.run(on_replica, args=(inputs, labels))

    worker, world_size = strategy.cluster_resolver.task_id, strategy.num_replicas_in_sync

    def step_on(step: int) -> None:
        rng = np.random.default_rng(step)
        inputs = np.array_split(rng.random((GLOBAL_BATCH, 64), np.float32), world_size)[worker]
        labels = np.array_split(rng.integers(0, 10, GLOBAL_BATCH), world_size)[worker]
        train_step(tf.constant(inputs), tf.constant(labels, tf.int32))

    return step_on


def _check_restored(restored: ckptflow.Checkpoint | None, model: keras.Model, optimizer: Any) -> None:
    if restored is None:
        _say(event="restored", step=0, incarnation=0)
        return
    if digest_of(model, optimizer) != restored.metadata["digest"]:
        _say(event="wrong", step=restored.step, incarnation=restored.incarnation)
        sys.exit(4)
    _say(event="restored", step=restored.step, incarnation=restored.incarnation)


def _say(**event: Any) -> None:
    print(json.dumps(event), flush=True)
