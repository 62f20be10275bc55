"""TensorFlow's own ways, and the state that they and ckptflow save."""

from __future__ import annotations

import os
from typing import Any

from benchmarks.meters import fsync_all
from benchmarks.peers.base import Digests, Peer, Places, Point


class Variables:
    """Float32 variables in one `tf.Module`; their values change in each round and are compared after a restore."""

    def __init__(self, point: Point) -> None:
        import tensorflow as tf

        self.module = tf.Module()
        count = point.variable_count
        self.module.v = [tf.Variable(tf.random.normal((point.element_count,))) for _ in range(count)]
        self._digests = Digests(lambda: self.module.v)

    def change(self) -> None:
        for variable in self.module.v:
            variable.assign_add(variable * 0.5 + 1.0)
        self._digests.remember()

    def spoil(self) -> None:
        for variable in self.module.v:
            variable.assign(variable * 0.0)

    def check(self) -> None:
        self._digests.compare()


class OnVariables(Peer):
    """A peer whose state is `Variables`."""

    def __init__(self, point: Point) -> None:
        self.point = point
        self.variables = Variables(point)

    def change(self) -> None:
        self.variables.change()

    def spoil(self) -> None:
        self.variables.spoil()

    def check(self) -> None:
        self.variables.check()


class TrainCheckpoint(OnVariables):
    """`tf.train.Checkpoint.write` and `read`."""

    note = "its files are fsynced by the benchmark, as TensorFlow does not; no checksum over a shard"
    options: Any = None

    def __init__(self, point: Point) -> None:
        import tensorflow as tf

        super().__init__(point)
        self.checkpoint = tf.train.Checkpoint(module=self.variables.module)
        self._places = Places(point.url)

    def save(self, round_number: int) -> None:
        self.checkpoint.write(self._places.next(), options=self.options)

    def finish(self) -> None:
        fsync_all(self.point.url)

    def tidy(self) -> None:
        self._places.remove_old()

    def restore(self) -> None:
        self.checkpoint.read(self._places.now).assert_consumed()


class AsyncTrainCheckpoint(TrainCheckpoint):
    """The same with `experimental_enable_async_checkpoint`."""

    def __init__(self, point: Point) -> None:
        import tensorflow as tf

        super().__init__(point)
        self.options = tf.train.CheckpointOptions(experimental_enable_async_checkpoint=True)

    def finish(self) -> None:
        self.checkpoint.sync()  # waits for the save in the background
        super().finish()


class ModelCheckpoint(Peer):
    """Keras's callback, weights alone: the least that it writes."""

    note = "Keras 3's ModelCheckpoint(save_weights_only=True), one .weights.h5; fsynced by the benchmark"

    def __init__(self, point: Point) -> None:
        import keras

        class Weights(keras.layers.Layer):  # type: ignore[misc]
            def build(self, shape: Any) -> None:
                self.all = [
                    self.add_weight(shape=(point.element_count,), name=f"w{i}") for i in range(point.variable_count)
                ]

            def call(self, inputs: Any) -> Any:
                return inputs

        self._point = point
        self._places = Places(point.url, ".weights.h5")
        self._model = keras.Sequential([Weights()])
        self._model.build((None, 1))
        path = f"{point.url}/{{epoch}}/state.weights.h5"
        self._callback = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
        self._callback.set_model(self._model)
        self._digests = Digests(lambda: self._model.variables)

    def change(self) -> None:
        for variable in self._model.variables:
            variable.assign(variable * 1.5 + 1.0)
        self._digests.remember()

    def save(self, round_number: int) -> None:
        os.makedirs(os.path.dirname(self._places.next()))
        self._callback.on_epoch_end(round_number - 1, {})  # it counts from 1

    def finish(self) -> None:
        fsync_all(self._point.url)

    def tidy(self) -> None:
        self._places.remove_old()

    def spoil(self) -> None:
        for variable in self._model.variables:
            variable.assign(variable * 0.0)

    def restore(self) -> None:
        self._model.load_weights(self._places.now)

    def check(self) -> None:
        self._digests.compare()
