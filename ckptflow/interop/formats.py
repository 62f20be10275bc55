"""The formats that a checkpoint turns into and a run starts from: one table, and how a name or a folder tells them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Name = Literal["keras", "h5", "weights", "saved-model", "tf-checkpoint", "hub", "tflite", "safetensors"]


@dataclass(frozen=True, slots=True)
class Format:
    """One format. `holds`: "model" (needs the model: its architecture or its code) or "tensors" (any state)."""

    name: Name
    suffixes: tuple[str, ...]
    is_folder: bool
    holds: Literal["model", "tensors"]
    is_importable: bool
    what: str


FORMATS: dict[str, Format] = {
    entry.name: entry
    for entry in (
        Format("keras", (".keras",), False, "model", True, "a whole Keras model in one file, with its optimizer"),
        Format("weights", (".weights.h5",), False, "model", True, "a Keras model's weights"),
        Format("h5", (".h5", ".hdf5"), False, "model", True, "a whole Keras model in the legacy HDF5 format"),
        Format("saved-model", (), True, "model", True, "a SavedModel with signatures, for serving"),
        Format("tf-checkpoint", (".ckpt",), True, "tensors", True, "what tf.train.Checkpoint reads"),
        Format("hub", (".tar.gz", ".tgz"), True, "model", True, "a reusable SavedModel for TensorFlow Hub"),
        Format("tflite", (".tflite",), False, "model", False, "a LiteRT (TensorFlow Lite) model, for inference"),
        Format("safetensors", (".safetensors",), False, "tensors", True, "all tensors in one safetensors file"),
    )
}
TENSOR_FORMATS = tuple(name for name, entry in FORMATS.items() if entry.holds == "tensors")
