"""A fit that goes on for more epochs than the one that was saved."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from ckptflow import CheckpointCallback
from tests.callbacks.jobs import BATCH, BATCHES, arrays, dataset, keras_of
from tests.callbacks.test_fit import Interrupt, Job


@pytest.fixture(params=[False, True], ids=["keras3", "tf_keras"])
def keras(request: pytest.FixtureRequest) -> Any:
    return keras_of(request.param)


@pytest.mark.parametrize(
    ("keras", "is_left"),
    [(False, True), (True, False), (True, True)],
    indirect=["keras"],
    ids=["keras3, left in its last epoch", "tf_keras, ended", "tf_keras, left in its last epoch"],
)
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


def test_one_that_is_left_twice_goes_on_to_its_end(keras: Any, tmp_path: Path) -> None:
    """The data of the first fit end with its last epoch, also for the second one, which was to go on."""
    features, labels = arrays()

    def fit(epochs: int, leave_at: int | None, **every: Any) -> Any:
        def leave(batch: int, logs: Any = None) -> None:
            if leave_at is not None and int(job.model.optimizer.iterations) == leave_at:
                raise Interrupt

        with Job(keras, tmp_path) as job:
            ours = CheckpointCallback(job.manager, **every)
            leaving = keras.callbacks.LambdaCallback(on_train_batch_end=leave)
            callbacks = [leaving, ours]
            with pytest.raises(Interrupt) if leave_at is not None else contextlib.nullcontext():
                job.model.fit(features, labels, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=callbacks)
            return job.seen()

    fit(2, BATCHES + 4, every_steps=1)
    fit(3, BATCHES + 6, every_steps=1)
    fit(3, 2 * BATCHES + 1, every_epochs=1)
    seen = fit(3, None, every_epochs=1)
    times = [seen[epoch * BATCHES : (epoch + 1) * BATCHES].sum(axis=0).tolist() for epoch in range(3)]
    assert times == [[1.0] * len(features)] * 3


@pytest.mark.parametrize(("keras", "is_saved_inside"), [(False, True), (True, True), (True, False)], indirect=["keras"])
def test_one_that_is_told_to_begin_later_goes_on_to_its_end(keras: Any, tmp_path: Path, is_saved_inside: bool) -> None:
    """tf_keras makes fewer epochs of the arrays then."""
    features, labels = arrays()

    def leave(batch: int, logs: Any = None) -> None:
        if int(job.model.optimizer.iterations) == BATCHES + 4:
            raise Interrupt

    every: dict[str, Any] = {"every_steps": 1} if is_saved_inside else {"every_epochs": 1}
    for initial_epoch in (0, 1):
        with Job(keras, tmp_path) as job:
            callbacks = [CheckpointCallback(job.manager, **every)]
            if not initial_epoch:
                callbacks.insert(0, keras.callbacks.LambdaCallback(on_train_batch_end=leave))
            with contextlib.nullcontext() if initial_epoch else pytest.raises(Interrupt):
                words = {"epochs": 3, "initial_epoch": initial_epoch, "verbose": 0, "callbacks": callbacks}
                job.model.fit(features, labels, batch_size=BATCH, **words)
            seen = job.seen()
    times = [seen[epoch * BATCHES : (epoch + 1) * BATCHES].sum(axis=0).tolist() for epoch in range(3)]
    assert times[0] == times[2] == [1.0] * len(features)
    if keras.__name__ == "keras" or not is_saved_inside:
        assert times[1] == [1.0] * len(features)


def test_data_that_are_carried_go_on_at_an_epochs_beginning_with_metrics(keras: Any, tmp_path: Path) -> None:
    """In a new process they are not built yet."""
    for epochs in (1, 3):
        with Job(keras, tmp_path) as job:
            data = dataset().repeat().batch(BATCH)
            ours = CheckpointCallback(job.manager, every_epochs=1)
            model = job.model
            model.compile(keras.optimizers.SGD(0.01), "mse", metrics=["mae"])
            history = model.fit(data, steps_per_epoch=7, epochs=epochs, verbose=0, callbacks=[ours])
            assert len(history.history["mae"]) == epochs
            assert int(model.optimizer.iterations) == 7 * epochs
