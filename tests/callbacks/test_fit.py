"""What a fit with a CheckpointCallback saves, what it goes on from, what it refuses; in one process."""

from __future__ import annotations

import functools
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import ckptflow
from ckptflow import CheckpointCallback, CheckpointManager, KeepLast, UsageError
from ckptflow.errors import StorageUnavailableError
from ckptflow.storage.wrappers import StoreWrapper
from tests.callbacks.jobs import BATCH, BATCHES, dataset, keras_of, make_model
from tests.manager.states import wrap_store

KERAS3 = pytest.mark.parametrize("keras", [False], ids=["keras3"], indirect=True)
TF_KERAS = pytest.mark.parametrize("keras", [True], ids=["tf_keras"], indirect=True)
KEEP_ALL = [KeepLast(1000)]


@pytest.fixture(params=[False, True], ids=["keras3", "tf_keras"])
def keras(request: pytest.FixtureRequest) -> Any:
    return keras_of(request.param)


class Job:
    """One life: a new model and a new manager on a root; `fit` trains, and notes the batches of each call."""

    def __init__(self, keras: Any, root: Path, **arguments: Any) -> None:
        keras.utils.set_random_seed(11)
        self.keras = keras
        self.model = make_model(keras, {"optimizer": lambda keras: keras.optimizers.SGD(0.01, momentum=0.9)})
        self.manager = CheckpointManager(root, {"model": self.model}, keep=KEEP_ALL, **arguments)
        self.batches: list[int] = []

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *error: Any) -> None:
        self.manager.__exit__(*error)

    def fit(self, *, every: dict[str, Any] | None = None, callbacks: Any = (), **arguments: Any) -> Any:
        self.batches.append(0)

        def count(batch: int, logs: Any) -> None:
            self.batches[-1] += 1

        counter = self.keras.callbacks.LambdaCallback(on_train_batch_end=count)
        callback = CheckpointCallback(self.manager, **(every or {"every_steps": 4}))
        data = arguments.pop("data", None) or dataset().shuffle(16, seed=3).batch(BATCH)
        return self.model.fit(data, verbose=0, callbacks=[callback, *callbacks, counter], **arguments)

    def seen(self) -> Any:
        return self.model.layers[0].seen.numpy()

    def steps(self) -> list[int]:
        return [checkpoint.step for checkpoint in self.manager.checkpoints()]


@functools.cache
def seen_by_a_whole_fit(keras: Any, epochs: int) -> Any:
    with tempfile.TemporaryDirectory() as root, Job(keras, Path(root)) as job:
        job.fit(epochs=epochs)
        return job.seen()


class Interrupt(Exception):  # noqa: N818
    """Of a fit."""


def interrupt_at(keras: Any, batch: int) -> Any:
    def interrupt(now: int, logs: Any) -> None:
        if now == batch:
            raise Interrupt

    return keras.callbacks.LambdaCallback(on_train_batch_end=interrupt)


# What is saved


def test_steps_metrics_and_the_last_save(keras: Any, tmp_path: Path) -> None:
    with Job(keras, tmp_path) as job:
        history = job.fit(every={"every_steps": 4}, epochs=2)
        assert job.steps() == [4, 8, 12, 16, 20, 22]
        found = job.manager.checkpoints()
        assert all(set(checkpoint.metrics) == {"loss", "mae"} for checkpoint in found)
        assert found[-1].metrics["loss"] == pytest.approx(history.history["loss"][-1])


def test_what_is_no_finite_number_is_no_metric(tmp_path: Path) -> None:
    from ckptflow.callbacks.others import finite_metrics

    logs = {"a": 1, "b": np.float32(2), "c": tf.constant(3.0), "d": float("nan"), "e": float("inf"), "f": "text"}
    assert finite_metrics({**logs, "g": np.zeros(2), "h": None}) == {"a": 1.0, "b": 2.0, "c": 3.0}
    assert finite_metrics(None) == {}


class Failing(StoreWrapper):
    fails = False

    def put(self, key: str, data: Any) -> str | None:
        if self.fails and "shard" in key:
            raise StorageUnavailableError("503 from the test")
        return super().put(key, data)


