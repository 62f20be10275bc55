"""Averages of the weights (`use_ema`), and Keras's SwapEMAWeights, which puts them in the model's place."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import ckptflow
from ckptflow import CheckpointCallback
from ckptflow.state.private.keras import SWAPPED
from tests.callbacks.jobs import BATCH, dataset, make_model
from tests.callbacks.test_fit import Interrupt, Watcher

Optimizer = Callable[[], Any]


def averaging() -> Any:
    return keras.optimizers.Adam(0.02, use_ema=True, ema_momentum=0.5)


def scaling() -> Any:
    """As `compile` makes it of one under the policy "mixed_float16"."""
    return keras.optimizers.LossScaleOptimizer(averaging())


def several() -> Any:
    optimizers = keras.optimizers.OptimizerMap(keras.optimizers.SGD(0.01), {".*kernel": averaging()})
    return keras.optimizers.MultiOptimizer(optimizers)


OPTIMIZERS: list[Optimizer] = [averaging, scaling, several]


class Run:
    """One life: a new model and a new manager on a root."""

    def __init__(self, root: Path, make: Optimizer = averaging) -> None:
        keras.utils.set_random_seed(11)
        self.model = make_model(keras, {"optimizer": lambda _: make()})
        self.manager = ckptflow.CheckpointManager(root, {"model": self.model}, keep=ckptflow.KeepLast(1000))

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: Any) -> None:
        self.manager.__exit__(*error)

    def fit(self, *callbacks: Any, every: dict[str, Any] | None = None, epochs: int = 2, **arguments: Any) -> list[Any]:
        ours = CheckpointCallback(self.manager, **(every or {"every_steps": 4}))
        arguments = {"validation_data": dataset().batch(14)} | arguments
        data = dataset().shuffle(16, seed=3).batch(BATCH)
        self.model.fit(data, verbose=0, epochs=epochs, callbacks=[*callbacks, ours], **arguments)
        return [np.asarray(value).tolist() for value in [*self.model.weights, *self.model.optimizer.variables]]


def leaving(run: Run, at: int) -> dict[str, Any]:
    """At the watcher's call of that number: the 13th is after the second batch of the first validation."""
    return {"every_epochs": 9, "watcher": Watcher(run.manager, at)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Optimizer, int], list[Any]]:
    """What a fit of two epochs comes to that nothing interrupts, so many of them validated; each is run once."""

    @functools.cache
    def run_whole(make: Optimizer, validated: int) -> list[Any]:
        with Run(tmp_path_factory.mktemp("whole"), make) as run:
            return run.fit(keras.callbacks.SwapEMAWeights(), validation_freq=[*range(1, validated + 1)])

    return run_whole


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Optimizer, int], Path]:
    """The root of a fit that was left in a validation; each is run once, and is not to be changed."""

    @functools.cache
    def leave(make: Optimizer, at: int) -> Path:
        root = tmp_path_factory.mktemp("left")
        with Run(root, make) as run, pytest.raises(SystemExit):
            run.fit(keras.callbacks.SwapEMAWeights(), every=leaving(run, at))
        return root

    return leave


def swapped(callback: Any) -> bool:
    return bool(vars(callback)[SWAPPED])


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_the_averages_that_a_fit_ends_with_are_saved(make: Optimizer, tmp_path: Path) -> None:
    with Run(tmp_path, make) as run:
        run.fit(every={"every_epochs": 1}, epochs=1)
        kernel = np.asarray(run.model.layers[1].kernel)
    with ckptflow.open_checkpoint(tmp_path) as checkpoint:
        (name,) = [name for name in checkpoint if name.startswith("model/dense") and name.endswith("/kernel")][:1]
        np.testing.assert_array_equal(checkpoint[name], kernel)


# `test_a_warm_start_for_something_else_puts_them_back` does so with averages alone.
@pytest.mark.parametrize("make", [pytest.param(averaging, marks=pytest.mark.chaos), scaling, several])
def test_a_fit_that_was_left_in_a_validation_of_averages_goes_on(
    make: Optimizer,
    whole: Callable[[Optimizer, int], list[Any]],
    left: Callable[[Optimizer, int], Path],
    tmp_path: Path,
) -> None:
    shutil.copytree(left(make, 13), tmp_path / "run")
    with Run(tmp_path / "run", make) as run:
        swapping = keras.callbacks.SwapEMAWeights()
        assert run.fit(swapping) == whole(make, 2)
        assert not swapped(swapping)


