"""Keras casts what a file holds to the dtype of a model's variables; an import does where no value is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tf_keras

import ckptflow
from ckptflow.errors import StateMismatchError
from tests.interop.models import KERASES, without_graph
from tests.interop.test_keras_named import file_of, slots

pytestmark = pytest.mark.usefixtures("unprobed")

FRAMEWORKS: dict[str, Any] = {"keras": keras, "tf_keras": tf_keras}
KINDS = ["whole", "weights", "weights.h5", "keras"]


def dense(framework: str, dtype: str, *, is_compiled: bool = False) -> Any:
    kit = FRAMEWORKS[framework]
    model = kit.Sequential([kit.layers.Input((2,), dtype=dtype), kit.layers.Dense(2, name="d", dtype=dtype)])
    if is_compiled:
        model.compile(kit.optimizers.SGD(0.1, momentum=0.9), "mse")
        without_graph(model).train_on_batch(np.ones((2, 2), dtype), np.ones((2, 2), dtype))
    return model


@pytest.mark.parametrize("framework", KERASES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_value_that_would_be_changed_is_refused(kind: str, framework: str, tmp_path: Path) -> None:
    model = dense(framework, "float32")
    model.set_weights([np.full((2, 2), 1e6, "f4"), np.ones(2, "f4")])
    path = saved_as_it_is(model, kind, tmp_path / "m.h5") if kind in KINDS[:2] else file_of(model, kind, tmp_path)
    mine = dense(framework, "float16")
    before = mine.get_weights()
    with pytest.raises(StateMismatchError, match="dtype float32 in the file, float16 in the model"):
        ckptflow.import_model(path, tmp_path / "run", model=mine)
    assert all(map(np.array_equal, before, mine.get_weights()))


@pytest.mark.parametrize("framework", KERASES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_value_that_fits_is_taken(kind: str, framework: str, tmp_path: Path) -> None:
    model = dense(framework, "float16")
    path = saved_as_it_is(model, kind, tmp_path / "m.h5") if kind in KINDS[:2] else file_of(model, kind, tmp_path)
    mine = dense(framework, "float32")
    ckptflow.import_model(path, tmp_path / "run", model=mine)
    assert all(map(np.array_equal, mine.get_weights(), model.get_weights()))


def test_slots_of_another_dtype_begin_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whose values in the file are wider than the model's, while the weights are not."""
    path = file_of(dense("keras", "float32", is_compiled=True), "weights.h5", tmp_path)
    with h5py.File(path, "r+") as file:
        for name in list(file["optimizer/vars"]):
            value = file["optimizer/vars"][name][()]
            if value.shape:
                del file["optimizer/vars"][name]
                file["optimizer/vars"][name] = value.astype("f8")
    mine = dense("keras", "float32", is_compiled=True)
    before = [np.asarray(each) for each in slots(mine)]
    ckptflow.import_model(path, tmp_path / "run", model=mine)
    assert "dtype float64 in the file, float32 in the model" in caplog.text
    assert all(map(np.array_equal, before, map(np.asarray, slots(mine))))


def saved_as_it_is(model: Any, kind: str, path: Path) -> Path:
    if kind == "whole":
        model.save(path)
    elif isinstance(model, keras.Model):
        from keras.src.legacy.saving import legacy_h5_format

        with h5py.File(path, "w") as file:
            legacy_h5_format.save_weights_to_hdf5_group(file, model)
    else:
        model.save_weights(path)
    return path
