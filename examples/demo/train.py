"""One worker of a multi-worker job that saves with ckptflow: the same script on every machine, told apart by TF_CONFIG.

Whatever stops it, start all workers again with the same arguments: they go on from the newest checkpoint that is valid.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import ckptflow

GLOBAL_BATCH = 64
HELD_OUT = 297  # of the 1,797 digits, the last ones


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="where the checkpoints go: a folder, s3://bucket/prefix or gs://bucket/prefix")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--save-every", type=int, default=20)
    parser.add_argument("--width", type=int, default=1536, help="of the two wide layers: how large a checkpoint is")
    return parser.parse_args()


def build_model(width: int) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(width, activation="relu"),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(width, activation="relu"),
            keras.layers.Dense(10),
        ]
    )


def batch_of(step: int, images: Any, labels: Any, worker: int, world_size: int) -> tuple[Any, Any]:
    """This worker's share of the batch of `step`: what is read depends on the step alone, so that it can be resumed."""
    chosen = np.random.default_rng(step).choice(len(images) - HELD_OUT, GLOBAL_BATCH, replace=False)
    share = np.array_split(chosen, world_size)[worker]
    return tf.constant(images[share]), tf.constant(labels[share])


def main() -> None:
    arguments = parse_arguments()
    keras.utils.set_random_seed(7)
    tf.config.experimental.enable_op_determinism()  # so that a resumed run can be compared bit by bit with another
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    worker, world_size = strategy.cluster_resolver.task_id, strategy.num_replicas_in_sync
    digits = load_digits()
    images, labels = (digits.data / 16).astype("float32"), digits.target.astype("int32")

    with strategy.scope():
        model = build_model(arguments.width)
        optimizer = keras.optimizers.Adam(1e-3)
        optimizer.build(model.trainable_variables)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")

    @tf.function
    def train_step(batch_images: Any, batch_labels: Any) -> Any:
        def on_replica(batch_images: Any, batch_labels: Any) -> Any:
            with tf.GradientTape() as tape:
                losses = loss_of(batch_labels, model(batch_images, training=True))
                loss = tf.nn.compute_average_loss(losses, global_batch_size=GLOBAL_BATCH)
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            return loss

        return strategy.reduce("SUM", strategy.run(on_replica, args=(batch_images, batch_labels)), axis=None)

    def accuracy() -> float:
        logits = model(images[-HELD_OUT:], training=False)
        return float(np.mean(np.argmax(logits, axis=1) == labels[-HELD_OUT:]))

    with ckptflow.CheckpointManager(
        arguments.url,
        {"model": model, "optimizer": optimizer},
        strategy=strategy,
        keep=[ckptflow.KeepLast(2), ckptflow.KeepBest("accuracy", n=1, mode="max")],
        shard_bytes=4 << 20,
    ) as manager:
        restored = manager.restore_latest()
        print(f"resumed from step {restored.step}" if restored else "nothing to resume from: step 0", flush=True)
        for step in range(restored.step + 1 if restored else 1, arguments.steps + 1):
            loss = train_step(*batch_of(step, images, labels, worker, world_size))
            if step % arguments.save_every == 0:
                measured = {"loss": float(loss), "accuracy": accuracy()}
                manager.save(step, metrics=measured)
                print(f"step {step}: loss {measured['loss']:.4f}, accuracy {measured['accuracy']:.1%}", flush=True)
    print("finished; every save is committed", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (tf.errors.OpError, ckptflow.PeerError) as error:
        sys.exit(f"another worker is gone ({type(error).__name__}); start all workers again to resume")
