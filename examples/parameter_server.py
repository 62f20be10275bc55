"""Parameter servers: the chief hands out steps to workers, the variables lie in parts on servers. The chief saves.

The same command on every machine, told apart by TF_CONFIG, whose task is the "chief", a "worker" or a "ps":

TF_CONFIG='{"cluster": {"chief": ["10.0.0.1:2222"], "worker": ["10.0.0.2:2222"], "ps": ["10.0.0.3:2222"]},
            "task": {"type": "chief", "index": 0}}' python -m examples.parameter_server --url s3://bucket/ps

The job is over when the chief ends; workers and servers run until somebody ends them. A worker may come and go. When
a server or the chief is lost, start all again, with as many servers as you like: the chief restores what is newest.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import tensorflow as tf
import tf_keras
from sklearn.datasets import load_digits

import ckptflow

BATCH_SIZE = 64


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="runs/parameter-server", help="where the chief, and it alone, writes")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--save-every", type=int, default=200, help="steps")
    return parser.parse_args()


def train(arguments: argparse.Namespace, resolver: Any) -> None:
    """What the chief does."""
    # In parts of at least 16 KiB here, so that the small kernel of this model is divided; 1 MiB or more for real ones.
    partitioner = tf.distribute.experimental.partitioners.MinSizePartitioner(16 << 10, max_shards=4)
    strategy = tf.distribute.ParameterServerStrategy(resolver, variable_partitioner=partitioner)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    with strategy.scope():
        first_kernel = tf.random.stateless_normal([64, 256], seed=[7, 0], stddev=0.1)
        kernels = [tf.Variable(first_kernel, name="kernel_0"), tf.Variable(tf.zeros([256, 10]), name="kernel_1")]
        biases = [tf.Variable(tf.zeros([256]), name="bias_0"), tf.Variable(tf.zeros([10]), name="bias_1")]
        optimizer = tf_keras.optimizers.Adam(1e-3)
        parts = [part for variable in kernels + biases for part in getattr(variable, "variables", [variable])]
        optimizer.build(parts)

    digits = load_digits()
    images, labels = (digits.data / 16).astype("float32"), digits.target.astype("int32")

    @tf.function
    def train_step(step: Any) -> None:
        def on_worker(step: Any) -> None:
            # What is read depends on the step alone: no worker has a position that would have to be saved.
            chosen = tf.random.stateless_uniform([BATCH_SIZE], [7, step], maxval=len(images), dtype=tf.int32)
            batch, targets = tf.gather(tf.constant(images), chosen), tf.gather(tf.constant(labels), chosen)
            with tf.GradientTape() as tape:
                hidden = tf.nn.relu(batch @ tf.convert_to_tensor(kernels[0]) + tf.convert_to_tensor(biases[0]))
                logits = hidden @ tf.convert_to_tensor(kernels[1]) + tf.convert_to_tensor(biases[1])
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=targets, logits=logits)
                loss = tf.reduce_mean(losses)
            optimizer.apply_gradients(zip(tape.gradient(loss, parts), parts, strict=True))

        strategy.run(on_worker, args=(step,))

    def accuracy() -> float:
        hidden = tf.nn.relu(images @ tf.convert_to_tensor(kernels[0]) + tf.convert_to_tensor(biases[0]))
        logits = hidden @ tf.convert_to_tensor(kernels[1]) + tf.convert_to_tensor(biases[1])
        return float((tf.argmax(logits, axis=1).numpy() == labels).mean())

    state = {"kernels": kernels, "biases": biases, "optimizer": optimizer}
    with ckptflow.CheckpointManager(arguments.url, state, strategy=strategy) as manager:
        restored = manager.restore_latest()
        first = restored.step + 1 if restored else 1
        print(f"process {os.getpid()}, the chief, goes on after step {first - 1}", flush=True)
        for step in range(first, arguments.steps + 1):
            coordinator.schedule(train_step, args=(tf.constant(step),))
            if step % arguments.save_every == 0 or step == arguments.steps:
                manager.save(step)  # waits until the steps scheduled so far are done
                print(f"step {step}: {accuracy():.1%} of all digits", flush=True)
    print(f"finished after step {arguments.steps}", flush=True)


def main() -> None:
    arguments = parse_arguments()
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if resolver.task_type == "chief":
        train(arguments, resolver)
    else:
        server = tf.distribute.Server(resolver.cluster_spec(), job_name=resolver.task_type, task_index=resolver.task_id)
        print(f"process {os.getpid()}, {resolver.task_type} {resolver.task_id}, serves", flush=True)
        server.join()


if __name__ == "__main__":
    main()
