"""Layers of Keras 3 that GPTQ or AWQ has calibrated: what says so is in no variable, and in no config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import ckptflow
from ckptflow import CheckpointManager, StateMismatchError
from ckptflow.interop.model import load_model

INPUTS = np.random.default_rng(5).normal(size=(32, 16)).astype("f4")
LAYERS = {
    "Dense": lambda **options: keras.layers.Dense(12, name="first", **options),
    "EinsumDense": lambda **options: keras.layers.EinsumDense("ab,bc->ac", 12, bias_axes="c", name="first", **options),
}


def made(layer: str, **options: Any) -> Any:
    return keras.Sequential([keras.Input((16,)), LAYERS[layer](**options), keras.layers.Dense(2, name="last")])


def quantized(layer: str, mode: str) -> tuple[Any, Any]:
    """A model of which one layer is quantized, and what calibrates that."""
    model, data = made(layer), {"dataset": None, "tokenizer": None, "group_size": 8}
    if mode == "gptq":
        from keras.src.quantizers.gptq import GPTQ

        config = keras.quantizers.GPTQConfig(weight_bits=4, **data)
        model.layers[0].quantize("gptq", config=config)
        by: Any = GPTQ(model.layers[0], config)
        by.update_hessian_with_batch(INPUTS)
        return model, by.quantize_and_correct_layer
    from keras.src.quantizers.awq import AWQ

    config = keras.quantizers.AWQConfig(**data)
    model.layers[0].quantize("awq", config=config)
    by = AWQ(model.layers[0], config)
    by.update_activation_magnitudes(INPUTS)
    return model, by.quantize_layer


@pytest.mark.parametrize(("mode", "layer"), [*zip(["gptq", "awq"], LAYERS, strict=True)])
def test_a_calibrated_layer_comes_back(tmp_path: Path, mode: str, layer: str) -> None:
    model, calibrate = quantized(layer, mode)
    calibrate()
    expected = model(INPUTS).numpy()
    assert not np.allclose(expected, 0)
    with CheckpointManager(tmp_path, {"model": model}) as manager:
        manager.save(1)
    again = keras.Sequential.from_config(model.get_config())
    with CheckpointManager(tmp_path, {"model": again}) as manager:
        manager.restore_latest()
    np.testing.assert_array_equal(again(INPUTS).numpy(), expected)
    with ckptflow.open_checkpoint(tmp_path) as opened:
        np.testing.assert_array_equal(load_model(opened).model(INPUTS).numpy(), expected)


@pytest.mark.parametrize("mode", ["gptq", "awq"])
def test_what_is_not_calibrated_yet_is_not_taken_for_it(tmp_path: Path, mode: str) -> None:
    model, _ = quantized("Dense", mode)
    expected = model(INPUTS).numpy()
    with CheckpointManager(tmp_path, {"model": model}) as manager:
        manager.save(1)
    again, calibrate = quantized("Dense", mode)
    with CheckpointManager(tmp_path, {"model": again}, read_only=True) as manager:
        manager.restore_latest()
        np.testing.assert_array_equal(again(INPUTS).numpy(), expected)
        calibrate()
        with pytest.raises(StateMismatchError, match="model/first/kernel"):
            manager.restore_latest()
    bare = keras.Sequential.from_config(model.get_config())  # made by its dtype: it has no other kernel
    with CheckpointManager(tmp_path, {"model": bare}, read_only=True) as manager:
        with pytest.raises(StateMismatchError, match="model/first/kernel"):
            manager.restore_latest()
