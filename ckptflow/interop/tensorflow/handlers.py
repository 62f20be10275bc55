"""What the table of formats names for TensorFlow's own formats."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ckptflow.errors import UsageError
from ckptflow.interop.decisions import check_alone
from ckptflow.interop.model import LoadedModel
from ckptflow.interop.provenance import Provenance
from ckptflow.interop.sources import Source
from ckptflow.interop.tensorflow import checkpoint, saved_model, tflite
from ckptflow.interop.tensors import NamedTensors
from ckptflow.interop.untrusted.archives import pack_tar
from ckptflow.reading import OpenCheckpoint
from ckptflow.state.kinds import keras_models

logger = logging.getLogger("ckptflow")

# What tf_keras's BackupAndRestore keeps for itself beside the model: a restore may do without.
_BOOK_KEEPING = frozenset({"ckpt_saved_batch", "ckpt_saved_epoch", "train_counter"})


def write_checkpoint(path: str, opened: OpenCheckpoint, provenance: Provenance) -> tuple[str, ...]:
    left_out = checkpoint.write_tf_checkpoint(path, opened, provenance)
    return (*left_out, *sorted(opened.manifest.python_state))


def read_checkpoint(found: Source, **how: Any) -> NamedTensors:
    tensors = checkpoint.read_bundle(checkpoint.find_prefix(found.path))
    return replace(tensors, metrics=tensors.metrics | _beside(found))


def load_checkpoint_into(found: Source, state: Mapping[str, Any], *, optimizer: bool, where: str) -> None:
    prefix = checkpoint.find_prefix(found.path)
    checkpoint.restore_objects(prefix, dict(state), optimizer=optimizer, beside=_beside(found))


def _beside(found: Source) -> frozenset[str]:
    return _BOOK_KEEPING if found.notes.get("written_by") == "BackupAndRestore" else frozenset()


def write_saved_model(
    path: str, loaded: LoadedModel, provenance: Provenance, *, signatures: Any, input_signature: Any
) -> None:
    """As a folder, or packed where the path says so."""
    is_packed = path.endswith((".tar.gz", ".tgz"))
    folder = f"{path}.folder" if is_packed else path
    saved_model.write_saved_model(
        folder,
        loaded.model,
        provenance,
        signatures=signatures,
        input_signature=input_signature,
        described=loaded.described,
        path=loaded.entry,
    )
    if is_packed:
        pack_tar(folder, path)
        shutil.rmtree(folder)


def read_saved_model(
    found: Source, *, unsafe: bool, imports: tuple[str, ...], optimizer: bool, state: Mapping[str, Any] | None
) -> Any:
    if not saved_model.is_keras_saved_model(found.path):
        return saved_model.read_saved_model(found.path, state)
    try:
        model = saved_model.read_keras_saved_model(found.path, unsafe=unsafe, imports=imports)
    except UsageError as error:
        if state is None:
            raise
        # The user has the model: no class need be known for its variables.
        logger.warning(
            "its variables are named by their paths in the SavedModel, since the model cannot be built: %s", str(error)
        )
        return saved_model.read_saved_model(found.path, state)
    if not optimizer and state is not None:
        model.optimizer = None
    return {"model": model}


def load_saved_model_into(found: Source, state: Mapping[str, Any], *, optimizer: bool, where: str) -> None:
    targets = keras_models(state) or list(state.values())
    if len(targets) != 1:
        raise UsageError(f"model= holds {len(targets)} objects that could match the SavedModel; pass only one")
    check_alone(state, targets[0], found.format.name, where)
    saved_model.load_saved_model_into(found.path, targets[0], optimizer=optimizer)


def write_tflite(
    path: str, loaded: LoadedModel, provenance: Provenance, *, signatures: Any, input_signature: Any
) -> None:
    tflite.write_tflite(path, loaded.model, provenance, signatures=signatures, input_signature=input_signature)
