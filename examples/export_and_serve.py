"""From a checkpoint to a server: a SavedModel with a signature of your own, answered by a process without ckptflow.

python -m examples.export_and_serve --url runs/served-run --served runs/served/digits

It trains a little, exports the newest checkpoint as the next version, starts examples/serve.py on it, sends requests,
and compares the answers with the model's own. Kill it at any moment, start it again, and it goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import ckptflow

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="runs/served-run", help="where the checkpoints go")
    parser.add_argument("--served", default="runs/served/digits", help="the server's folder of versions")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--save-every", type=int, default=100, help="steps")
    return parser.parse_args()


def signatures(model: keras.Model) -> dict[str, Any]:
    """What the server is asked for: pictures as they come, the answer in words. `model` is the exported one."""

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8], tf.uint8, name="images")])
    def classify(images: Any) -> dict[str, Any]:
        scaled = tf.reshape(tf.cast(images, tf.float32) / 16, [-1, 64])  # the preprocessing travels along
        probabilities = tf.nn.softmax(model(scaled, training=False))
        name = tf.gather(tf.constant(NAMES), tf.argmax(probabilities, axis=1))
        return {"name": name, "probability": tf.reduce_max(probabilities, axis=1)}

    return {"classify": classify}


@contextmanager
def serving(folder: str) -> Iterator[str]:
    """The address of a server process, which is ended with the block."""
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "serve.py")
    command = [sys.executable, program, folder, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()  # "serves version … at …", or nothing when it has ended
            if not line:
                raise RuntimeError(f"the server ended with exit code {process.wait()}")
            yield line.split()[-1]
        finally:
            process.kill()


def ask(address: str, request: dict[str, Any]) -> dict[str, Any]:
    url = f"{address}/v1/models/digits:predict"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(request).encode())) as reply:
        outputs: dict[str, Any] = json.load(reply)["outputs"]
    return outputs


def main() -> None:
    arguments = parse_arguments()
    keras.utils.set_random_seed(7)
    digits = load_digits()
    images, labels = (digits.data / 16).astype("float32"), digits.target
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(128, "relu"), keras.layers.Dense(10)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with ckptflow.CheckpointManager(arguments.url, {"model": model}) as manager:
        newest = manager.latest()
        print(f"process {os.getpid()} goes on after step {newest.step if newest else 0}", flush=True)
        callback = ckptflow.CheckpointCallback(manager, every_steps=arguments.save_every)
        model.fit(images, labels, epochs=arguments.epochs, shuffle=False, verbose=2, callbacks=[callback])
    step = int(model.optimizer.iterations)
    print(f"finished after step {step}", flush=True)

    version = os.path.join(arguments.served, str(step))
    if not os.path.exists(version):  # else a life before has got so far: a version is there whole or not at all
        ckptflow.export_checkpoint(arguments.url, version, format="saved-model", step=step, signatures=signatures)

    with serving(arguments.served) as address:
        pictures = digits.images[:100].astype("uint8").tolist()
        answer = ask(address, {"signature_name": "classify", "inputs": {"images": pictures}})
    expected = tf.nn.softmax(model(images[:100], training=False)).numpy()
    assert answer["name"] == [NAMES[number] for number in expected.argmax(axis=1)]
    np.testing.assert_allclose(answer["probability"], expected.max(axis=1), atol=1e-5)
    print(f"version {step} answers as the model does; the first: {answer['name'][:5]}", flush=True)


if __name__ == "__main__":
    main()
