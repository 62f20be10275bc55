"""`export_checkpoint`: from a checkpoint to a file or folder that other programs read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

from ckptflow import __version__
from ckptflow.errors import UsageError
from ckptflow.interop.formats import WITH_SIGNATURES, Format, for_destination, handler
from ckptflow.interop.provenance import Provenance
from ckptflow.places.files import staged
from ckptflow.reading import OpenCheckpoint, open_checkpoint
from ckptflow.storage.redaction import redact_url


@dataclass(frozen=True, slots=True)
class Exported:
    """What `export_checkpoint` wrote: where, in which format, and from which checkpoint.

    `left_out` names the tensors and Python state of the checkpoint that the format, or the model, has no place for.
    """

    url: str
    format: str
    checkpoint_url: str
    step: int
    left_out: tuple[str, ...]


def export_checkpoint(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    format: str | None = None,  # noqa: A002 - the word that everyone would look for
    step: int | None = None,
    model: Any = None,
    signatures: Any = None,
    input_signature: Sequence[Any] | None = None,
    entry: str | None = None,
    imports: Sequence[str] = (),
    unsafe: bool = False,
    overwrite: bool = False,
    storage_options: dict[str, Any] | None = None,
    destination_options: dict[str, Any] | None = None,
) -> Exported:
    """Writes a checkpoint as a file or folder that stock TensorFlow, Keras or safetensors reads.

    Guarantees. Every byte is checked against its checksum before it is used. What appears at `destination` is
    complete: a failed export leaves nothing there; with `overwrite` it leaves what was there before, if the storage
    can replace atomically (a file anywhere, a folder on a local disk). The export records which checkpoint it was
    made from.

    Args:
        source: a run's root, or one checkpoint's folder, on any storage.
        destination: a path or URL on any storage. For "tf-checkpoint" the prefix, as in `tf.train.Checkpoint.write`.
        format: "keras", "h5", "weights", "saved-model", "tf-checkpoint", "hub", "tflite" or "safetensors"; default:
            from the suffix (.keras, .h5, .weights.h5, .ckpt, .tar.gz, .tflite, .safetensors).
        step: which checkpoint; default: the newest current one.
        model: the model to fill, for formats that need one: a Keras model or `tf.Module` as it was in the state.
            Default: it is built from the Keras config in the manifest. "tf-checkpoint" and "safetensors" need none.
        signatures: for "saved-model", "hub" and "tflite": a dict from name to `tf.function` with an input signature, or
            to a concrete function; or a callable that takes the model and returns such a dict.
        input_signature: the default signature's inputs, each a `tf.TensorSpec`, if the model does not define them.
        entry: the model's path in the state, if that has several models.
        imports: modules to import first, which register custom classes.
        unsafe: also builds what can run code from the manifest: Lambda layers, layers that load files, any
            operation. Only for roots that you trust like programs.
        overwrite: replaces what is at `destination`.
        storage_options, destination_options: options for the storages of source and destination.

    Raises:
        UnsupportedStateError: the format cannot store this state; the message names formats that can.
        ObjectExistsError: something is at `destination`.
        UsageError: an argument is missing or does not go with the others or with the checkpoint.
        StateMismatchError: `model` differs from the checkpoint; one message lists the differences.
        CheckpointNotFoundError, CorruptCheckpointError: there is no such checkpoint, or it is damaged.
        StorageError: a storage refused or failed.
    """
    target = os.fsdecode(destination)
    chosen = for_destination(target, format)
    if not chosen.has_signatures and (signatures is not None or input_signature is not None):
        raise UsageError(f"the format {chosen.name!r} has no signatures; these have: {', '.join(WITH_SIGNATURES)}")
    if chosen.holds == "tensors" and entry is not None:
        raise UsageError(f"the format {chosen.name!r} has the complete state; entry= is for the other formats")
    import_modules(imports)
    with (
        open_checkpoint(source, step, storage_options=storage_options) as opened,
        staged(target, overwrite=overwrite, storage_options=destination_options) as path,
    ):
        provenance = _provenance(opened, chosen)
        write = handler(chosen.writer)
        if chosen.holds == "tensors":
            left_out = write(path, opened, provenance)
        else:
            from ckptflow.interop.model import load_model, not_held  # loads TensorFlow

            loaded = load_model(opened, model, entry=entry, imports=tuple(imports), unsafe=unsafe)
            given = {"signatures": signatures, "input_signature": input_signature} if chosen.has_signatures else {}
            write(path, loaded, provenance, **given)
            left_out = loaded.left_out + not_held(loaded, chosen)
        checkpoint = opened.checkpoint
    return Exported(redact_url(target), chosen.name, checkpoint.url, checkpoint.step, tuple(left_out))


def import_modules(names: Sequence[str]) -> None:
    """Imports modules by name: they can register classes with Keras. Raises `UsageError` for one that fails."""
    for name in names:
        try:
            import_module(name)
        except Exception as error:  # whatever a user's module raises
            raise UsageError(f"the module {name!r} cannot be imported: {type(error).__name__}: {error}") from error


def _provenance(opened: OpenCheckpoint, chosen: Format) -> Provenance:
    manifest = opened.manifest
    return Provenance(
        run_url=opened.checkpoint.url.removesuffix(f"/{manifest.folder}"),
        run_id=manifest.run_id,
        folder=manifest.folder,
        step=manifest.step,
        incarnation=manifest.incarnation,
        manifest_sha256=opened.manifest_sha256(),
        format=chosen.name,
        ckptflow=__version__,
        exported_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
