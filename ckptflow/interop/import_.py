"""`import_model`: from a file or folder that other programs wrote to the first checkpoint of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from msgspec import structs

from ckptflow.commit.catalog import Checkpoint
from ckptflow.errors import UsageError
from ckptflow.format.offer import Captured, offer_of_captured
from ckptflow.format.spec import Rename
from ckptflow.format.words import some_of
from ckptflow.interop.export import import_modules
from ckptflow.interop.formats import handler
from ckptflow.interop.sources import Source, check_named, identified
from ckptflow.interop.tensors import CapturedTensors, NamedTensors
from ckptflow.job.alone import commit_alone
from ckptflow.job.arguments import check_step
from ckptflow.places.files import fetched
from ckptflow.reading import list_checkpoints, split_url
from ckptflow.storage.redaction import redact_url

MAX_NAMES = 10_000  # of tensors that were not taken, in the checkpoint's metadata


def import_model(
    source: str | os.PathLike[str],
    url: str | os.PathLike[str],
    *,
    format: str | None = None,  # noqa: A002 - the word that everyone would look for
    model: Any = None,
    step: int = 0,
    partial: bool = False,
    rename: Rename | None = None,
    optimizer: bool = True,
    imports: Sequence[str] = (),
    unsafe: bool = False,
    source_options: dict[str, Any] | None = None,
    storage_options: dict[str, Any] | None = None,
) -> Checkpoint:
    """Makes a model, or weights, that something else saved the first checkpoint of a run.

    Guarantees. The run's `restore_latest()` continues from it, bit for bit. Nothing is committed unless all that is
    taken of the source was read and matches. The checkpoint's metadata says under `imported` where it came from, and,
    after `partial`, what in the model kept its initial values (`left_as_they_were`) and what in the source was not used
    (`not_used`).

    Args:
        source: a path or URL on any storage, or http(s): a `.keras`, `.h5`, `.weights.h5` or `.safetensors` file, a
            SavedModel, a TensorFlow Hub module (a folder or `.tar.gz`), a checkpoint of `tf.train.Checkpoint` (its
            prefix or folder), what Keras's `ModelCheckpoint` or `BackupAndRestore` left.
        url: the root of the new run.
        format: one of `export_checkpoint`'s; default: from the name or the content.
        model: what gets the source's values, as it will be passed to `CheckpointManager`: a model, or a dict of
            named objects. Without it a complete Keras model becomes `{"model": …}`, and anything else tensors under
            their names in the source.
        step: the step of the checkpoint.
        partial: a warm start: takes what matches `model`; the rest of it keeps its initial values.
        rename: a map from names, or prefixes up to a "/", in the source to those in `model`, or a function.
        optimizer: whether to import the optimizer's state. False: only the weights; `model`'s optimizer keeps its
            initial state, also with `partial`. By default it is imported if all of it matches; if not, only the
            weights are, and a warning names the first difference. With `partial`, what matches by name is imported.
        imports: modules to import first: they register custom classes.
        unsafe: also builds what can run code from the source: Lambda layers, any operation, the graph of a
            SavedModel of tf_keras. Only for sources that you trust like programs.
        source_options, storage_options: options for the storages of source and run.

    Raises:
        CorruptCheckpointError: the source is damaged.
        StateMismatchError: it does not match `model`; one message lists the differences.
        UsageError: the root has checkpoints; the format is unknown; a class is unknown.
        UnsupportedStateError: a value cannot be saved.
        StorageError: a storage refused or failed.
    """
    number = check_step(step)
    origin, root = os.fsdecode(source), os.fsdecode(url)
    if model is None and (partial or rename is not None):
        raise UsageError("partial= and rename= say how the source goes into a model: give model= as well")
    _check_rename(rename)
    import_modules(imports)
    _check_empty(root, storage_options)
    check_named(origin, format)
    is_compared = model is not None and not partial  # a part of the weights would not do
    with (
        fetched(origin, source_options) as local,
        identified(local, origin, format, source_options, is_compared=is_compared) as found,
    ):
        how: dict[str, Any] = {"unsafe": unsafe, "imports": tuple(imports), "optimizer": optimizer}
        if model is None:
            return _commit(root, number, _read(found, **how), _metadata(origin, found), storage_options)
        from ckptflow.state.tree import as_mapping

        state = as_mapping(model)
        loader = found.format.loader
        if partial or rename is not None or loader is None:
            content = _read(found, state=state, **how)
            lists = _fill(state, content, partial=partial, rename=rename, where=redact_url(origin), optimizer=optimizer)
        else:
            lists = {}
            handler(loader)(found, state, optimizer=optimizer, where=redact_url(origin))
        return _commit(root, number, state, _metadata(origin, found) | lists, storage_options)


def _check_rename(rename: Any) -> None:
    is_map = isinstance(rename, Mapping) and all(isinstance(name, str) for pair in rename.items() for name in pair)
    if not (rename is None or callable(rename) or is_map):
        raise UsageError(
            f"rename is a dict from text to text, or a function from a name to a name, not {rename!r:.100}"
        )


def _check_empty(root: str, storage_options: dict[str, Any] | None) -> None:
    if split_url(root)[1] is not None:
        raise UsageError(f"{redact_url(root)} is a checkpoint's folder; name a root of its own for the new run")
    there = list_checkpoints(root, storage_options=storage_options)
    if there:
        raise UsageError(
            f"{there[-1].url} exists: an import begins a run, and {redact_url(root)} holds one. Name an empty "
            "root; to take weights into an existing run, import them into another root and restore from there"
        )


def _read(
    found: Source, *, unsafe: bool, imports: tuple[str, ...], optimizer: bool, state: Mapping[str, Any] | None = None
) -> Any:
    """What the source holds without any code of the user's: the state of a live model, or named tensors, in the names
    of `state` where the source only has places.
    """
    content = _read_any(found, unsafe=unsafe, imports=imports, optimizer=optimizer, state=state)
    if optimizer or state is not None or not isinstance(content, NamedTensors):  # `fill` knows where they would go
        return content
    from ckptflow.interop.decisions import is_of_optimizer, optimizers_in

    paths = optimizers_in(content.models)
    infos = {name: info for name, info in content.infos.items() if not is_of_optimizer(name, paths)}
    graph = content.object_graph
    if graph is not None:
        from ckptflow.interop.tensorflow.checkpoint import with_names

        kept = with_names(graph, {name: name for name in infos})
        graph = structs.replace(graph, nodes=kept.nodes)
    models = {path: described for path, described in content.models.items() if path not in paths}
    return replace(content, infos=infos, models=models, object_graph=graph)


def _read_any(
    found: Source, *, unsafe: bool, imports: tuple[str, ...], optimizer: bool, state: Mapping[str, Any] | None
) -> Any:
    """As `_read`, where the format does not tell whose a tensor is."""
    read = handler(found.format.reader or "")  # what has none is refused where the source is identified
    return read(found, unsafe=unsafe, imports=imports, optimizer=optimizer, state=state)


def _fill(
    state: Mapping[str, Any], content: Any, *, partial: bool, rename: Rename | None, where: str, optimizer: bool
) -> dict[str, Any]:
    """Puts what was read into the user's objects by name. All that goes there is read before a value is changed."""
    from ckptflow.interop.decisions import by_name
    from ckptflow.state.assign import match
    from ckptflow.state.capture import capture
    from ckptflow.state.configs import count_variables
    from ckptflow.state.put import build, fill, reader_of, rehearse
    from ckptflow.state.tree import walk

    if isinstance(content, NamedTensors):
        captured: Captured = CapturedTensors(content)
    else:
        captured = capture(walk(content), is_chief=True)
    decide = by_name(partial=partial, optimizer=optimizer)
    offer = offer_of_captured(captured, where, "source")
    tree = build(walk(state), offer)
    restore = match(tree, offer, partial=partial, rename=rename, decide=decide)
    if isinstance(content, NamedTensors):  # which are read from the source only now
        for number in dict.fromkeys(wanted.tensor for wanted in restore.wanted):
            captured.data(number)
            captured.release(number)
    rehearse(restore, reader_of(captured))
    fill(restore, reader_of(captured))
    unbuilt = [path for path, model in tree.models.items() if not model.built and not count_variables(model)]
    if unbuilt:
        raise UsageError(
            f"{where}: {some_of(unbuilt, 5)} of model= has no variables yet, and the source does not say for which "
            "inputs to make them; call the model once on a batch first"
        )
    if not partial:
        return {}
    if not restore.wanted:
        raise UsageError(
            f"no tensor of {where} matches model=; nothing to warm-start from. It has "
            f"{some_of(restore.unexpected, 5)}; the model has {some_of(restore.missing, 5)}; pass rename= to map "
            "the names"
        )
    not_used = [*restore.unexpected, *(content.left_out if isinstance(content, NamedTensors) else ())]
    return {"left_as_they_were": list(restore.missing[:MAX_NAMES]), "not_used": not_used[:MAX_NAMES]}


def _metadata(origin: str, found: Source) -> dict[str, Any]:
    return {"source": redact_url(origin), "format": found.format.name, **found.notes}


def _commit(
    root: str, step: int, content: Any, about: Mapping[str, Any], storage_options: dict[str, Any] | None
) -> Checkpoint:
    """Commits named tensors, or the state of live objects."""
    metadata = {"imported": dict(about)}
    if isinstance(content, NamedTensors):
        if not content.infos:
            raise UsageError(f"{about.get('source')}: it has no tensors")
        captured = CapturedTensors(content)
        return commit_alone(root, step, captured, metadata=metadata, storage_options=storage_options)
    from ckptflow.manager import CheckpointManager

    with CheckpointManager(root, content, strategy=_strategy_of(content), storage_options=storage_options) as manager:
        checkpoint = manager.save(step, metadata=metadata).result()
    if checkpoint is None:
        raise UsageError("an import is done by one process")
    return checkpoint


def _strategy_of(state: Mapping[str, Any]) -> Any:
    """The strategy that a model in the state was made under, or None for TensorFlow's default one."""
    strategies = (getattr(obj, "distribute_strategy", None) for obj in state.values())
    return next((found for found in strategies if found is not None and "Default" not in type(found).__name__), None)