@pytest.mark.parametrize(
    ("has_callback", "at", "epochs"),
    [
        pytest.param(True, 13, 1, id="first"),
        pytest.param(True, 28, 2, id="last"),
        pytest.param(False, 13, 1, id="first, without the callback"),
        pytest.param(False, 28, 2, id="last, without the callback", marks=pytest.mark.chaos),
    ],
)
def test_training_never_goes_on_from_averages(
    has_callback: bool,
    at: int,
    epochs: int,
    whole: Callable[[Optimizer, int], list[Any]],
    left: Callable[[Optimizer, int], Path],
    tmp_path: Path,
) -> None:
    """Left in a validation that the next life does not do, perhaps without the callback."""
    shutil.copytree(left(averaging, at), tmp_path / "run")
    with Run(tmp_path / "run") as run:
        callbacks = [keras.callbacks.SwapEMAWeights()] if has_callback else []
        assert run.fit(*callbacks, validation_data=None) == whole(averaging, epochs)


@pytest.fixture(scope="module")
def validated_last(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[Any]]:
    """What a fit after so many others comes to that validates its second epoch alone; each is run once."""

    @functools.cache
    def run_whole(fits: int) -> list[Any]:
        with Run(tmp_path_factory.mktemp("whole")) as run:
            for _ in range(fits):
                run.fit(every={"every_epochs": 9}, epochs=1)
            return run.fit(keras.callbacks.SwapEMAWeights(), validation_freq=[2])

    return run_whole


@pytest.mark.parametrize(
    ("every", "fits"),
    [({"every_steps": 4}, 0), ({"every_epochs": 9}, 0), ({"every_epochs": 9}, 1)],
    ids=["restored", "anew", "as it is"],
)
def test_a_fit_whose_validation_failed_is_begun_again(
    every: dict[str, Any], fits: int, validated_last: Callable[[int], list[Any]], tmp_path: Path
) -> None:
    """With the same callback, which is left saying that the averages are in the model."""
    with Run(tmp_path / "run") as run:
        for _ in range(fits):
            run.fit(every={"every_epochs": 9}, epochs=1)
        swapping, failing = keras.callbacks.SwapEMAWeights(), keras.callbacks.LambdaCallback()
        failing.on_test_batch_end = interrupt
        with pytest.raises(Interrupt):
            run.fit(swapping, failing, every=every)
        assert swapped(swapping)
        found = run.fit(swapping, validation_freq=[2])
        if fits or "every_steps" in every:  # else nothing was there to be restored, and it begins anew
            assert found == validated_last(fits)
        assert not swapped(swapping)


def interrupt(*_: Any, **__: Any) -> None:
    raise Interrupt


def test_swapping_at_epochs_goes_on_exactly(tmp_path: Path) -> None:
    def swapping() -> Any:
        return keras.callbacks.SwapEMAWeights(swap_on_epoch=True)

    def fail(epoch: int, logs: Any) -> None:
        if epoch == 2:
            raise Interrupt

    every = {"every_epochs": 1}
    with Run(tmp_path / "reference") as run:
        expected = run.fit(swapping(), every=every, epochs=4, validation_data=None)
    failing = keras.callbacks.LambdaCallback(on_epoch_begin=fail)
    with Run(tmp_path / "run") as run, pytest.raises(Interrupt):
        run.fit(swapping(), failing, every=every, epochs=4, validation_data=None)
    with Run(tmp_path / "run") as run:
        assert run.fit(swapping(), every=every, epochs=4, validation_data=None) == expected


def test_a_warm_start_puts_no_averages_back(
    left: Callable[[Optimizer, int], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They did not come: what is in their place would be put into the model."""
    shutil.copytree(left(averaging, 13), tmp_path / "run")
    with Run(tmp_path / "run", lambda: keras.optimizers.Adam(0.02)) as run:
        run.manager.restore_latest(partial=True)
        run.fit(validation_data=None)
    assert "are the averages of SwapEMAWeights" in caplog.text


def test_a_warm_start_for_something_else_puts_them_back(
    whole: Callable[[Optimizer, int], list[Any]], left: Callable[[Optimizer, int], Path], tmp_path: Path
) -> None:
    """All weights and averages came; what did not is another entry of the state."""
    shutil.copytree(left(averaging, 13), tmp_path / "run")
    with Run(tmp_path / "run") as run:
        state = {"model": run.model, "new": tf.Variable(1.0)}
        run.manager = ckptflow.CheckpointManager(tmp_path / "run", state, keep=ckptflow.KeepLast(1000))
        run.manager.restore_latest(partial=True)
        assert run.fit(keras.callbacks.SwapEMAWeights()) == whole(averaging, 2)