@TF_KERAS
def test_a_failed_last_save_raises_out_of_fit(keras: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = wrap_store(monkeypatch, Failing)
    job = Job(keras, tmp_path)
    fail = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: setattr(stores[0], "fails", True))
    with pytest.raises(ckptflow.SaveFailedError, match="503 from the test"):
        job.fit(every={"every_epochs": 9}, callbacks=[fail], epochs=1)
    stores[0].fails = False
    job.manager.close()


@TF_KERAS
def test_an_empty_fit(keras: Any, tmp_path: Path) -> None:
    with Job(keras, tmp_path) as job:
        job.fit(initial_epoch=3, epochs=3)
        assert job.batches == [0]
        assert job.steps() == []


# What a fit goes on from


def test_a_complete_fit_trains_nothing_and_more_epochs_do(keras: Any, tmp_path: Path) -> None:
    with Job(keras, tmp_path) as job:
        job.fit(epochs=1)
        steps, url = job.steps(), job.manager.checkpoints()[-1].url
    with Job(keras, tmp_path) as job:
        history = job.fit(epochs=1)
        assert job.batches == [0]
        assert (job.steps(), job.manager.checkpoints()[-1].url) == (steps, url), "it was saved again for nothing"
        assert history.epoch == [0]
    with Job(keras, tmp_path) as job:
        job.fit(epochs=2)
        np.testing.assert_array_equal(job.seen(), seen_by_a_whole_fit(keras, 2))
        assert job.batches == [BATCHES]


