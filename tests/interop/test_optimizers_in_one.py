"""An optimizer that holds others and is an entry of its own goes into an export with the model, as any other does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import ckptflow

pytestmark = pytest.mark.usefixtures("unprobed")


def multi() -> Any:
    choice = keras.optimizers.OptimizerMap(keras.optimizers.Adam(0.1))
    choice[".*bias"] = keras.optimizers.SGD(0.1, momentum=0.9)
    return keras.optimizers.MultiOptimizer(choice)


MAKERS: dict[str, Callable[[], Any]] = {
    "several": multi,
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.1), initial_scale=2.0),
}


@pytest.mark.parametrize("name", MAKERS)
def test_its_state_is_in_the_export(name: str, tmp_path: Path) -> None:
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(2)])
    optimizer = MAKERS[name]()
    for scale in (1.0, 2.0):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(np.full((2, 4), scale, "f4")) ** 2)
        trained = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, trained), trained, strict=True))
    with ckptflow.CheckpointManager(tmp_path / "run", {"model": model, "optimizer": optimizer}) as manager:
        manager.save(1)
    done = ckptflow.export_checkpoint(tmp_path / "run", tmp_path / "m.keras")
    assert done.left_out == ()
    read = keras.models.load_model(tmp_path / "m.keras")
    assert type(read.optimizer) is type(optimizer)
    mine, theirs = ([np.asarray(each) for each in of.variables] for of in (optimizer, read.optimizer))
    assert len(mine) == len(theirs) > 4
    assert all(map(np.array_equal, mine, theirs))
