"""Whole files of Keras's into the user's model where their classes are not known: by places, and never by guess."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tf_keras

import ckptflow
from ckptflow.errors import StateMismatchError, UsageError
from tests.interop.models import without_graph

pytestmark = pytest.mark.usefixtures("unprobed")

KITS: dict[str, Any] = {"keras": keras, "tf_keras": tf_keras}


class Own(keras.layers.Layer):  # type: ignore[misc]
    """A class that nobody has registered."""

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1], 3), name="kernel")

    def call(self, x: Any) -> Any:
        return x @ self.kernel


class OwnOfOld(tf_keras.layers.Layer):  # type: ignore[misc]
    """The same in tf_keras."""

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight("kernel", (shape[-1], 3))

    def call(self, x: Any) -> Any:
        return x @ self.kernel


def make(kit: str, classes: int = 2) -> Any:
    layers = KITS[kit].layers
    own = (Own if kit == "keras" else OwnOfOld)(name="own")
    model = KITS[kit].Sequential([layers.Input((3,)), own, layers.Dense(classes, name="head")])
    model.compile(KITS[kit].optimizers.Adam(0.01), "mse")
    return without_graph(model)


def train(model: Any) -> Any:
    model.train_on_batch(np.ones((4, 3), "f4"), np.ones((4, 2), "f4"))
    return model


@pytest.mark.parametrize("kit", KITS)
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_warm_start_needs_no_classes(kit: str, suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / f"m{suffix}"
    saved = train(make(kit))
    saved.save(path)
    with pytest.raises(UsageError, match="Own"):
        ckptflow.import_model(path, tmp_path / "alone")
    for is_kept in (True, False):
        into = make(kit, classes=5)
        head = np.asarray(into.layers[-1].kernel)
        done = ckptflow.import_model(
            path, tmp_path / f"run-{is_kept}", model={"net": into}, partial=True, optimizer=is_kept
        )
        assert np.array_equal(into.layers[0].kernel, saved.layers[0].kernel)
        assert np.array_equal(into.layers[-1].kernel, head)
        assert "net/head/kernel" in done.metadata["imported"]["left_as_they_were"]
        assert int(into.optimizer.iterations.numpy()) == 0
    assert "are named by their position in the file" in caplog.text


def test_all_of_it_by_places_takes_the_optimizer_too(tmp_path: Path) -> None:
    saved, into = train(make("keras")), make("keras")
    saved.save(tmp_path / "m.keras")
    ckptflow.import_model(tmp_path / "m.keras", tmp_path / "run", model=into, partial=True)
    assert all(map(np.array_equal, into.get_weights(), saved.get_weights()))
    assert all(
        map(np.array_equal, *([np.asarray(each) for each in model.optimizer.variables] for model in (into, saved)))
    )


def test_what_is_renamed_has_to_fit(tmp_path: Path) -> None:
    saved = train(make("keras"))
    saved.save(tmp_path / "m.keras")
    with pytest.raises(StateMismatchError, match="model/head/kernel"):
        ckptflow.import_model(tmp_path / "m.keras", tmp_path / "run", model=make("keras", 5), rename=lambda name: name)


def test_what_the_model_of_a_file_has_no_place_for_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="head")])
    keras.saving.save_model(model, tmp_path / "m", zipped=False)
    ckptflow.import_model(tmp_path / "m", tmp_path / "run")
    assert "no place for" not in caplog.text
    with h5py.File(tmp_path / "m" / "model.weights.h5", "r+") as file:
        file["layers/dense_7/vars/0"] = np.zeros(3, "f4")
    ckptflow.import_model(tmp_path / "m", tmp_path / "more")
    assert "no place for layers/dense_7/vars/0" in caplog.text
