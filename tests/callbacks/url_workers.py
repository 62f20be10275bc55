"""A worker whose callback makes its own manager, and whose script ends with its last fit."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tests.callbacks.jobs import ROOT, keras_of


def main() -> None:
    from ckptflow import CheckpointCallback

    keras, counts = keras_of(True), []
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        model = keras.Sequential([keras.layers.Dense(1, input_shape=(4,))])
        model.compile("sgd", "mse")
    data = tf.data.Dataset.from_tensor_slices((np.ones((8, 4), np.float32), np.ones((8, 1), np.float32))).batch(2)
    callback = CheckpointCallback(ROOT / "run", every_epochs=1)
    for _ in range(2):
        before = int(model.optimizer.iterations.numpy())
        model.fit(data, verbose=0, callbacks=[callback])
        counts.append(int(model.optimizer.iterations.numpy()) - before)
    (ROOT / f"{strategy.cluster_resolver.task_id}.txt").write_text(" ".join(map(str, counts)))
