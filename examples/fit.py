"""One machine, Keras's `fit`: stop it anywhere, start it again, and it goes on with the very next batch.

python -m examples.fit --url runs/fit              # trains 20 epochs on scikit-learn's handwritten digits
kill -9 <its process id>                           # at any moment
python -m examples.fit --url runs/fit              # goes on from the newest checkpoint
ckptflow ls runs/fit
"""

from __future__ import annotations

import argparse
import os

import keras
import tensorflow as tf
from sklearn.datasets import load_digits

import ckptflow

BATCH_SIZE, HELD_OUT = 32, 297  # of the 1,797 digits, the last 297 are for validation


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="runs/fit", help="a folder, s3://bucket/prefix or gs://bucket/prefix")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--save-every", type=int, default=50, help="steps")
    return parser.parse_args()


def build_model() -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dropout(0.3),  # its seed is in the checkpoint, too
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    return model


def main() -> None:
    arguments = parse_arguments()
    # Only for a run that can be compared bit for bit with another; going on works without these two.
    keras.utils.set_random_seed(7)
    tf.config.experimental.enable_op_determinism()

    digits = load_digits()
    images, labels = (digits.data / 16).astype("float32"), digits.target
    train = tf.data.Dataset.from_tensor_slices((images[:-HELD_OUT], labels[:-HELD_OUT]))
    train = train.shuffle(1500, seed=7).batch(BATCH_SIZE)  # with a seed, so that later epochs have the same order
    held_out = (images[-HELD_OUT:], labels[-HELD_OUT:])

    model = build_model()
    with ckptflow.CheckpointManager(
        arguments.url, {"model": model}, keep=[ckptflow.KeepLast(3), ckptflow.KeepEvery(steps=1000)]
    ) as manager:
        newest = manager.latest()
        print(f"process {os.getpid()} goes on after step {newest.step if newest else 0}", flush=True)
        model.fit(
            train,
            epochs=arguments.epochs,
            validation_data=held_out,
            verbose=2,
            callbacks=[
                keras.callbacks.EarlyStopping("val_loss", patience=50),  # how long it has waited is restored as well
                ckptflow.CheckpointCallback(manager, every_steps=arguments.save_every),
            ],
        )
    accuracy = model.evaluate(*held_out, verbose=0)[1]
    print(f"finished after step {int(model.optimizer.iterations)}: {accuracy:.1%} of the held-out digits", flush=True)


if __name__ == "__main__":
    main()
