"""A fit that goes on for more epochs than the one that was saved."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from ckptflow import CheckpointCallback
from tests.callbacks.jobs import BATCH, BATCHES, arrays, keras_of
from tests.callbacks.test_fit import Interrupt, Job


@pytest.fixture(params=[False, True], ids=["keras3", "tf_keras"])
def keras(request: pytest.FixtureRequest) -> Any:
    return keras_of(request.param)


@pytest.mark.parametrize("is_left", [False, True], ids=["ended", "left in its last epoch"])
def test_a_longer_fit_of_arrays_goes_on(keras: Any, tmp_path: Path, is_left: bool) -> None:
    """tf_keras makes arrays one dataset of as many epochs as the fit has; each element comes once in each epoch."""
    features, labels = arrays()

    def leave(epoch: int, logs: Any) -> None:
        leaving.on_train_batch_end = lambda batch, logs=None: interrupt(epoch == 1 and batch == 3)

    def interrupt(is_due: bool) -> None:
        if is_due:
            raise Interrupt

    def fit(epochs: int, *callbacks: Any) -> Any:
        with Job(keras, tmp_path) as job:
            ours = CheckpointCallback(job.manager, every_steps=1)
            job.model.fit(features, labels, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=[ours, *callbacks])
            return job.seen()

    leaving = keras.callbacks.LambdaCallback(on_epoch_begin=leave)
    with pytest.raises(Interrupt) if is_left else contextlib.nullcontext():
        fit(2, *([leaving] if is_left else []))
    seen = fit(3)
    times = [seen[epoch * BATCHES : (epoch + 1) * BATCHES].sum(axis=0).tolist() for epoch in range(3)]
    assert times == [[1.0] * len(features)] * 3
