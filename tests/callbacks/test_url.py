"""A callback that is given a URL: it makes its own manager for each fit, and closes it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import ckptflow
from ckptflow import CheckpointCallback, CheckpointManager, StateMismatchError, UsageError
from tests.callbacks.jobs import keras_of

ROWS, BATCHES = np.arange(32, dtype=np.float32).reshape(8, 4), 4


class Interrupt(Exception):  # noqa: N818
    """Of a fit."""


@pytest.fixture(params=[False, True], ids=["keras3", "tf_keras"])
def keras(request: pytest.FixtureRequest) -> Any:
    return keras_of(request.param)


def make_model(keras: Any, units: int = 1) -> Any:
    model = keras.Sequential([keras.layers.Dense(units)])  # not built: fit builds it, or the checkpoint does
    model.compile("sgd", "mse")
    return model


def fit(keras: Any, model: Any, callback: Any, epochs: int, *, fails_at: int = -1) -> int:
    """Trains, and returns how many batches it were."""
    seen = []

    def note(batch: int, logs: Any) -> None:
        seen.append(batch)
        if len(seen) == fails_at:
            raise Interrupt

    data = tf.data.Dataset.from_tensor_slices((ROWS, ROWS[:, :1])).batch(len(ROWS) // BATCHES)
    callbacks = [callback, keras.callbacks.LambdaCallback(on_train_batch_end=note)]
    model.fit(data, epochs=epochs, verbose=0, shuffle=False, callbacks=callbacks)
    return len(seen)


def steps(root: Path) -> list[int]:
    return [found.step for found in ckptflow.list_checkpoints(root)]


def test_a_script_that_is_run_again_goes_on_and_says_from_where(
    keras: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Three runs: of two epochs, of three, and of three again. A fresh start is no warning."""
    texts = []
    for epochs, batches in ((2, 8), (3, 4), (3, 0)):
        caplog.clear()
        model, callback = make_model(keras), CheckpointCallback(tmp_path)
        with caplog.at_level(logging.INFO, "ckptflow"):
            assert fit(keras, model, callback, epochs) == batches
        assert int(model.optimizer.iterations) == epochs * BATCHES
        texts.append([(each.levelname, each.message) for each in caplog.records if each.name == "ckptflow"])
    assert steps(tmp_path) == [4, 8, 12]
    fresh, resumed, over = texts
    assert ("INFO", f"{tmp_path}: no checkpoint is here, starting anew") in fresh
    assert {level for level, _ in fresh} == {"INFO"}
    newest = ckptflow.list_checkpoints(tmp_path)
    assert ("INFO", f"{newest[1].url}: fit resumes in epoch 3 after batch 0") in resumed
    said = f"{newest[2].url}: fit had nothing left to do: 3 epochs are done, and epochs=3; raise epochs to train on"
    assert ("WARNING", said) in over


def test_fits_of_one_callback_are_counted(keras: Any, tmp_path: Path) -> None:
    """A script with two fits, killed in the second one: its first fit trains nothing when it is run again."""
    model, callback = make_model(keras), CheckpointCallback(str(tmp_path))
    assert fit(keras, model, callback, 1) == BATCHES
    with pytest.raises(Interrupt):
        fit(keras, model, callback, 2, fails_at=BATCHES + 1)
    assert callback._manager is not None
    callback._manager.close()  # the save under way is committed, as at the end of a process
    model, callback = make_model(keras), CheckpointCallback(str(tmp_path))
    assert [fit(keras, model, callback, epochs) for epochs in (1, 2)] == [0, BATCHES]
    assert fit(keras, model, callback, 1) == BATCHES  # a third one
    assert steps(tmp_path) == [4, 8, 12, 16]


def test_a_fit_that_was_interrupted_goes_on_and_is_closed_at_its_end(keras: Any, tmp_path: Path) -> None:
    model, callback = make_model(keras), CheckpointCallback(tmp_path, every_steps=2)
    with pytest.raises(Interrupt):
        fit(keras, model, callback, 2, fails_at=5)
    manager = callback._manager
    assert manager is not None
    assert not manager.session.calls.is_closed
    assert fit(keras, model, callback, 2) == 4  # from step 4 on
    assert callback._manager is manager
    assert manager.session.calls.is_closed
    assert int(model.optimizer.iterations) == 2 * BATCHES


def test_a_fit_that_cannot_begin_leaves_nothing_open(keras: Any, tmp_path: Path) -> None:
    fit(keras, make_model(keras, units=1), CheckpointCallback(tmp_path), 1)
    callback, other = CheckpointCallback(tmp_path), make_model(keras, units=3)
    other.build((None, 4))
    with pytest.raises(StateMismatchError):
        fit(keras, other, callback, 2)
    assert callback._manager is not None
    assert callback._manager.session.calls.is_closed
    assert fit(keras, make_model(keras), callback, 2) == BATCHES


def test_the_strategy_is_the_models(keras: Any, tmp_path: Path) -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = make_model(keras)
    callback = CheckpointCallback(tmp_path)
    assert fit(keras, model, callback, 1) == BATCHES
    assert callback._manager is not None
    assert callback._manager.session.cluster.strategy is strategy


def test_what_cannot_be_is_refused_at_once(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, {"v": tf.Variable(1.0)}) as manager:
        folder = manager.save(1).result().url
        with ckptflow.PreemptionWatcher(manager) as watcher, pytest.raises(ValueError, match="with that manager"):
            CheckpointCallback(tmp_path, watcher=watcher)
    with pytest.raises(UsageError, match="one checkpoint's folder"):
        CheckpointCallback(folder)
    with pytest.raises(UsageError, match="no fit has begun"):
        CheckpointCallback(tmp_path).on_epoch_end(0)
