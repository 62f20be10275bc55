"""The state of an optimizer goes into one of its own kind alone: with slots or without, all of it or none."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tf_keras

import ckptflow
from tests.interop.models import KERASES, without_graph

pytestmark = pytest.mark.usefixtures("unprobed")

FRAMEWORKS: dict[str, Any] = {"keras": keras, "tf_keras": tf_keras}
SAVED_RATE, FRESH_RATE = 0.03125, 0.25


def make(framework: str, optimizer: Any, steps: int = 0) -> Any:
    kit = FRAMEWORKS[framework]
    model = kit.Sequential([kit.layers.Input((4,)), kit.layers.Dense(3, name="one"), kit.layers.Dense(2, name="two")])
    model.compile(optimizer, "mean_squared_error")
    without_graph(model)
    for _ in range(steps):
        model.train_on_batch(np.ones((2, 4), "f4"), np.ones((2, 2), "f4"))
    return model


def save(model: Any, path: Path) -> Path:
    """As its own Keras saves it."""
    (model.save_weights if path.name.endswith(".weights.h5") else model.save)(str(path))
    return path


def state_of(model: Any) -> tuple[int, float]:
    return int(model.optimizer.iterations), float(model.optimizer.learning_rate)


def slots_of(model: Any) -> list[Any]:
    variables = model.optimizer.variables
    return [np.array(each) for each in (variables() if callable(variables) else variables) if len(each.shape)]


class Slotless(keras.optimizers.Optimizer):  # type: ignore[misc]
    """One of a user's own, with no more variables than plain SGD has."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        self.assign_sub(variable, learning_rate * gradient)


OF_KERAS: dict[str, tuple[Callable[..., Any], int, Callable[..., Any]]] = {
    "without slots into one with": (keras.optimizers.SGD, 7, keras.optimizers.Adam),
    "before its first step into one without": (keras.optimizers.Adam, 0, keras.optimizers.SGD),
    "with slots into one without": (keras.optimizers.Adam, 3, keras.optimizers.SGD),
    "without slots into another without": (keras.optimizers.SGD, 7, Slotless),
    "without slots into its own class with": (
        keras.optimizers.SGD,
        7,
        lambda rate: keras.optimizers.SGD(rate, momentum=0.9),
    ),
}
OF_TF_KERAS: dict[str, tuple[Callable[..., Any], int, Callable[..., Any]]] = {
    "into another": (tf_keras.optimizers.SGD, 7, tf_keras.optimizers.Adam),
    "before its first step": (tf_keras.optimizers.Adam, 0, tf_keras.optimizers.SGD),
    "of old, without slots": (tf_keras.optimizers.legacy.SGD, 7, tf_keras.optimizers.legacy.Adam),
    "of old, with slots": (tf_keras.optimizers.legacy.Adam, 7, tf_keras.optimizers.legacy.SGD),
}
CASES = [
    *(("keras", name, suffix) for name in OF_KERAS for suffix in (".keras", ".h5", ".weights.h5")),
    *(("tf_keras", name, suffix) for name in OF_TF_KERAS for suffix in (".keras", ".h5", ".weights.h5")),
]


