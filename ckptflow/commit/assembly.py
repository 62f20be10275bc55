"""What the workers' receipts add up to: a manifest. Pure."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from ckptflow.commit.lineage import Held, now_text
from ckptflow.commit.start import Start
from ckptflow.errors import SaveFailedError
from ckptflow.format.layout import Folder, own_name, parse_shard_name
from ckptflow.format.manifest import Manifest, Receipt, ShardRecord, SliceRecord, TensorRecord, Timing, check_manifest
from ckptflow.format.object_graph import ObjectGraph, check_graph
from ckptflow.format.words import some_of

logger = logging.getLogger("ckptflow")

_NAMES_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Draft:
    """All of a manifest that is known before the receipts are: `tensors` as they will be, without slices.

    What the other workers have for themselves, of the entries `per_worker`, comes with their receipts. Where one of
    `must_be_equal` differs between workers, nothing is committed.
    """

    folder: Folder
    world_size: int
    tensors: tuple[TensorRecord, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    metadata: Any = None
    python_state: Mapping[str, Any] = field(default_factory=dict)
    per_worker: tuple[str, ...] = ()
    must_be_equal: frozenset[str] = frozenset()
    models: Mapping[str, Any] = field(default_factory=dict)
    object_graph: ObjectGraph | None = None
    software: Mapping[str, str] = field(default_factory=dict)
    began_at: datetime | None = None  # when `save` was called, by the chief's clock; for people
    family: int = 0


def refuse_receipt(draft: Draft, held: Held, receipt: Receipt, worker: int) -> str | None:
    """Why what was found as `worker`'s receipt may not become part of this save, or None."""
    expected = (str(draft.folder), held.writer_id, worker, draft.world_size)
    if (receipt.folder, receipt.writer_id, receipt.worker, receipt.world_size) != expected:
        return f"worker {worker}'s receipt is not of this save"
    return f"worker {worker} could not save: {receipt.failure}" if receipt.failure is not None else None


def assemble(draft: Draft, receipts: Sequence[Receipt], start: Start, held: Held, url: str) -> Manifest:
    """The manifest that the receipts, the chief's first, add up to.

    Raises `SaveFailedError` unless every tensor is covered exactly once, by workers that have the same state, and none
    is put together from copies that are known to differ.
    """
    where = f"{url}/{draft.folder}"
    python_state, found = dict(draft.python_state), list(draft.tensors)
    for receipt in receipts[1:]:
        _check_own(draft, receipt, where)
        found += receipt.tensors
        python_state.update(receipt.python_state)
    tensors, shards = _with_slices(sorted(found, key=lambda tensor: tensor.name), receipts, where)
    diverged = find_diverged(tensors, receipts)
    _refuse_mixed(draft, diverged, tensors, shards, where)
    manifest = Manifest(
        folder=str(draft.folder),
        step=draft.folder.step,
        incarnation=held.number,
        run_id=held.run_id,
        writer_id=held.writer_id,
        began_at=draft.began_at.isoformat() if draft.began_at else None,
        created_at=now_text(),
        world_size=draft.world_size,
        reason=start.reason,
        restored=str(start.restored.folder) if start.restored else None,
        lineage=tuple(str(folder) for folder in sorted(start.lineage)),
        barrier=start.barrier,
        fresh_since=start.fresh_since,
        sound_since=start.sound_since,
        software=dict(draft.software),
        metrics=dict(draft.metrics),
        metadata=draft.metadata,
        python_state=python_state,
        models=dict(draft.models),
        object_graph=_graph_of(draft, tensors),
        diverged=diverged,
        timings=_timings_of(receipts),
        per_worker=draft.per_worker,
        family=draft.family,
        shards=shards,
        tensors=tensors,
    )
    try:
        check_manifest(manifest, where)
    except ValueError as error:
        raise SaveFailedError(f"{error}: what the workers saved does not fit together") from error
    if diverged:
        logger.warning(
            "%s: %d tensor(s) or Python states differ between workers, saved the chief's: %s",
            draft.folder,
            len(diverged),
            some_of(diverged, _NAMES_SHOWN),
        )
    return manifest


