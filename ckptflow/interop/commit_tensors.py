"""Named tensors, wherever they come from, as the first checkpoint of a run: committed as any other one is."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from ckptflow.commit.catalog import Checkpoint, Summaries, list_root
from ckptflow.commit.coordinator import Coordinator
from ckptflow.commit.resume import Resume
from ckptflow.errors import LEAVING, CkptflowError, SaveFailedError, UsageError
from ckptflow.format.layout import Folder
from ckptflow.format.values import to_json
from ckptflow.interop.tensors import CapturedTensors, NamedTensors
from ckptflow.job.arguments import (
    DEFAULT_COMMIT_TIMEOUT_S,
    DEFAULT_KEEP,
    DEFAULT_MEMORY_BUDGET_BYTES,
    DEFAULT_SHARD_BYTES,
    check_step,
)
from ckptflow.job.saver import Job, Saver, software_versions
from ckptflow.peers.team import Alone
from ckptflow.storage.store import Store, open_store
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.plan import plan_shards

LARGE_BYTES = 2**26


def commit_tensors(
    url: str | os.PathLike[str],
    step: int,
    tensors: NamedTensors,
    *,
    metadata: Any = None,
    storage_options: dict[str, Any] | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    fresh: bool = False,
) -> Checkpoint:
    """Commits the tensors, and what belongs to them, as the checkpoint of `step` that begins the run at `url`.

    Returns once it is durable and counts: the run's `restore_latest()` goes on from it. Each tensor is read when its
    shard is packed and let go then, so that memory holds the staging buffers and a few tensors, never all. Nothing is
    committed, and nothing but the claim is left, unless all of them could be read.

    Raises `UsageError` on a root that holds checkpoints, unless `fresh` starts over on it; `CorruptCheckpointError`
    where a tensor is not what its `TensorInfo` says, and whatever else reading it raises of ours; `StorageError`,
    `FencedError`, `SaveFailedError`.
    """
    number = check_step(step)
    captured = CapturedTensors(tensors)
    store = open_store(os.fspath(url), storage_options)
    pool = BufferPool(max(DEFAULT_MEMORY_BUDGET_BYTES, shard_bytes), shard_bytes)
    try:
        if not fresh:
            _refuse_used(store)
        summaries = Summaries(store)
        start = Resume(store, Alone(), summaries, check=lambda _: None, load=lambda *_: None).start_anew(fresh=fresh)
        if start.held is None:
            raise UsageError(f"{store.url} was not claimed")
        coordinator = Coordinator(store, start, summaries, DEFAULT_KEEP, commit_timeout_s=DEFAULT_COMMIT_TIMEOUT_S)
        saver = Saver(
            store=store,
            cluster=Alone(),
            pool=pool,
            held=start.held,
            coordinator=coordinator,
            shard_bytes=shard_bytes,
            verify_replicas="small",
            concurrency=None,
            software=software_versions(),
        )
        job = Job(
            folder=Folder(number, start.held.number),
            snapshot=captured,
            plan=lambda: plan_shards(captured.specs, worker=0, world_size=1, shard_bytes=shard_bytes),
            metrics={},
            metadata=to_json(metadata, "metadata"),
            prune=False,
        )
        return _run(saver, coordinator, job)
    finally:
        pool.close()
        store.close()


def _refuse_used(store: Store) -> None:
    committed = list_root(store).committed
    if committed:
        raise UsageError(
            f"{store.url} holds {len(committed)} checkpoint(s), the newest {committed[-1]}: an import begins a run; "
            "name an empty root, or say fresh=True to start over in this one"
        )


def _run(saver: Saver, coordinator: Coordinator, job: Job) -> Checkpoint:
    acknowledged: list[Checkpoint | None] = []
    try:
        saver.run(job, acknowledged.append)
    except SaveFailedError as error:
        with contextlib.suppress(CkptflowError):
            coordinator.sweep_partials()
        if isinstance(error.__cause__, (CkptflowError, *LEAVING)):  # no workers to speak of, and the caller's thread
            raise error.__cause__ from error.__cause__.__cause__
        raise
    if not acknowledged or acknowledged[0] is None:
        raise SaveFailedError(f"{job.folder} was saved and not acknowledged")
    return acknowledged[0]