@TF_KERAS
def test_a_fit_that_a_callback_has_stopped_stays_stopped(keras: Any, tmp_path: Path) -> None:
    class Stop(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.model.stop_training = epoch == 1

    for epochs, expected in ((9, 2 * BATCHES), (9, 0), (10, 8 * BATCHES)):
        with Job(keras, tmp_path) as job:
            job.fit(every={"every_epochs": 1}, callbacks=[Stop()], epochs=epochs)
            assert job.batches == [expected]


@KERAS3
def test_one_fit_after_another(keras: Any, tmp_path: Path) -> None:
    with Job(keras, tmp_path / "reference") as job:
        for _ in range(3):
            job.fit(epochs=1)
        expected = job.seen()
        assert job.batches == [BATCHES] * 3
    with Job(keras, tmp_path / "run") as job:
        job.fit(epochs=1)
        with pytest.raises(Interrupt):
            job.fit(callbacks=[interrupt_at(keras, 6)], epochs=1)
    with Job(keras, tmp_path / "run") as job:
        for _ in range(3):
            job.fit(epochs=1)
        assert job.batches == [0, BATCHES - 5, BATCHES]  # step 16 was the second fit's fifth
        np.testing.assert_array_equal(job.seen(), expected)


@TF_KERAS
def test_a_fit_that_was_interrupted_is_begun_again_in_the_same_process(keras: Any, tmp_path: Path) -> None:
    with Job(keras, tmp_path) as job:
        with pytest.raises(Interrupt):
            job.fit(callbacks=[interrupt_at(keras, 5)], epochs=2)
        job.fit(epochs=2)
        np.testing.assert_array_equal(job.seen(), seen_by_a_whole_fit(keras, 2))


@TF_KERAS
def test_a_restore_between_two_fits_goes_back(keras: Any, tmp_path: Path) -> None:
    with Job(keras, tmp_path) as job:
        job.fit(epochs=2)
        expected = job.seen()
        job.manager.restore(8)
        assert job.seen().sum() == 8 * BATCH
        job.fit(epochs=2)
        assert job.batches == [2 * BATCHES, 2 * BATCHES - 8]
        np.testing.assert_array_equal(job.seen(), expected)


@TF_KERAS
def test_initial_epoch_may_be_later(keras: Any, tmp_path: Path) -> None:
    with Job(keras, tmp_path) as job:
        job.fit(epochs=1)
    with Job(keras, tmp_path) as job:
        job.fit(initial_epoch=4, epochs=5)
        assert job.batches == [BATCHES]


@KERAS3
def test_checkpoints_are_the_same_with_and_without_a_fit(
    keras: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Job(keras, tmp_path) as job:
        job.fit(epochs=1)
        weights = job.model.get_weights()
    with Job(keras, tmp_path, read_only=True) as job:  # an evaluation
        assert job.manager.restore_latest() is not None
        for found, expected in zip(job.model.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(found, expected)
    with Job(keras, tmp_path) as job:  # a loop of one's own goes on
        assert job.manager.restore_latest() is not None
        job.manager.save(40)
    with ckptflow.open_checkpoint(tmp_path) as checkpoint:
        assert not any(name.startswith("ckptflow.") for name in [*checkpoint, *checkpoint.python_state])
    with Job(keras, tmp_path) as job:
        job.manager.restore_latest()
        with pytest.raises(UsageError, match="at step 11, the manager at step 40"):
            job.fit(epochs=1)
    with Job(keras, tmp_path / "other") as job:
        job.manager.save(0)
    with Job(keras, tmp_path / "other") as job:
        job.fit(epochs=1)
        assert job.batches == [BATCHES]
    assert "was not made inside of a fit" in caplog.text


class Counting:
    """State of a user's own callback, as a mixin for both Kerases."""

    count = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.count += 1

    def get_state(self) -> Any:
        return {"count": self.count}

    def set_state(self, state: Any) -> None:
        self.count = state["count"]


@KERAS3
def test_a_callback_with_state_of_its_own(keras: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counting = type("Own", (Counting, keras.callbacks.Callback), {})
    with Job(keras, tmp_path) as job, pytest.raises(Interrupt):
        job.fit(callbacks=[counting(), interrupt_at(keras, 9)], epochs=1)
    with Job(keras, tmp_path) as job:
        own = counting()
        job.fit(callbacks=[own], epochs=2)
        assert own.count == 2 * BATCHES
        assert job.batches == [2 * BATCHES - 8]
    with Job(keras, tmp_path) as job:
        job.fit(callbacks=[keras.callbacks.ReduceLROnPlateau()], epochs=3)
    assert "the state of a callback Own, which this fit has not" in caplog.text
    assert "which start anew: ReduceLROnPlateau" in caplog.text


# A watcher


class Watcher:
    """Saves and leaves at its n-th call, as a PreemptionWatcher does; notes at which steps it was called."""

    def __init__(self, manager: CheckpointManager, leave_at: int = -1) -> None:
        self.manager, self.leave_at, self.steps = manager, leave_at, list[int]()

    def check(self, step: int, metrics: Any = None) -> None:
        self.steps.append(step)
        if len(self.steps) == self.leave_at:
            self.manager.save(step, metrics=metrics)
            self.manager.wait()
            raise SystemExit(75)


def watched(job: Job, leave_at: int = -1) -> tuple[Any, Watcher]:
    watcher = Watcher(job.manager, leave_at)
    every = {"every_epochs": 9, "watcher": watcher}
    stopper = job.keras.callbacks.EarlyStopping(monitor="loss", patience=50)
    validation = dataset().batch(14)
    return job.fit(every=every, callbacks=[stopper], epochs=2, validation_data=validation), watcher


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Any]:
    """What a watched fit of a Keras comes to, and at which steps the watcher was called."""

    @functools.cache
    def of(keras: Any) -> Any:
        with Job(keras, tmp_path_factory.mktemp("reference")) as job:
            history, watcher = watched(job)
            assert watcher.steps == [*range(1, 12), *[11] * 4, *range(12, 23), *[22] * 4]  # 3 in validation, the end
            return job.seen().tolist(), history.history, watcher.steps

    return of


@pytest.mark.parametrize(
    "leave_at",
    [
        pytest.param(5, marks=pytest.mark.chaos, id="batch"),
        pytest.param(11, id="last batch"),
        pytest.param(13, id="validation"),
        pytest.param(15, marks=pytest.mark.chaos, id="epoch"),
        pytest.param(20, marks=pytest.mark.chaos, id="second epoch"),
    ],
)
def test_leaving_at_any_call_of_the_watcher(
    keras: Any, tmp_path: Path, leave_at: int, uninterrupted: Callable[[Any], Any]
) -> None:
    seen, history, steps = uninterrupted(keras)
    with Job(keras, tmp_path) as job, pytest.raises(SystemExit):
        watched(job, leave_at)
    with Job(keras, tmp_path) as job:
        resumed, watcher = watched(job)
        assert job.seen().tolist() == seen
        assert resumed.history == history
        assert watcher.steps == steps[11 if leave_at == 13 else leave_at :]  # all of the validation is done again


# What is refused


def test_keras3_takes_the_callback_without_a_list(tmp_path: Path) -> None:
    with Job(keras_of(False), tmp_path) as job:
        callback = CheckpointCallback(job.manager, every_steps=5)
        job.model.fit(dataset().batch(BATCH), verbose=0, callbacks=callback)
        assert job.steps() == [5, 10, 11]


def test_a_list_of_the_users_own_tells_no_epochs(keras: Any, tmp_path: Path) -> None:
    with Job(keras, tmp_path) as job:
        ours = CheckpointCallback(job.manager, every_steps=5)
        callbacks = keras.callbacks.CallbackList([ours], add_history=True, model=job.model)
        job.model.fit(dataset().batch(BATCH), verbose=0, callbacks=callbacks)
        assert job.steps() == [5, 10, 11]


def refusals(keras: Any, job: Job) -> Iterator[tuple[str, Callable[[], Any]]]:
    data = dataset().batch(BATCH)

    def fit(*callbacks: Any, model: Any = job.model) -> Callable[[], Any]:
        return lambda: model.fit(data, verbose=0, callbacks=list(callbacks))

    def own() -> CheckpointCallback:
        return CheckpointCallback(job.manager, every_steps=5)

    def inner(batch: int, logs: Any) -> None:
        job.model.fit(data, verbose=0, callbacks=[own()])

    def drive() -> None:
        callbacks = keras.callbacks.CallbackList([own()], model=job.model, epochs=1)
        callbacks.on_train_begin()

    yield "give it one CheckpointCallback", fit(own(), own())
    backup = keras.callbacks.BackupAndRestore(str(job.manager.session.store.url) + "-backup")
    yield "BackupAndRestore and CheckpointCallback both", fit(backup, own())
    yield "does not hold the optimizer", fit(own(), model=make_model(keras, {}))
    yield "inside of model.fit", drive
    yield "a fit inside a fit", fit(keras.callbacks.LambdaCallback(on_train_batch_end=inner), own())


def test_what_cannot_be_is_refused(keras: Any, tmp_path: Path) -> None:
    with Job(keras, tmp_path / "run") as job:
        for message, call in refusals(keras, job):
            with pytest.raises(UsageError, match=message):
                call()
    with Job(keras, tmp_path / "run", read_only=True) as job, pytest.raises(UsageError, match="read_only"):
        CheckpointCallback(job.manager, every_steps=1)
    with pytest.raises(UsageError, match=r"what begins with 'ckptflow\.' is ours"):
        CheckpointManager(tmp_path / "run", {"ckptflow.fit": tf.Variable(1)})


def test_a_train_step_that_counts_no_steps_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keras = keras_of(False)

    class Adversarial(keras.Sequential):  # type: ignore[misc, name-defined]
        def train_step(self, data: Any) -> dict[str, Any]:
            return {"loss": tf.zeros([])}

    model = Adversarial([keras.Input((5,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    caplog.set_level(logging.WARNING)
    with CheckpointManager(tmp_path, {"model": model}) as manager:
        callback = CheckpointCallback(manager, every_epochs=1)
        model.fit(dataset().batch(1), epochs=3, verbose=0, callbacks=[callback])
        assert [checkpoint.step for checkpoint in manager.checkpoints()] == [0]
    assert caplog.text.count("no step was counted in 123 batches") == 1
