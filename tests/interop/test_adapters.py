"""Adapters (LoRA) on quantized layers: Keras rounds them away in its files, and an export says so."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import ckptflow
from ckptflow.interop.keras import files as keras_files
from tests.state.test_calibrated import quantized

pytestmark = pytest.mark.usefixtures("unprobed")

ONES = np.ones((1, 16), "f4")


def adapted(mode: str | None) -> Any:
    model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(12, name="first"), keras.layers.Dense(2)])
    if mode is not None:
        model.quantize(mode)
    model.layers[0].enable_lora(2)
    model.layers[0].lora_kernel_b.assign(np.random.default_rng(3).normal(size=(2, 12)))
    return model


@pytest.mark.parametrize("mode", [None, pytest.param("int8", marks=pytest.mark.chaos), "int4"])
def test_what_keras_rounds_is_said(mode: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = adapted(mode)
    with ckptflow.CheckpointManager(tmp_path / "run", {"model": model}) as manager:
        manager.save(1)
    for name in ("m.keras", "m.weights.h5"):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "ckptflow"):
            done = ckptflow.export_checkpoint(tmp_path / "run", tmp_path / name)
        assert done.left_out == ("model/first/lora_kernel_a", "model/first/lora_kernel_b")
        assert ("LoRA) of first" in caplog.text) == (mode is not None)
    model.save(tmp_path / "stock.keras")  # what Keras holds, no less
    stock, ours = (keras_files.read_model(str(tmp_path / name)) for name in ("stock.keras", "m.keras"))
    assert np.array_equal(stock(ONES), ours(ONES))
    done = ckptflow.export_checkpoint(tmp_path / "run", tmp_path / "saved", format="saved-model")
    assert done.left_out == ()


@pytest.mark.parametrize("mode", ["gptq", "awq"])
def test_what_keras_leaves_out_of_calibrated_layers_is_named(
    mode: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, calibrate = quantized("Dense", mode)
    calibrate()
    with ckptflow.CheckpointManager(tmp_path / "run", {"model": model}) as manager:
        manager.save(1)
    model.save(tmp_path / "stock.keras")
    try:
        keras_files.read_model(str(tmp_path / "stock.keras"))
        is_whole = True  # a Keras that writes all of it
    except Exception:
        is_whole = False
    with caplog.at_level(logging.WARNING, "ckptflow"):
        done = ckptflow.export_checkpoint(tmp_path / "run", tmp_path / "m.keras")
    assert ("model/first/kernel_zero" in done.left_out) is not is_whole
    assert ("does not write all of first" in caplog.text) is not is_whole
    assert ckptflow.export_checkpoint(tmp_path / "run", tmp_path / "saved", format="saved-model").left_out == ()
