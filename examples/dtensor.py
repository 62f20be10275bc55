"""DTensor: each tensor is divided over a mesh of devices; each client saves the blocks on its own devices.

python -m examples.dtensor --mesh 2x2        # one client, four devices: batches over 2, kernels' columns over 2
python -m examples.dtensor --mesh 4x1        # goes on with the same checkpoint, divided in another way

With TF_CONFIG as for examples/multi_worker.py: several clients, each with its share of the mesh's devices.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

import tensorflow as tf
import tf_keras
from sklearn.datasets import load_digits
from tensorflow.experimental import dtensor

import ckptflow

BATCH_SIZE = 64


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="runs/dtensor", help="a folder, s3://bucket/prefix or gs://bucket/prefix")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--save-every", type=int, default=100, help="steps")
    parser.add_argument("--mesh", default="2x2", help="devices for the batch x devices for the model")
    return parser.parse_args()


def make_mesh(shape: str) -> Any:
    """A mesh of this machine's CPU, taken for several devices; or of all clients', if there is a TF_CONFIG."""
    task = json.loads(os.environ.get("TF_CONFIG") or "{}")
    clients = task["cluster"]["worker"] if task else []
    if len(clients) > 1:  # where DTensor looks for who it is
        os.environ["DTENSOR_JOBS"], os.environ["DTENSOR_JOB_NAME"] = ",".join(clients), "worker"
        os.environ["DTENSOR_NUM_CLIENTS"] = str(len(clients))
        os.environ["DTENSOR_CLIENT_ID"] = str(task["task"]["index"])
    batch, model = (int(number) for number in shape.split("x"))
    here = batch * model // max(1, len(clients))
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * here)
    dtensor.initialize_accelerator_system("CPU")  # before any manager is made
    return dtensor.create_distributed_mesh([("batch", batch), ("model", model)], device_type="CPU")


def main() -> None:
    arguments = parse_arguments()
    mesh = make_mesh(arguments.mesh)
    whole = dtensor.UNSHARDED

    def variable(name: str, shape: list[int], *specs: str, seed: int | None = None) -> Any:
        """Random numbers, or without a seed zeros; each device makes its own block."""
        layout = dtensor.Layout(list(specs), mesh)
        value = dtensor.call_with_layout(
            tf.function(
                lambda: tf.zeros(shape) if seed is None else tf.random.stateless_normal(shape, [7, seed], 0, 0.1)
            ),
            layout,
        )
        return dtensor.DVariable(value, name=name)

    model = tf.Module()
    model.kernels = [
        variable("kernel_0", [64, 128], whole, "model", seed=0),
        variable("kernel_1", [128, 10], "model", whole, seed=1),
    ]
    model.biases = [variable("bias_0", [128], "model"), variable("bias_1", [10], whole)]
    trained = model.kernels + model.biases
    optimizer = tf_keras.optimizers.Adam(1e-3, mesh=mesh)
    optimizer.build(trained)

    digits = load_digits()
    everywhere = [dtensor.Layout.replicated(mesh, rank=rank) for rank in range(3)]
    images = dtensor.copy_to_mesh(tf.constant(digits.data / 16, tf.float32), everywhere[2])
    labels = dtensor.copy_to_mesh(tf.constant(digits.target, tf.int32), everywhere[1])
    by_batch = dtensor.Layout(["batch", whole], mesh)

    @tf.function
    def train_step(chosen: Any) -> Any:
        batch = dtensor.relayout(tf.gather(images, chosen), by_batch)
        targets = tf.one_hot(tf.gather(labels, chosen), 10)
        with tf.GradientTape() as tape:
            hidden = tf.nn.relu(batch @ model.kernels[0] + model.biases[0])
            logits = hidden @ model.kernels[1] + model.biases[1]
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, logits))
        optimizer.apply_gradients(zip(tape.gradient(loss, trained), trained, strict=True))
        return loss

    with ckptflow.CheckpointManager(arguments.url, {"model": model, "optimizer": optimizer}) as manager:
        restored = manager.restore_latest()
        first = restored.step + 1 if restored else 1
        print(f"process {os.getpid()}, mesh {arguments.mesh}, goes on after step {first - 1}", flush=True)
        for step in range(first, arguments.steps + 1):
            # What is read depends on the step alone, so that it can be resumed anywhere.
            chosen = tf.random.stateless_uniform([BATCH_SIZE], [7, step], maxval=len(digits.data), dtype=tf.int32)
            loss = train_step(dtensor.copy_to_mesh(chosen, everywhere[1]))
            if step % arguments.save_every == 0 or step == arguments.steps:
                manager.save(step)
                print(f"step {step}: loss {float(dtensor.unpack(loss)[0]):.4f}", flush=True)
    print(f"finished after step {arguments.steps}", flush=True)


if __name__ == "__main__":
    main()
