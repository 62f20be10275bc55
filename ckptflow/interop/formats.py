"""The formats that a checkpoint turns into and a run starts from: one table, and how a name or a folder tells them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from ckptflow.errors import UsageError

Name = Literal["keras", "h5", "weights", "saved-model", "tf-checkpoint", "hub", "tflite", "safetensors"]


@dataclass(frozen=True, slots=True)
class Format:
    """One format. `holds`: "model" (needs the model: its architecture or its code) or "tensors" (any state).

    `keeps` is what of a Keras model is in it beside the weights: "optimizer", "vocabularies" (adapted ones), "other"
    (seeds of Dropout, states of RNNs). For tf_keras a SavedModel keeps the optimizer as well.
    """

    name: Name
    suffixes: tuple[str, ...]
    is_folder: bool
    holds: Literal["model", "tensors"]
    is_importable: bool
    keeps: frozenset[str]
    what: str


FORMATS: dict[str, Format] = {
    entry.name: entry
    for entry in (
        Format(
            "keras",
            (".keras",),
            False,
            "model",
            True,
            frozenset({"optimizer", "vocabularies"}),
            "a whole Keras model in one file, with its optimizer",
        ),
        Format("weights", (".weights.h5",), False, "model", True, frozenset({"optimizer"}), "a Keras model's weights"),
        Format(
            "h5",
            (".h5", ".hdf5"),
            False,
            "model",
            True,
            frozenset({"optimizer", "vocabularies"}),
            "a whole Keras model in the legacy HDF5 format",
        ),
        Format(
            "saved-model",
            (),
            True,
            "model",
            True,
            frozenset({"vocabularies", "other"}),
            "a SavedModel with signatures, for serving",
        ),
        Format(
            "tf-checkpoint",
            (".ckpt",),
            True,
            "tensors",
            True,
            frozenset({"optimizer", "other"}),
            "what tf.train.Checkpoint reads",
        ),
        Format(
            "hub",
            (".tar.gz", ".tgz"),
            True,
            "model",
            True,
            frozenset({"vocabularies", "other"}),
            "a reusable SavedModel for TensorFlow Hub",
        ),
        Format(
            "tflite",
            (".tflite",),
            False,
            "model",
            False,
            frozenset({"vocabularies"}),
            "a LiteRT (TensorFlow Lite) model, for inference",
        ),
        Format(
            "safetensors",
            (".safetensors",),
            False,
            "tensors",
            True,
            frozenset({"optimizer", "vocabularies", "other"}),
            "all tensors in one safetensors file",
        ),
    )
}
TENSOR_FORMATS = tuple(name for name, entry in FORMATS.items() if entry.holds == "tensors")


def for_destination(destination: str, name: str | None) -> Format:
    """The format to write: `name`, or what the destination's suffix tells. Raises `UsageError`, with what there is."""
    told = by_suffix(destination)
    if name is None:
        if told is None:
            raise UsageError(f"{destination}: its name does not tell the format; say format= (--format), {_choice()}")
        return told
    chosen = by_name(name)
    # Keras goes by a file's suffix, and so would every reader after it.
    if chosen.name in _BOUND_TO_SUFFIX and told is not chosen:
        raise UsageError(f"{destination}: a file of the format {name!r} has to end with {chosen.suffixes[0]}")
    if told not in (None, chosen):
        raise UsageError(f"{destination}: its name says {told.name!r}, not {name!r}: give it another one")
    return chosen


def by_name(name: str) -> Format:
    """The format of that name. Raises `UsageError`, with what there is."""
    if name not in FORMATS:
        raise UsageError(f"{name!r} is no format; {_choice()}")
    return FORMATS[name]


def by_suffix(url: str) -> Format | None:
    """The format that a file's name tells, or None."""
    path = (urlsplit(url).path if "://" in url else url).rstrip("/")
    suffixes = {suffix: entry for entry in FORMATS.values() for suffix in entry.suffixes}
    fitting = [suffix for suffix in suffixes if path.endswith(suffix)]
    return suffixes[max(fitting, key=len)] if fitting else None


def by_content(path: str) -> Format | None:
    """The format of what lies at a local path: by a folder's files, by a file's name, or by how it begins."""
    if os.path.isdir(path):
        names = set(os.listdir(path))
        if names & {"saved_model.pb", "saved_model.pbtxt"}:
            return FORMATS["saved-model"]
        if "checkpoint" in names or any(name.endswith(".index") for name in names):
            return FORMATS["tf-checkpoint"]
        is_model = "config.json" in names and names & {"model.weights.h5", "model.weights.npz"}  # saved as zipped=False
        return FORMATS["keras"] if is_model else None
    if path.endswith(".weights.json"):  # which names the files that the weights lie in
        return FORMATS["weights"]
    if os.path.isfile(f"{path}.index") or path.endswith(".index"):
        return FORMATS["tf-checkpoint"]
    told = by_suffix(path)
    if told is not None or not os.path.isfile(path):
        return told
    with open(path, "rb") as file:
        head = file.read(8)
    return next((FORMATS[name] for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def _choice(entries: Iterable[Format] = FORMATS.values()) -> str:
    return "one of " + ", ".join(entry.name for entry in entries)


_BOUND_TO_SUFFIX = ("keras", "weights", "h5")
_MAGIC: dict[bytes, Name] = {b"\x1f\x8b": "hub", b"PK\x03\x04": "keras", b"\x89HDF\r\n\x1a\n": "h5"}
