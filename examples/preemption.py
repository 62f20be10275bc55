"""Training that can be told to leave at any time: on SIGTERM all workers save one last step and end with exit code 75.

python -m examples.preemption runs/spot           # one process; or on every machine, with TF_CONFIG, the same
kill -TERM <its process id>                       # saves, ends with 75
python -m examples.preemption runs/spot           # goes on with the very next step
"""

from __future__ import annotations

import argparse
import logging
import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import ckptflow

GLOBAL_BATCH = 32


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="where the checkpoints go: a folder, s3://bucket/prefix or gs://bucket/prefix")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--evaluate-every", type=int, default=250)
    return parser.parse_args()


def batch_of(number: int, worker: int, world_size: int) -> tuple[Any, Any]:
    """This worker's share of a batch that depends on its number alone, so that a resumed run sees what is next."""
    inputs = np.random.default_rng(number).standard_normal((GLOBAL_BATCH, 16), np.float32)
    share = np.array_split(inputs, world_size)[worker]
    return tf.constant(share), tf.constant(share.sum(axis=1, keepdims=True))


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    is_one_of_many = "TF_CONFIG" in os.environ
    strategy = tf.distribute.MultiWorkerMirroredStrategy() if is_one_of_many else tf.distribute.get_strategy()
    worker = strategy.cluster_resolver.task_id if is_one_of_many else 0
    world_size = strategy.num_replicas_in_sync

    with strategy.scope():
        model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(1)])
        optimizer = keras.optimizers.Adam(1e-3)
        optimizer.build(model.trainable_variables)

    @tf.function
    def train_step(inputs: Any, targets: Any) -> None:
        def on_replica(inputs: Any, targets: Any) -> None:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum((model(inputs, training=True) - targets) ** 2) / GLOBAL_BATCH
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

        strategy.run(on_replica, args=(inputs, targets))

    def evaluate(step: int, watcher: ckptflow.PreemptionWatcher) -> float:
        losses = []
        for number in range(8):
            inputs, targets = batch_of(10**9 + number, 0, 1)
            losses.append(float(tf.reduce_mean((model(inputs) - targets) ** 2)))
            watcher.check(step)  # an evaluation may take longer than the grace period
        return float(np.mean(losses))

    state = {"model": model, "optimizer": optimizer}
    with (
        ckptflow.CheckpointManager(arguments.url, state, strategy=strategy) as manager,
        ckptflow.PreemptionWatcher(manager, grace_period_s=30) as watcher,
    ):
        restored = manager.restore_latest()
        first = restored.step + 1 if restored else 1
        print(f"process {os.getpid()} begins with step {first}", flush=True)
        for step in range(first, arguments.steps + 1):
            train_step(*batch_of(step, worker, world_size))
            watcher.check(step)
            if step % arguments.evaluate_every == 0:
                print(f"step {step}: loss {evaluate(step, watcher):.4f}", flush=True)
            if step % arguments.save_every == 0:
                manager.save(step)
    print("finished", flush=True)


if __name__ == "__main__":
    main()
