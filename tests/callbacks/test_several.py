"""Several fits in one script: what is passed over, what is begun again, what an exception leaves behind."""

from __future__ import annotations

import functools
import gc
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import ckptflow
from ckptflow import CheckpointCallback
from tests.callbacks.jobs import BATCH, BATCHES, arrays, dataset, keras_of
from tests.callbacks.test_fit import Failing, Interrupt, Job, interrupt_at, seen_by_a_whole_fit
from tests.manager.states import wrap_store

EPOCH = {"every_epochs": 1}


@pytest.fixture(params=[False, True], ids=["keras3", "tf_keras"])
def keras(request: pytest.FixtureRequest) -> Any:
    return keras_of(request.param)


KERAS3 = pytest.mark.parametrize("keras", [False], indirect=True)  # where it is the same code for both
TF_KERAS = pytest.mark.parametrize("keras", [True], indirect=True)


def weights(job: Job) -> list[Any]:
    return [np.asarray(weight).tolist() for weight in job.model.get_weights()]


def rate_of(job: Job) -> float:
    return float(job.model.optimizer.learning_rate.numpy())


# A fit that is passed over


@KERAS3
def test_averages_of_a_fit_that_is_passed_over_are_not_what_the_next_goes_on_with(keras: Any, tmp_path: Path) -> None:
    def life(root: Path, *callbacks: Any) -> list[Any]:
        with Job(keras, root) as job:
            job.model.compile(keras.optimizers.Adam(0.02, use_ema=True, ema_momentum=0.5), "mse")
            job.manager = ckptflow.CheckpointManager(root, {"model": job.model})
            job.fit(epochs=1)
            job.fit(epochs=1, callbacks=callbacks)
            return weights(job)

    expected = life(tmp_path / "reference")
    with pytest.raises(Interrupt):
        life(tmp_path / "run", interrupt_at(keras, 6))
    assert life(tmp_path / "run") == expected


@TF_KERAS
def test_a_rate_set_between_two_fits_is_set_before_the_second_begins_not_where_it_goes_on(
    keras: Any, tmp_path: Path
) -> None:
    def life(root: Path, *callbacks: Any) -> tuple[float, list[Any], float]:
        lower = keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=1, min_delta=9.0, factor=0.1)
        with Job(keras, root) as job:
            job.fit(epochs=1)
            job.model.optimizer.learning_rate.assign(1e-3)
            job.fit(epochs=4, callbacks=[lower, *callbacks])
            after = rate_of(job)
            job.fit(epochs=1)
            return after, weights(job), rate_of(job)

    def in_the_third_epoch(epoch: int, logs: Any) -> None:
        if epoch == 2:
            raise Interrupt

    expected = life(tmp_path / "reference")
    assert expected[0] < 1e-3
    with pytest.raises(Interrupt):
        life(tmp_path / "run", keras.callbacks.LambdaCallback(on_epoch_end=in_the_third_epoch))
    assert life(tmp_path / "run") == expected
    assert life(tmp_path / "run")[1:] == expected[1:], "all of them are complete"


