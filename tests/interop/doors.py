"""Small runs to export, and what is looked at in what comes of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import keras
import numpy as np

import ckptflow

MODEL_FORMATS = {"keras": "m.keras", "h5": "m.h5", "weights": "m.weights.h5", "saved-model": "m", "hub": "m.tar.gz",
                 "tflite": "m.tflite"}  # fmt: skip
TENSOR_FORMATS = {"tf-checkpoint": "m.ckpt", "safetensors": "m.safetensors"}


def make_model(width: int = 4) -> Any:
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(width, name="features"), keras.layers.Dropout(0.5),
         keras.layers.Dense(2, name="head")]
    )  # fmt: skip
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model


def save(url: str, state: Any, step: int = 3) -> None:
    with ckptflow.CheckpointManager(url, state) as manager:
        manager.save(step)


def predict(model: Any) -> Any:
    return model(np.arange(6, dtype=np.float32).reshape(2, 3)).numpy()


def names_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))
