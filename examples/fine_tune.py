"""Fine-tuning: the trunk comes from a `.keras` file or a TensorFlow Hub module, the head is new.

python -m examples.fine_tune --source runs/digits.keras --url runs/tuned    # a Keras file, from any program
python -m examples.fine_tune --source runs/digits-hub --url runs/tuned-hub  # a folder: a Hub module (a SavedModel)

Where the source is not there, a small one is trained first, on the digits 0 to 4. The new model then learns 5 to 9.
Kill it at any moment, start it again, and it goes on: with the first training, with the second, or between the two.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_hub as hub
from sklearn.datasets import load_digits

import ckptflow


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="runs/digits.keras", help="a .keras file, or the folder of a Hub module")
    parser.add_argument("--url", default="runs/fine-tune", help="the run that fine-tunes")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--save-every", type=int, default=50, help="steps")
    return parser.parse_args()


def build_model(head: str) -> keras.Model:
    """A trunk, which is the same in both models, and a head for five classes."""
    trunk = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(128, "relu", name="wide"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(32, "relu", name="narrow"),
        ],
        name="trunk",
    )
    return keras.Sequential([keras.Input((64,)), trunk, keras.layers.Dense(5, name=head)])


def compile_model(model: keras.Model, learning_rate: float) -> None:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(learning_rate), loss, metrics=["accuracy"])


def digits_of(classes: range) -> tuple[Any, Any]:
    digits = load_digits()
    chosen = np.isin(digits.target, classes)
    return (digits.data[chosen] / 16).astype("float32"), digits.target[chosen] - classes.start


def pretrain(source: str) -> None:
    """Makes a source. An export is there whole or not at all, so a kill leaves no half of one."""
    model, (images, labels) = build_model("zero_to_four"), digits_of(range(5))
    compile_model(model, 1e-3)
    root = source.removesuffix(".keras") + "-run"
    with ckptflow.CheckpointManager(root, {"model": model}) as manager:
        callback = ckptflow.CheckpointCallback(manager, every_epochs=1)
        model.fit(images, labels, epochs=5, shuffle=False, verbose=2, callbacks=[callback])
    ckptflow.export_checkpoint(root, source, format="keras" if source.endswith(".keras") else "hub")


def weights_of(source: str) -> list[Any]:
    """All weights of the source, read without ckptflow."""
    stock = keras.models.load_model(source) if source.endswith(".keras") else hub.load(source)
    return [np.asarray(variable) for variable in stock.variables]


def main() -> None:
    arguments = parse_arguments()
    # Only for a run that can be compared bit for bit with another; going on works without these two.
    keras.utils.set_random_seed(7)
    tf.config.experimental.enable_op_determinism()
    if not os.path.exists(arguments.source):
        pretrain(arguments.source)

    model = build_model("five_to_nine")
    if not ckptflow.list_checkpoints(arguments.url):
        # partial: what has the same name in both comes over, the rest stays as it is here. Where names differ, rename=.
        # Not compiled yet: the old optimizer, its learning rate and its momenta, is not wanted.
        start = ckptflow.import_model(arguments.source, arguments.url, model={"model": model}, partial=True)
        print(f"new in this model: {start.metadata['imported']['left_as_they_were']}", flush=True)
        theirs = weights_of(arguments.source)
        for weight in model.get_layer("trunk").weights:  # do not take it on trust
            assert any(np.array_equal(weight, other) for other in theirs), f"{weight.path} did not come over"
    compile_model(model, 3e-4)

    def first(checkpoints: Any) -> list[bool]:
        return [checkpoint.step == 0 for checkpoint in checkpoints]  # what was imported, to compare with later

    images, labels = digits_of(range(5, 10))
    with ckptflow.CheckpointManager(arguments.url, {"model": model}, keep=[ckptflow.KeepLast(3), first]) as manager:
        newest = manager.latest()
        is_warm_start = newest is not None and newest.step == 0  # it holds no optimizer: that one is new
        restored = manager.restore_latest(partial=is_warm_start)
        print(f"process {os.getpid()} goes on after step {restored.step if restored else 0}", flush=True)
        callback = ckptflow.CheckpointCallback(manager, every_steps=arguments.save_every)
        model.fit(images, labels, epochs=arguments.epochs, shuffle=False, verbose=2, callbacks=[callback])
    print(f"finished after step {int(model.optimizer.iterations)}", flush=True)


if __name__ == "__main__":
    main()