@pytest.mark.parametrize(("framework", "name", "suffix"), CASES)
def test_no_counter_goes_into_another_optimizer(
    framework: str, name: str, suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved, steps, new = {"keras": OF_KERAS, "tf_keras": OF_TF_KERAS}[framework][name]
    model = make(framework, saved(SAVED_RATE), steps)
    path = save(model, tmp_path / f"m{suffix}")
    mine = make(framework, new(FRESH_RATE))
    caplog.clear()
    with caplog.at_level(logging.WARNING, "ckptflow"):
        ckptflow.import_model(path, tmp_path / "run", model=mine)
    assert all(map(np.array_equal, mine.get_weights(), model.get_weights()))
    assert state_of(mine) == (0, FRESH_RATE)
    assert not any(each.any() for each in slots_of(mine))
    has_state = suffix == ".h5" or "of old" not in name  # else tf_keras writes nothing of it
    assert ("is not taken" in caplog.text) == has_state


def test_of_old_into_keras_3(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(make("tf_keras", tf_keras.optimizers.legacy.SGD(SAVED_RATE), 7), tmp_path / "m.h5")
    mine = make("keras", keras.optimizers.Adam(FRESH_RATE))
    caplog.clear()
    with caplog.at_level(logging.WARNING, "ckptflow"):
        ckptflow.import_model(path, tmp_path / "run", model=mine)
    assert state_of(mine) == (0, FRESH_RATE)
    assert "is not taken" in caplog.text


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".weights.h5"])
def test_plain_sgd_goes_into_plain_sgd(suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(make("keras", keras.optimizers.SGD(SAVED_RATE), 7), tmp_path / f"m{suffix}")
    mine = make("keras", keras.optimizers.SGD(FRESH_RATE))
    caplog.clear()
    with caplog.at_level(logging.WARNING, "ckptflow"):
        ckptflow.import_model(path, tmp_path / "run", model=mine)
    assert state_of(mine) == (7, SAVED_RATE)
    assert not caplog.messages


def as_before_3_15(path: Path) -> Path:
    """SGD was called in capitals then."""
    with h5py.File(path, "r+") as file:
        file["optimizer/vars"].attrs["name"] = "SGD"
    return path


def test_plain_sgd_of_keras_before_3_15(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = as_before_3_15(save(make("keras", keras.optimizers.SGD(SAVED_RATE), 7), tmp_path / "m.weights.h5"))
    mine = make("keras", keras.optimizers.SGD(FRESH_RATE))
    caplog.clear()
    with caplog.at_level(logging.WARNING, "ckptflow"):
        ckptflow.import_model(path, tmp_path / "run", model=mine)
    assert state_of(mine) == (7, SAVED_RATE)
    assert not caplog.messages


@pytest.mark.parametrize("new", [keras.optimizers.Lion, keras.optimizers.Adagrad])
def test_momentum_of_keras_before_3_15(new: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It has the shapes of what these have for each variable."""
    model = make("keras", keras.optimizers.SGD(SAVED_RATE, momentum=0.9), 7)
    path = as_before_3_15(save(model, tmp_path / "m.weights.h5"))
    mine = make("keras", new(FRESH_RATE))
    ckptflow.import_model(path, tmp_path / "run", model=mine)
    assert state_of(mine) == (0, FRESH_RATE)
    assert f"it is that of SGD, another class than the model's {new.__name__}" in caplog.text


def test_plain_sgd_of_old_goes_into_plain_sgd(tmp_path: Path) -> None:
    path = save(make("tf_keras", tf_keras.optimizers.legacy.SGD(SAVED_RATE), 7), tmp_path / "m.h5")
    mine = make("tf_keras", tf_keras.optimizers.legacy.SGD(FRESH_RATE))
    ckptflow.import_model(path, tmp_path / "run", model=mine)
    assert int(mine.optimizer.iterations) == 7
    ckptflow.import_model(path, tmp_path / "made")  # by the file's own config, as one of today, which has slots
    with ckptflow.open_checkpoint(tmp_path / "made") as opened:
        (count,) = [each.name for each in opened.manifest.tensors if "iteration" in each.name]
        assert opened[count] == 7


def test_counters_of_which_no_class_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They would fit whatever has no slots. Where the name is the same, that tells."""
    path = save(make("keras", keras.optimizers.SGD(SAVED_RATE, name="ours"), 7), tmp_path / "m.weights.h5")
    nameless = save(make("keras", keras.optimizers.SGD(SAVED_RATE), 7), tmp_path / "nameless.weights.h5")
    with h5py.File(nameless, "r+") as file:
        del file["optimizer/vars"].attrs["name"]
    config = save(make("keras", keras.optimizers.SGD(SAVED_RATE), 7), tmp_path / "m.h5")
    with h5py.File(config, "r+") as file:
        del file.attrs["training_config"]
    for number, (source, name, is_taken) in enumerate(
        [(path, "ours", True), (path, "theirs", False), (nameless, "ours", False), (config, "SGD", False)]
    ):
        mine = make("keras", keras.optimizers.SGD(FRESH_RATE, name=name))
        caplog.clear()
        with caplog.at_level(logging.WARNING, "ckptflow"):
            ckptflow.import_model(source, tmp_path / f"run{number}", model=mine)
        assert state_of(mine) == ((7, SAVED_RATE) if is_taken else (0, FRESH_RATE)), number
        assert ("of which class it was is not known" in caplog.text) != is_taken


@pytest.mark.parametrize("name", ["m.safetensors", "saved"])
@pytest.mark.parametrize("framework", KERASES)
def test_where_another_format_tells_the_class(
    name: str, framework: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kit = FRAMEWORKS[framework].optimizers
    for number, (saved, steps, new) in enumerate([(kit.SGD, 7, kit.Adam), (kit.Adam, 0, kit.SGD)]):
        model = make(framework, saved(SAVED_RATE), steps)
        with ckptflow.CheckpointManager(tmp_path / f"origin{number}", {"model": model}) as manager:
            manager.save(1)
        source = tmp_path / f"{number}{name}"
        form = "safetensors" if "." in name else "saved-model"
        ckptflow.export_checkpoint(tmp_path / f"origin{number}", source, format=form)
        mine = make(framework, new(FRESH_RATE))
        caplog.clear()
        with caplog.at_level(logging.WARNING, "ckptflow"):
            ckptflow.import_model(source, tmp_path / f"run{number}", model={"model": mine})
        assert all(map(np.array_equal, mine.get_weights(), model.get_weights()))
        assert state_of(mine) == (0, FRESH_RATE)
        assert not any(each.any() for each in slots_of(mine))
