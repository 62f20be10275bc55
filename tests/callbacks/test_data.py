"""Data that end where `fit` does not expect it: nobody told their size, they have another one now, or are too few."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from ckptflow import CheckpointCallback, CheckpointManager
from tests.callbacks.jobs import keras_of
from tests.callbacks.test_fit import Interrupt

ROWS = 2  # of a batch


@pytest.fixture(params=[False, True], ids=["keras3", "tf_keras"])
def keras(request: pytest.FixtureRequest) -> Any:
    return keras_of(request.param)


def batch(number: int) -> Any:
    rng = np.random.default_rng(number)
    return rng.standard_normal((ROWS, 3)).astype(np.float32), rng.standard_normal((ROWS, 1)).astype(np.float32)


def untold(count: int) -> Any:
    """So many batches; their number is found out by reading."""
    signature = (tf.TensorSpec((None, 3), tf.float32), tf.TensorSpec((None, 1), tf.float32))
    return tf.data.Dataset.from_generator(lambda: map(batch, range(count)), output_signature=signature)


def told(count: int) -> Any:
    return untold(count).apply(tf.data.experimental.assert_cardinality(count))


def life(keras: Any, root: Path | None, data: Any, **arguments: Any) -> tuple[dict[str, Any], int]:
    """A fit, with checkpoints where there is a root for them: its history, and how many batches it has trained."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"], run_eagerly=arguments.pop("run_eagerly", False))
    every = arguments.pop("every", {"every_steps": 1})
    ended: list[int] = []
    counter = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: ended.append(batch))
    others = [*arguments.pop("callbacks", []), counter]
    with contextlib.ExitStack() as stack:
        if root is not None:
            manager = stack.enter_context(CheckpointManager(root, {"model": model}))
            others = [*others, CheckpointCallback(manager, **every)]
        history = model.fit(data, verbose=0, callbacks=others, **arguments)
        return {"epochs": history.epoch, **history.history}, len(ended)


def interrupt_after(keras: Any, count: int, hook: str = "on_train_batch_end") -> Any:
    """Ends a fit at the so-many-th call of a hook, after what came before it was saved."""
    calls: list[None] = []

    def call(*_: Any, **__: Any) -> None:
        calls.append(None)
        if len(calls) == count:
            raise Interrupt

    return keras.callbacks.LambdaCallback(**{hook: call})


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)


# Another size now


@pytest.mark.parametrize(("every", "now"), [("every_steps", 6), ("every_epochs", 2)])
def test_a_longer_fit_takes_all_of_data_that_have_another_size_now(
    keras: Any, tmp_path: Path, every: str, now: int
) -> None:
    how: dict[str, Any] = {"every": {every: 1}, "run_eagerly": every == "every_epochs"}
    life(keras, tmp_path, untold(4), epochs=2, **how)
    history, batches = life(keras, tmp_path, untold(now), epochs=4, **how)
    assert (history["epochs"], batches) == ([0, 1, 2, 3], now + now)


@pytest.mark.parametrize("now", [6, 3])
def test_an_epoch_goes_on_to_the_end_of_data_that_have_another_size_now(keras: Any, tmp_path: Path, now: int) -> None:
    is_eager = now == 3
    with pytest.raises(Interrupt):
        life(keras, tmp_path, untold(4), epochs=3, callbacks=[interrupt_after(keras, 6)], run_eagerly=is_eager)
    history, batches = life(keras, tmp_path, untold(now), epochs=3, run_eagerly=is_eager)
    assert (history["epochs"], batches) == ([0, 1, 2], now - 1 + now)


# Fewer than fit was told


# Each with the epoch that has too few batches, or none. In a graph and without one their end is told in other ways.
FEW: dict[str, tuple[Callable[[], Any], dict[str, Any], int]] = {
    "in an epoch": (lambda: told(5), {"steps_per_epoch": 3, "epochs": 3}, 2),
    "at an epoch's end": (lambda: told(6), {"steps_per_epoch": 3, "epochs": 3, "run_eagerly": True}, 3),
    "nobody knows": (lambda: untold(6), {"steps_per_epoch": 3, "epochs": 4}, 3),
    "an iterator": (lambda: iter(told(3)), {"epochs": 3, "run_eagerly": True}, 2),
}


@pytest.mark.parametrize(
    ("keras", "which"),
    [
        *((False, which) for which in ("in an epoch", "at an epoch's end")),  # Keras 3 takes no iterator
        *((True, which) for which in FEW),
    ],
    indirect=["keras"],
)
def test_data_that_ran_out_end_a_fit_as_they_would_have(
    keras: Any, tmp_path: Path, which: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Started again where that epoch began, where it was over but not saved as such, and once the fit is complete."""
    make, arguments, epoch = FEW[which]
    expected, _ = life(keras, None, make(), **arguments)
    for hook in ("on_epoch_begin", "on_epoch_end"):
        with pytest.raises(Interrupt):
            life(keras, tmp_path / hook, make(), callbacks=[interrupt_after(keras, epoch, hook)], **arguments)
        assert_same(life(keras, tmp_path / hook, make(), **arguments)[0], expected)
    assert life(keras, tmp_path / hook, make(), **arguments)[1] == 0
    assert "not by one batch" not in caplog.text
