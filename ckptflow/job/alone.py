"""The first checkpoint of a run, committed by one process that has no live state: what was captured is all there is."""

from __future__ import annotations

import contextlib
import os
from typing import Any, SupportsIndex

from ckptflow.commit.beginning import Beginning
from ckptflow.commit.catalog import Checkpoint, Summaries
from ckptflow.commit.coordinator import Coordinator
from ckptflow.errors import LEAVING, CkptflowError, CommitUnknownError, SaveFailedError, UsageError
from ckptflow.format.layout import Folder
from ckptflow.format.offer import Captured
from ckptflow.format.values import to_json
from ckptflow.job.arguments import (
    DEFAULT_COMMIT_TIMEOUT_S,
    DEFAULT_KEEP,
    DEFAULT_MEMORY_BUDGET_BYTES,
    check_step,
    default_shard_bytes,
)
from ckptflow.job.saver import Job, Saver, software_versions
from ckptflow.job.unchanged import Unchanged
from ckptflow.peers.team import Alone
from ckptflow.storage.opening import open_store
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.streams import streams_for


def commit_alone(
    url: str | os.PathLike[str],
    step: SupportsIndex,
    captured: Captured,
    *,
    metadata: Any = None,
    storage_options: dict[str, Any] | None = None,
) -> Checkpoint:
    """Commits what was captured as the checkpoint of `step` that begins the run at `url`, as a manager does.

    Returns once it is durable and counts: the run's `restore_latest()` goes on from it. Each value is asked for when
    its shard is packed and let go then. After an error nothing but the claim is left. Raises `UsageError` on a root
    that holds checkpoints; whatever reading a value raises of ours; `StorageError`, `FencedError`, `SaveFailedError`.
    """
    number, about = check_step(step), to_json(metadata, "metadata")
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(contextlib.closing(open_store(os.fsdecode(url), storage_options)))
        shard_bytes = default_shard_bytes(
            is_object_store=store.is_object_store, memory_budget_bytes=DEFAULT_MEMORY_BUDGET_BYTES
        )
        pool = stack.enter_context(contextlib.closing(BufferPool(DEFAULT_MEMORY_BUDGET_BYTES, shard_bytes)))
        alone, summaries = Alone(), Summaries(store)
        start = Beginning(store, alone, summaries).start_anew(fresh=False)
        if start.held is None:
            raise UsageError(f"{store.url} was not claimed")
        coordinator = Coordinator(store, start, summaries, DEFAULT_KEEP, commit_timeout_s=DEFAULT_COMMIT_TIMEOUT_S)
        saver = Saver(
            store=store,
            cluster=alone,
            pool=pool,
            held=start.held,
            coordinator=coordinator,
            unchanged=Unchanged(0, 1, shard_bytes, is_on=False),
            shard_bytes=shard_bytes,
            verify_replicas="small",
            streams=streams_for(store, pool, is_for_reading=False),
            software=software_versions(),
        )
        folder = Folder(number, start.held.number)
        job = Job(folder=folder, snapshot=captured, metrics={}, metadata=about, prune=False)
        try:
            checkpoint = saver.save(job)
        except CommitUnknownError:  # it may be there
            raise
        except SaveFailedError as error:
            with contextlib.suppress(CkptflowError):
                coordinator.sweep_partials()
            if isinstance(
                error.__cause__, (CkptflowError, *LEAVING)
            ):  # no workers to speak of, and the caller's thread
                raise error.__cause__ from error.__cause__.__cause__
            raise
        if checkpoint is None:
            raise SaveFailedError(f"{folder} was saved and not acknowledged")
        return checkpoint
