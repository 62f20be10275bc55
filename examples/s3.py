"""Checkpoints in S3, or in any server that speaks S3: a URL, and credentials where the AWS command line finds them.

python -m examples.s3 --url s3://bucket/run-1                                # AWS: environment, ~/.aws, instance role
AWS_ENDPOINT_URL=http://127.0.0.1:9000 python -m examples.s3 --url s3://…    # another server: MinIO, Ceph, SeaweedFS
python -m examples.s3 --url gs://bucket/run-1                                # the same for Google Cloud Storage

Try your bucket first: `ckptflow doctor s3://bucket/run-1`. Kill it at any moment, start it again, and it goes on.
"""

from __future__ import annotations

import argparse
import os

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import ckptflow

BATCH_SIZE = 64


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="s3://bucket/prefix; the bucket must be there")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--save-every", type=int, default=200, help="steps")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    # Only for a run that can be compared bit for bit with another; going on works without these two.
    keras.utils.set_random_seed(7)
    tf.config.experimental.enable_op_determinism()
    digits = load_digits()
    images, labels = (digits.data / 16).astype("float32"), digits.target
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(256, "relu"), keras.layers.Dense(10)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    with ckptflow.CheckpointManager(
        arguments.url,
        {"model": model},
        keep=[ckptflow.KeepLast(3), ckptflow.KeepBest("loss", n=1)],
        on_save_error="log",  # training goes on over a failed save; one that fails at the end is raised all the same
    ) as manager:
        restored = manager.restore_latest()
        first = restored.step + 1 if restored else 1
        print(f"process {os.getpid()} goes on after step {first - 1}", flush=True)
        for step in range(first, arguments.steps + 1):
            # What is read depends on the step alone, so that it can be resumed anywhere.
            chosen = np.random.default_rng(step).choice(len(images), BATCH_SIZE, replace=False)
            loss = float(model.train_on_batch(images[chosen], labels[chosen]))
            if step % arguments.save_every == 0 or step == arguments.steps:
                manager.save(step, metrics={"loss": loss})  # returns at once; the upload goes on beside the training
                print(f"step {step}: loss {loss:.4f}", flush=True)
    print(f"finished after step {arguments.steps}", flush=True)

    # Everything is read again and checked against its checksums; from any machine, and without TensorFlow.
    with ckptflow.open_checkpoint(arguments.url) as checkpoint:
        damage = checkpoint.verify()
        print(f"{checkpoint.checkpoint.url}: {len(checkpoint)} tensors, damaged: {damage or 'none'}", flush=True)


if __name__ == "__main__":
    main()
