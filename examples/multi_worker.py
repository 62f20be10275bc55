"""Several machines, a loop of your own: MultiWorkerMirroredStrategy, the same command on each, told apart by TF_CONFIG.

python -m examples.multi_worker --url runs/mw            # without TF_CONFIG: one worker, to try it

TF_CONFIG='{"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}, "task": {"type": "worker", "index": 0}}' \\
    python -m examples.multi_worker --url s3://bucket/mw # on the first machine; "index": 1 on the second

Stop any of them, or all, in any way; start all again, and they go on. The exit code says what a supervisor should do:
0 finished; 75 told to leave by SIGTERM, and 74 another worker is gone: start all again; 76 another job has taken the
root over: do not. examples/kubernetes.yaml and examples/slurm.sh make TF_CONFIG and go by these codes.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import keras
import tensorflow as tf
from sklearn.datasets import load_digits

import ckptflow

BATCH_SIZE = 64  # of all workers together
PEER_IS_GONE, IS_FENCED = 74, 76  # 75 is PreemptionWatcher's


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="runs/multi-worker", help="where all workers reach it: s3://…, gs://…, NFS")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--save-every", type=int, default=100, help="steps")
    return parser.parse_args()


def train(arguments: argparse.Namespace) -> None:
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    worker = strategy.cluster_resolver.task_id or 0
    world_size = len(strategy.cluster_resolver.cluster_spec().as_dict().get("worker", ["this one"]))
    with strategy.scope():
        model = keras.Sequential(
            [keras.Input((64,)), keras.layers.Dense(128, "relu"), keras.layers.Dropout(0.3), keras.layers.Dense(10)]
        )
        optimizer = keras.optimizers.Adam(1e-3)
        optimizer.build(model.trainable_variables)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")

    digits = load_digits()
    data = tf.data.Dataset.from_tensor_slices(((digits.data / 16).astype("float32"), digits.target))
    data = data.shard(world_size, worker).shuffle(1800, seed=7).repeat()
    data = data.batch(BATCH_SIZE // strategy.num_replicas_in_sync)
    batches = iter(data)

    @tf.function
    def train_step(batch: Any) -> Any:
        def on_replica(images: Any, labels: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = loss_of(labels, model(images, training=True)) / BATCH_SIZE
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            return loss

        return strategy.reduce("SUM", strategy.run(on_replica, args=batch), axis=None)

    # What this worker has read is its own, unlike the model, which is the same on all.
    state = {"model": model, "optimizer": optimizer, "batches": ckptflow.PerWorker(batches)}
    with (
        ckptflow.CheckpointManager(arguments.url, state, strategy=strategy) as manager,
        ckptflow.PreemptionWatcher(manager, grace_period_s=30) as watcher,
    ):
        restored = manager.restore_latest()
        first = restored.step + 1 if restored else 1
        print(f"process {os.getpid()}, worker {worker} of {world_size}, goes on after step {first - 1}", flush=True)
        for step in range(first, arguments.steps + 1):
            of_each_replica = strategy.experimental_distribute_values_from_function(lambda _: next(batches))
            loss = train_step(of_each_replica)
            watcher.check(step)
            if step % arguments.save_every == 0 or step == arguments.steps:
                manager.save(step, metrics={"loss": float(loss)})
                print(f"step {step}: loss {float(loss):.4f}", flush=True)
    print(f"finished after step {arguments.steps}", flush=True)


def main() -> int:
    arguments = parse_arguments()
    # Only for a run that can be compared bit for bit with another; going on works without these two.
    keras.utils.set_random_seed(7)
    tf.config.experimental.enable_op_determinism()
    try:
        train(arguments)
    except ckptflow.FencedError as error:
        print(f"stopped: {error}", flush=True)
        return IS_FENCED
    except (ckptflow.PeerError, tf.errors.UnavailableError, tf.errors.InternalError, tf.errors.AbortedError) as error:
        print(f"another worker is gone, start all again: {error}", flush=True)
        return PEER_IS_GONE
    return 0


if __name__ == "__main__":
    sys.exit(main())
