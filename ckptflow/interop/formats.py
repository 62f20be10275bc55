"""The formats that a checkpoint turns into and a run starts from: one table, and how a name or a folder tells them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal
from urllib.parse import urlsplit

from ckptflow.errors import UsageError
from ckptflow.places.names import listed

Name = Literal["keras", "h5", "weights", "saved-model", "tf-checkpoint", "hub", "tflite", "safetensors"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One format. `holds`: "model" (needs the model: its architecture or its code) or "tensors" (any state).

    `keeps` is what of a Keras model is in it beside the weights: "optimizer", "vocabularies" (adapted ones), "other"
    (seeds of Dropout, states of RNNs). For tf_keras a SavedModel keeps the optimizer as well.

    The handlers are "module:function", for `handler`: modules that load TensorFlow are loaded when they are needed.

    - `writer(path, opened, provenance)`, or of a model `writer(path, loaded, provenance)`, with `signatures=` and
      `input_signature=` where the format has some. One for tensors returns what it has no place for.
    - `reader(source, unsafe=, imports=, optimizer=, state=)`, None where no run can start from it: the state of a live
      model, or named tensors, in the names of `state` where the format only has places.
    - `loader(source, state, where=, optimizer=)`, None where names alone tell: gives live objects all of the values, as
      stock TensorFlow or Keras would.
    - `joiner(path, place, folder, source_options, is_compared=)`, None where there is nothing to join: the path of the
      one file or folder that the other handlers know, unpacked or put together in `folder` unless `path` is one.
      `place` is where it came from; `is_compared`: a part of it would be refused later on.
    - `origin(file, where)`, None where it is no file: the provenance in a seekable file. It loads no TensorFlow.
    """

    name: Name
    what: str
    suffixes: tuple[str, ...]
    holds: Literal["model", "tensors"]
    keeps: frozenset[str]
    writer: str
    reader: str | None
    loader: str | None = None
    joiner: str | None = None
    origin: str | None = None
    is_checked_first: bool = False  # and then opened again, by Keras: a file that others can change is copied before
    has_signatures: bool = False

    @property
    def is_importable(self) -> bool:
        return self.reader is not None


_KERAS = "ckptflow.interop.keras.handlers"
_OF_KERAS = "ckptflow.interop.keras.provenance:read_provenance"
_JOIN_KERAS = "ckptflow.interop.keras.parts:as_one_file"
_TENSORFLOW = "ckptflow.interop.tensorflow.handlers"
_SAFETENSORS = "ckptflow.interop.safetensors_file"

FORMATS: dict[str, Format] = {
    entry.name: entry
    for entry in (
        Format(
            name="keras",
            what="a complete Keras model in one file, with its optimizer",
            suffixes=(".keras",),
            holds="model",
            keeps=frozenset({"optimizer", "vocabularies"}),
            writer=f"{_KERAS}:write_keras",
            reader=f"{_KERAS}:read",
            loader=f"{_KERAS}:load_into",
            joiner=_JOIN_KERAS,
            origin=_OF_KERAS,
            is_checked_first=True,
        ),
        Format(
            name="weights",
            what="a Keras model's weights",
            suffixes=(".weights.h5",),
            holds="model",
            keeps=frozenset({"optimizer"}),
            writer=f"{_KERAS}:write_weights",
            reader=f"{_KERAS}:read",
            loader=f"{_KERAS}:load_into",
            joiner=_JOIN_KERAS,
            origin=_OF_KERAS,
            is_checked_first=True,
        ),
        Format(
            name="h5",
            what="a complete Keras model in the legacy HDF5 format",
            suffixes=(".h5", ".hdf5"),
            holds="model",
            keeps=frozenset({"optimizer", "vocabularies"}),
            writer=f"{_KERAS}:write_h5",
            reader=f"{_KERAS}:read",
            loader=f"{_KERAS}:load_into",
            joiner=_JOIN_KERAS,
            origin=_OF_KERAS,
            is_checked_first=True,
        ),
        Format(
            name="saved-model",
            what="a SavedModel with signatures, for serving",
            suffixes=(),
            holds="model",
            keeps=frozenset({"vocabularies", "other"}),
            writer=f"{_TENSORFLOW}:write_saved_model",
            reader=f"{_TENSORFLOW}:read_saved_model",
            loader=f"{_TENSORFLOW}:load_saved_model_into",
            has_signatures=True,
        ),
        Format(
            name="tf-checkpoint",
            what="what tf.train.Checkpoint reads",
            suffixes=(".ckpt",),
            holds="tensors",
            keeps=frozenset({"optimizer", "other"}),
            writer=f"{_TENSORFLOW}:write_checkpoint",
            reader=f"{_TENSORFLOW}:read_checkpoint",
            loader=f"{_TENSORFLOW}:load_checkpoint_into",
        ),
        Format(
            name="hub",
            what="a reusable SavedModel for TensorFlow Hub",
            suffixes=(".tar.gz", ".tgz"),
            holds="model",
            keeps=frozenset({"vocabularies", "other"}),
            writer=f"{_TENSORFLOW}:write_saved_model",
            reader=f"{_TENSORFLOW}:read_saved_model",
            loader=f"{_TENSORFLOW}:load_saved_model_into",
            joiner="ckptflow.interop.tensorflow.hub:as_folder",
            origin="ckptflow.interop.tensorflow.hub:read_provenance",
            has_signatures=True,
        ),
        Format(
            name="tflite",
            what="a LiteRT (TensorFlow Lite) model, for inference",
            suffixes=(".tflite",),
            holds="model",
            keeps=frozenset({"vocabularies"}),
            writer=f"{_TENSORFLOW}:write_tflite",
            reader=None,
            origin="ckptflow.interop.tensorflow.tflite_metadata:read_provenance",
            has_signatures=True,
        ),
        Format(
            name="safetensors",
            what="all tensors in one safetensors file",
            suffixes=(".safetensors",),
            holds="tensors",
            keeps=frozenset({"optimizer", "vocabularies", "other"}),
            writer=f"{_SAFETENSORS}:write_safetensors",
            reader=f"{_SAFETENSORS}:read_source",
            joiner="ckptflow.interop.safetensors_parts:as_one_file",
            origin=f"{_SAFETENSORS}:read_provenance",
        ),
    )
}
WITH_SIGNATURES = tuple(name for name, entry in FORMATS.items() if entry.has_signatures)
TENSOR_FORMATS = tuple(name for name, entry in FORMATS.items() if entry.holds == "tensors")