@KERAS3
def test_the_end_of_a_complete_fit_is_not_done_once_more(keras: Any, tmp_path: Path) -> None:
    class Halve(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_end(self, logs: Any = None) -> None:
            self.model.set_weights([weight / 2 for weight in self.model.get_weights()])

    found = []
    for _ in range(2):
        with Job(keras, tmp_path) as job:
            job.fit(epochs=1, callbacks=[Halve()])
            found.append(weights(job))
    assert found[0] == found[1]


# A fit that is begun again


def at_first_batch(keras: Any) -> Any:
    return interrupt_at(keras, 0)


@KERAS3
def test_a_second_fit_that_fails_before_its_first_save_is_begun_again_as_the_second(keras: Any, tmp_path: Path) -> None:
    for explicitly in (False, True):
        with Job(keras, tmp_path / str(explicitly)) as job:
            job.fit(epochs=1)
            for _ in range(2):
                with pytest.raises(Interrupt):
                    job.fit(epochs=1, callbacks=[at_first_batch(keras)])
                if explicitly:
                    job.manager.restore_latest()
            job.fit(epochs=1)
            assert job.batches[-1] == BATCHES
        with Job(keras, tmp_path / str(explicitly)) as job:
            job.fit(epochs=1)
            job.fit(epochs=2)
            assert job.batches == [0, BATCHES]


@TF_KERAS
def test_a_first_fit_on_a_root_that_something_else_began_stays_the_first(keras: Any, tmp_path: Path) -> None:
    with Job(keras, tmp_path) as job:
        job.model.optimizer.build(job.model.trainable_variables)
        job.manager.save(0)
    with Job(keras, tmp_path) as job:
        for _ in range(2):
            with pytest.raises(Interrupt):
                job.fit(epochs=1, callbacks=[at_first_batch(keras)])
        job.fit(epochs=1)
        assert job.batches[-1] == BATCHES
    with Job(keras, tmp_path) as job:
        job.fit(epochs=2)
        assert job.batches == [BATCHES]


@KERAS3
def test_a_restore_after_an_interrupt_is_what_the_fit_goes_on_from(keras: Any, tmp_path: Path) -> None:
    with Job(keras, tmp_path) as job:
        with pytest.raises(Interrupt):
            job.fit(epochs=1, callbacks=[interrupt_at(keras, 9)])
        job.manager.restore(4)
        job.fit(epochs=1)
        assert job.batches[-1] == BATCHES - 4


@KERAS3
def test_a_fit_whose_last_save_failed_is_begun_again_as_the_same(
    keras: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = wrap_store(monkeypatch, Failing)
    with Job(keras, tmp_path) as job:

        def break_storage(epoch: int, logs: Any) -> None:
            job.manager.wait()  # for the save of step 8
            stores[0].fails = True

        fail = keras.callbacks.LambdaCallback(on_epoch_end=break_storage)
        with pytest.raises(ckptflow.SaveFailedError, match="503 from the test"):
            job.fit(every={"every_steps": 4}, callbacks=[fail], epochs=1)
        stores[0].fails = False
        job.fit(epochs=1)
        assert job.batches == [BATCHES, BATCHES - 8]
        assert job.steps()[-1] == BATCHES


# What an exception leaves behind


def trained(job: Job) -> int:
    """How many batches a fit of Keras alone trains."""
    before = int(job.model.optimizer.iterations.numpy())
    job.model.fit(dataset().batch(BATCH), verbose=0, epochs=1)
    return int(job.model.optimizer.iterations.numpy()) - before


@pytest.fixture
def no_gc() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def raiser(keras: Any, **hooks: Callable[..., None]) -> Any:
    return keras.callbacks.LambdaCallback(**hooks)


def interrupt(*_: Any, **__: Any) -> None:
    raise Interrupt


@pytest.fixture(scope="module")
def left_in_the_second_epoch(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Path]:
    """The root of a fit that was left at its second epoch's end; each is run once, and is not to be changed."""

    def in_the_second(epoch: int, logs: Any) -> None:
        if epoch == 1:
            raise Interrupt

    @functools.cache
    def leave(keras: Any) -> Path:
        root = tmp_path_factory.mktemp("left")
        with Job(keras, root) as job, pytest.raises(Interrupt):
            job.fit(every={"every_steps": BATCHES}, epochs=3, callbacks=[raiser(keras, on_epoch_end=in_the_second)])
        return root

    return leave


@pytest.mark.usefixtures("no_gc")
@pytest.mark.parametrize(
    ("keras", "hook"),
    [
        *((False, hook) for hook in ("on_epoch_begin", "on_train_batch_begin", "on_train_batch_end", "on_epoch_end")),
        *((True, hook) for hook in ("on_train_batch_begin", "on_epoch_end")),
    ],
    indirect=["keras"],
)
def test_nothing_is_left_on_the_model_by_a_fit_that_goes_on_at_an_epochs_end(
    keras: Any, tmp_path: Path, hook: str, left_in_the_second_epoch: Callable[[Any], Path]
) -> None:
    shutil.copytree(left_in_the_second_epoch(keras), tmp_path, dirs_exist_ok=True)
    errors = []  # their frames hold what must not matter
    with Job(keras, tmp_path) as job:
        try:
            job.fit(epochs=3, callbacks=[raiser(keras, **{hook: interrupt})])
        except Interrupt as error:
            errors.append(error)
        assert len(errors) == 1
        assert trained(job) == BATCHES


def test_a_stop_inside_an_epoch_is_still_one_after_a_restart(keras: Any, tmp_path: Path) -> None:
    class Stop(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 5:
                self.model.stop_training = True

    def life(root: Path, *callbacks: Any) -> tuple[Any, ...]:
        with Job(keras, root) as job:
            history = job.fit(
                every={"every_steps": 6}, epochs=9, validation_data=arrays(), callbacks=[Stop(), *callbacks]
            )
            return history.history, weights(job)

    expected = life(tmp_path / "reference")
    with pytest.raises(Interrupt):
        life(tmp_path / "run", raiser(keras, on_test_begin=interrupt))
    assert life(tmp_path / "run") == expected


@KERAS3
def test_metrics_held_for_a_validation_that_failed_are_not_in_later_checkpoints(keras: Any, tmp_path: Path) -> None:
    class Watcher:
        def check(self, step: int, metrics: Any = None) -> None:
            pass

    def metrics_at(root: Path, step: int) -> dict[str, Any]:
        found = {c.step: c for c in ckptflow.list_checkpoints(root)}[step]
        with ckptflow.open_checkpoint(found.url) as checkpoint:
            return {name: checkpoint[name].tolist() for name in checkpoint if "metric" in name or "loss" in name}

    def fit(job: Job, *callbacks: Any) -> None:
        every = {"every_steps": 4, "watcher": Watcher()}
        job.fit(every=every, epochs=2, validation_data=arrays(), callbacks=list(callbacks))

    with Job(keras, tmp_path / "reference") as job:
        fit(job)
    with Job(keras, tmp_path / "run") as job:
        with pytest.raises(Interrupt):
            fit(job, raiser(keras, on_test_batch_end=interrupt))
        job.manager.restore(4)
        fit(job)
    assert metrics_at(tmp_path / "reference", 8)
    assert metrics_at(tmp_path / "run", 8) == metrics_at(tmp_path / "reference", 8)


@KERAS3
def test_a_callback_that_counts_batches_counts_none_twice(keras: Any, tmp_path: Path) -> None:
    from tests.callbacks.test_fit import Counting

    counting = type("Own", (Counting, keras.callbacks.Callback), {})
    with Job(keras, tmp_path) as job, pytest.raises(Interrupt):
        job.fit(
            every={"every_steps": BATCHES},
            epochs=2,
            callbacks=[counting(), raiser(keras, on_epoch_end=interrupt)],
        )
    with Job(keras, tmp_path) as job:
        own = counting()
        job.fit(epochs=2, callbacks=[own])
        assert own.count == 2 * BATCHES


@KERAS3
def test_left_at_the_last_epochs_end_it_keeps_its_metrics(keras: Any, tmp_path: Path) -> None:
    class Ends(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_end(self, logs: Any = None) -> None:
            pass

    class Leaving:
        def __init__(self, manager: Any) -> None:
            self.manager = manager

        def check(self, step: int, metrics: Any = None) -> None:
            if "val_loss" in (metrics or {}):
                self.manager.wait()
                raise Interrupt

    def fit(job: Job, *, leaves: bool) -> None:
        every = {"every_epochs": 1} | ({"watcher": Leaving(job.manager)} if leaves else {})
        job.fit(every=every, epochs=1, validation_data=arrays(), callbacks=[Ends()])

    with Job(keras, tmp_path) as job, pytest.raises(Interrupt):
        fit(job, leaves=True)
    with Job(keras, tmp_path) as job:
        job.manager.session.policies = (ckptflow.KeepBest("val_loss"),)
        fit(job, leaves=False)
    assert [set(c.metrics) >= {"loss", "val_loss"} for c in ckptflow.list_checkpoints(tmp_path)] == [True]


@KERAS3
def test_leaving_saves_batches_that_count_no_steps(keras: Any, tmp_path: Path) -> None:
    """`optimizer.iterations` stays where gradients are accumulated, or other optimizers do the work."""
    from tests.preemption.test_watcher import tell

    class Own(keras.Sequential):  # type: ignore[misc]
        def train_step(self, data: Any) -> dict[str, Any]:
            self.layers[-1].bias.assign_add([1.0])
            return {"loss": tf.zeros([])}

    def life(leave_at: int) -> None:
        model = Own([keras.Input((5,)), keras.layers.Dense(1)])
        model.compile("adam", "mse")
        with ckptflow.CheckpointManager(tmp_path, {"model": model}) as manager:
            with ckptflow.PreemptionWatcher(manager) as watcher:
                manager.restore_latest()
                manager.save(0)
                callback = CheckpointCallback(manager, every_epochs=9, watcher=watcher)
                told = raiser(
                    keras, on_train_batch_end=lambda batch, logs: tell(watcher) if batch == leave_at else None
                )
                model.fit(dataset().batch(BATCH), epochs=2, verbose=0, callbacks=[callback, told])

    with pytest.raises(SystemExit):
        life(6)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert ckptflow.list_checkpoints(tmp_path)[-1].step == 0
    with ckptflow.open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint["model/dense/bias"].tolist() == [7.0]


@pytest.mark.parametrize(("saves", "batch"), [("a callback", 0), ("after the exception", 5)])
def test_a_save_before_a_batchs_end_has_that_batch(keras: Any, tmp_path: Path, saves: str, batch: int) -> None:
    """The model has it."""

    def save(job: Job) -> None:
        job.manager.save(int(job.model.optimizer.iterations))

    def end(now: int, logs: Any) -> None:
        if seen and now == batch:
            if saves == "a callback":
                save(job)
            raise Interrupt

    seen: list[int] = []
    ends = keras.callbacks.LambdaCallback(on_train_batch_end=end, on_epoch_begin=lambda e, logs: seen.extend([e] * e))
    with Job(keras, tmp_path) as job:
        with pytest.raises(Interrupt):
            job.fit(epochs=3, every={"every_epochs": 1}, callbacks=[ends])
        if saves != "a callback":
            save(job)
    with Job(keras, tmp_path) as again:
        again.fit(epochs=3)
        assert again.batches == [2 * BATCHES - batch - 1]
        np.testing.assert_array_equal(again.seen(), seen_by_a_whole_fit(keras, 3))


@KERAS3
def test_a_save_of_a_model_that_something_else_has_trained_says_so(
    keras: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Job(keras, tmp_path) as job:
        with pytest.raises(Interrupt):
            job.fit(every={"every_steps": 1}, callbacks=[raiser(keras, on_epoch_end=interrupt)])
        job.model.optimizer.iterations.assign_add(3)
        job.manager.save(BATCHES + 3)
        assert "not by one batch" in caplog.text