def _timings_of(receipts: Sequence[Receipt]) -> tuple[Timing, ...]:
    """How long it took each worker, in the order of their numbers; none where one does not say."""
    timings = tuple(receipt.timing for receipt in receipts if receipt.timing is not None)
    return timings if len(timings) == len(receipts) else ()


def _graph_of(draft: Draft, tensors: Sequence[TensorRecord]) -> ObjectGraph | None:
    """The object graph, unless it does not fit: what only exports need must not fail a save."""
    graph = draft.object_graph
    try:
        if graph is not None:
            check_graph(graph, {tensor.name for tensor in tensors})
    except ValueError as error:
        logger.warning("%s is saved without its object graph: %s", draft.folder, str(error))
        return None
    return graph


def find_diverged(tensors: Sequence[TensorRecord], receipts: Sequence[Receipt]) -> tuple[str, ...]:
    """The replicated tensors and Python states of which workers hold different copies, by their digests."""
    digests: dict[str, set[int]] = {}
    for receipt in receipts:
        for name, digest in receipt.digests.items():
            digests.setdefault(name, set()).add(digest)
    for tensor in tensors:
        if tensor.name in digests and len(tensor.slices) == 1:
            digests[tensor.name].add(tensor.slices[0].crc32c)
    return tuple(sorted(name for name, seen in digests.items() if len(seen) > 1))


def _check_own(draft: Draft, receipt: Receipt, where: str) -> None:
    """Raises `SaveFailedError` where a worker has something for itself under a name that is not its to give."""
    mine = [own_name(entry, receipt.worker) for entry in draft.per_worker]
    for name in (*(tensor.name for tensor in receipt.tensors), *receipt.python_state):
        if not any(name == prefix or name.startswith(prefix + "/") for prefix in mine):
            raise SaveFailedError(
                f"{where}: worker {receipt.worker} has {name!r} for itself, which is in none of the chief's PerWorker "
                "entries: the state differs between workers"
            )


def _with_slices(
    tensors: Sequence[TensorRecord], receipts: Sequence[Receipt], where: str
) -> tuple[tuple[TensorRecord, ...], tuple[ShardRecord, ...]]:
    """The tensors with their slices in the order of their boxes, and all shards."""
    slices: dict[str, list[SliceRecord]] = {tensor.name: [] for tensor in tensors}
    shards: list[ShardRecord] = []
    for receipt in receipts:
        base = len(shards)
        shards += receipt.shards
        for piece in receipt.slices:
            if piece.tensor not in slices:
                raise SaveFailedError(
                    f"{where}: worker {receipt.worker} saved {piece.tensor!r}, which the chief does not have: the "
                    "state differs between workers"
                )
            slices[piece.tensor].append(
                SliceRecord(
                    shard=base + piece.shard,
                    offset=piece.offset,
                    start=piece.start,
                    shape=piece.shape,
                    crc32c=piece.crc32c,
                )
            )
    found = (
        msgspec.structs.replace(tensor, slices=tuple(sorted(slices[tensor.name], key=lambda piece: piece.start)))
        for tensor in tensors
    )
    return tuple(found), tuple(shards)


def _refuse_mixed(
    draft: Draft, diverged: Sequence[str], tensors: Sequence[TensorRecord], shards: Sequence[ShardRecord], where: str
) -> None:
    """Raises `SaveFailedError` where a tensor has diverged that must not, or of which the chief did not write all."""
    writers = [parse_shard_name(shard.name) for shard in shards] if diverged else []
    names = set(diverged)
    mixed = [
        tensor.name
        for tensor in tensors
        if tensor.name in names
        and (tensor.name in draft.must_be_equal or any((writers[piece.shard] or (0,))[0] for piece in tensor.slices))
    ]
    if mixed:
        raise SaveFailedError(
            f"{where}: workers hold different values of {some_of(mixed, _NAMES_SHOWN)}, which training keeps equal: "
            "memory or a device of one of them is damaged, or the program changes the variable on one worker alone. "
            "This step was not saved, older checkpoints are untouched; find the worker, and start again from the last "
            "checkpoint"
        )
