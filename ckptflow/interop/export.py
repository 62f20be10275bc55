"""`export_checkpoint`: from a checkpoint to a file or folder that other programs read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ckptflow.errors import UsageError
from ckptflow.interop.formats import Format, for_destination
from ckptflow.interop.provenance import Provenance
from ckptflow.places.files import staged
from ckptflow.reading import OpenCheckpoint, open_checkpoint
from ckptflow.storage.redaction import redact_url


@dataclass(frozen=True, slots=True)
class Exported:
    """What `export_checkpoint` wrote: where, in which format, of which checkpoint.

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

    Guarantees. Every byte is checked against its checksum before it is used. What appears at `destination` is whole: a
    failed export leaves nothing there, and with `overwrite` what was there before, where the storage can replace at
    once (a file anywhere, a folder on a local disk). The export records which checkpoint it holds.

    Args:
        source: a run's root, or one checkpoint's folder, on any storage.
        destination: a path or URL on any storage. For "tf-checkpoint" the prefix, as in `tf.train.Checkpoint.write`.
        format: "keras", "h5", "weights", "saved-model", "tf-checkpoint", "hub", "tflite" or "safetensors"; default:
            what the suffix tells (.keras, .h5, .weights.h5, .ckpt, .tar.gz, .tflite, .safetensors).
        step: which checkpoint; default: the newest that counts.
        model: the model to fill, for formats that need one: a Keras model or `tf.Module` as it was in the state.
            Default: it is built from the Keras config in the manifest. "tf-checkpoint" and "safetensors" need none.
        signatures: for "saved-model", "hub" and "tflite": a dict from name to `tf.function` with an input signature, or
            to a concrete function; or a callable that takes the model and returns such a dict.
        input_signature: the default signature's inputs, each a `tf.TensorSpec`, where the model does not tell them.
        entry: the model's path in the state, where it has several.
        imports: modules to import first: they register custom classes.
        unsafe: also builds what runs code that the manifest carries: Lambda layers, layers that load files, any
            operation. Only for roots that you would run as programs.
        overwrite: replaces what is at `destination`.
        storage_options, destination_options: for the two ends' file systems.

    Raises:
        UnsupportedStateError: the format cannot hold this state; the message says which can.
        ObjectExistsError: something is at `destination`.
        UsageError, StateMismatchError, CheckpointNotFoundError, CorruptCheckpointError, StorageError: as they say.
    """
    target = os.fspath(destination)
    chosen = for_destination(target, format)
    if chosen.name not in _WITH_SIGNATURES and (signatures is not None or input_signature is not None):
        raise UsageError(f"the format {chosen.name!r} has no signatures; these have: {', '.join(_WITH_SIGNATURES)}")
    if chosen.holds == "tensors" and entry is not None:
        raise UsageError(f"the format {chosen.name!r} holds the whole state: entry= is for the others")
    import_modules(imports)
    with (
        open_checkpoint(source, step, storage_options=storage_options) as opened,
        staged(target, overwrite=overwrite, storage_options=destination_options) as path,
    ):
        provenance = _provenance(opened, chosen)
        if chosen.holds == "tensors":
            left_out = _write_tensors(chosen, path, opened, provenance)
        else:
            how = {"entry": entry, "imports": tuple(imports), "unsafe": unsafe}
            left_out = _write_model(chosen, path, opened, provenance, model, signatures, input_signature, how)
        if chosen.name == "tf-checkpoint":  # the others say so by themselves
            left_out += tuple(sorted(opened.manifest.python_state))
        checkpoint = opened.checkpoint
    return Exported(redact_url(target), chosen.name, checkpoint.url, checkpoint.step, tuple(left_out))


_WITH_SIGNATURES = ("saved-model", "hub", "tflite")


def import_modules(names: Sequence[str]) -> None:
    """Imports modules by name: what they register is then known to Keras. Raises `UsageError` for one that fails."""
    from importlib import import_module

    for name in names:
        try:
            import_module(name)
        except Exception as error:  # whatever a user's module raises
            raise UsageError(f"the module {name!r} cannot be imported: {type(error).__name__}: {error}") from error


def _provenance(opened: OpenCheckpoint, chosen: Format) -> Provenance:
    from ckptflow import __version__

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


def _write_tensors(chosen: Format, path: str, opened: OpenCheckpoint, provenance: Provenance) -> tuple[str, ...]:
    if chosen.name == "safetensors":
        from ckptflow.interop.safetensors_file import write_safetensors

        return write_safetensors(path, opened, provenance)
    from ckptflow.interop.tensorflow.checkpoint import write_tf_checkpoint

    return write_tf_checkpoint(path, opened, provenance)


def _write_model(
    chosen: Format,
    path: str,
    opened: OpenCheckpoint,
    provenance: Provenance,
    model: Any,
    signatures: Any,
    input_signature: Sequence[Any] | None,
    how: Mapping[str, Any],
) -> tuple[str, ...]:
    from ckptflow.interop.keras import files as keras_files
    from ckptflow.interop.model import check_order, load_model, not_held
    from ckptflow.interop.tensorflow import saved_model, tflite
    from ckptflow.interop.untrusted.archives import pack_tar

    loaded = load_model(opened, model, **how)
    if chosen.name in ("keras", "h5", "weights"):
        check_order(loaded)
        write = {"keras": keras_files.write_keras, "h5": keras_files.write_h5, "weights": keras_files.write_weights}
        write[chosen.name](path, loaded.model, provenance)
    elif chosen.name == "tflite":
        tflite.write_tflite(path, loaded.model, provenance, signatures=signatures, input_signature=input_signature)
    else:
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
    return loaded.left_out + not_held(loaded, chosen)