def handler(place: str) -> Any:
    """The function at a place in the table, its module loaded now."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def for_destination(destination: str, name: str | None) -> Format:
    """The format to write: `name`, or what the destination's suffix tells. Raises `UsageError`, with what there is."""
    told = by_suffix(destination)
    if name is None:
        if told is None:
            raise UsageError(
                f"{destination}: its name does not identify the format; pass format= (--format), {_choice()}"
            )
        return told
    chosen = by_name(name)
    # Keras goes by a file's suffix, and so would every reader after it.
    if chosen.is_checked_first and told is not chosen:
        raise UsageError(f"{destination}: a file of the format {name!r} has to end with {chosen.suffixes[0]}")
    if told not in (None, chosen):
        raise UsageError(f"{destination}: its name says {told.name!r}, not {name!r}: give it another one")
    return chosen


def by_name(name: str) -> Format:
    """The format of that name. Raises `UsageError`, with what there is."""
    if name not in FORMATS:
        raise UsageError(f"unknown format {name!r}; {_choice()}")
    return FORMATS[name]


def path_of(url: str) -> str:
    """A path, or that of a URL: without a query, which is no part of a file's name."""
    return urlsplit(url).path if "://" in url else url


def by_suffix(url: str) -> Format | None:
    """The format that a file's name tells, or None."""
    path = path_of(url).rstrip("/")
    suffixes = {suffix: entry for entry in FORMATS.values() for suffix in entry.suffixes}
    fitting = [suffix for suffix in suffixes if path.endswith(suffix)]
    return suffixes[max(fitting, key=len)] if fitting else None


def by_content(path: str) -> Format | None:
    """The format of what lies at a local path: by a folder's files, by a file's name, or by how it begins."""
    if os.path.isdir(path):
        names = set(listed(path))
        if names & {"saved_model.pb", "saved_model.pbtxt"}:
            return FORMATS["saved-model"]
        if any(name.endswith(".safetensors.index.json") for name in names):
            return FORMATS["safetensors"]
        if "checkpoint" in names or any(name.endswith(".index") for name in names):
            return FORMATS["tf-checkpoint"]
        is_model = "config.json" in names and names & {"model.weights.h5", "model.weights.npz"}  # saved as zipped=False
        return FORMATS["keras"] if is_model else None
    if path.endswith("weights.json"):  # which names the files that the weights lie in
        return FORMATS["weights"]
    if path.endswith(".safetensors.index.json"):
        return FORMATS["safetensors"]
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


_MAGIC: dict[bytes, Name] = {b"\x1f\x8b": "hub", b"PK\x03\x04": "keras", b"\x89HDF\r\n\x1a\n": "h5"}
