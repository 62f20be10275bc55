"""`CheckpointManager`: what it promises, and the checks of its arguments; `job.session.Session` does it."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, SupportsFloat, SupportsIndex

from ckptflow.commit.catalog import Checkpoint
from ckptflow.commit.finding import find_checkpoint, list_counting
from ckptflow.commit.pins import pin_checkpoint, unpin_checkpoint
from ckptflow.commit.retention import Mode, Policy, best_first, choose_mode
from ckptflow.errors import UsageError
from ckptflow.format.layout import check_pin_name
from ckptflow.format.spec import Rename
from ckptflow.job import arguments
from ckptflow.job.hooks import Hook
from ckptflow.job.pending import PendingCheckpoint
from ckptflow.job.session import Session
from ckptflow.state.strategies import unused_workers

if TYPE_CHECKING:
    import tensorflow as tf

logger = logging.getLogger("ckptflow")


class CheckpointManager:
    """Saves the state in the background and brings back the newest valid checkpoint.

    Guarantees. A save that was acknowledged (`PendingCheckpoint.result()` on the coordinator, `wait`, leaving the
    block) is durable and is what the next run attempt restores, or something that builds on it. A save that failed
    is raised at the next `save`, `wait` or close, and leaves older checkpoints untouched. A restore gives every tensor
    bit for bit as it was saved, or raises. Of two jobs on one root the older one is told by `FencedError`.

    Under a multi-worker strategy every worker makes a manager, and calls `restore*`, `save`, `wait` and `close` at the
    same points of its program, in the same order. All calls come from the thread that made the manager.

    Args:
        url: the root of one run: a folder, or `s3://…`, `gs://…`, `memory://…`, any fsspec URL.
        state: a dict of named objects, one object, or a `tf.train.Checkpoint`.
        strategy: the `tf.distribute.Strategy` under which the state was made; default: the current one.
        keep: how many of the newest to retain, or one or several policies: a checkpoint is retained if any of them
            retains it, and the newest always is. An empty list is a ValueError.
        storage_options: passed to the file system, except for `client` and `stall_timeout_s` (seconds without a byte
            after which a request is given up and tried again: 30, or None for no limit). Never written to storage or a
            log.
        shard_bytes: the size of a shard at most, and so of one write or request. Default 65 MiB on a disk, 8 MiB on an
            object store.
        memory_budget_bytes: host memory for staging, reused for every save and restore. Default 260 MiB; at least one
            shard. What training overwrites while it is being saved is copied by TensorFlow on top of this.
        commit_timeout_s: how long the coordinator waits for the other workers' receipts, and each worker for all others
            to make their manager. Default 600 s. A request to the storage that is under way then is not interrupted.
        peer_timeout_s: how long each worker waits, in any call, for another one that does not come and shows no
            progress; then all that wait raise `PeerError` with its name. Default 3600 s; None: no limit. The log names
            who is missing after 15 s already. A worker that has ended is noticed within about 10 s; by a save that
            waits for the reports of hundreds, within a minute.
        on_save_error: "raise" raises a failed save at the next `save`; "log" lets training go on, and raises at `wait`
            and close all the same. Being fenced is always raised.
        read_only: never writes: for an evaluation job while another one trains.
        fresh: starts over, once, on a root that holds checkpoints; they are retained until deleted by hand. Until it
            has a checkpoint of its own, `restore(step)` and `rollback(step)` raise `UsageError`. Left in a script, it
            starts over at every restart.
        verify_replicas: "small" reports replicated tensors under 1 MiB that differ between workers; "all" covers every
            tensor, at the cost of reading all of them on every worker.
        restore_from: "auto": of several workers one reads from storage what all of them want, and the others get it of
            that one over the network; what cannot be had so is read from storage. "storage": each worker reads all
            that it wants from storage, and nothing listens. The same on all workers.
        reuse_unchanged: what is proved not to have changed since an older checkpoint is copied from there inside the
            storage, and not sent again, where the storage can: a hard link on a disk, a copy by the server on S3 and
            Google Cloud Storage. Each checkpoint stays complete by itself. False: every save sends everything.
        check_finite: after each save, the event `NotFinite` and a line in the log name the float and complex tensors in
            which a value is NaN or Inf. Each worker looks at what it sends, in the background, as it lies in the
            staging buffers; what is copied because it is proved not to have changed is not looked at again. The save
            goes on all the same.
        concurrency: how many shards each worker writes, and ranges it reads, at once; memory_budget_bytes must hold as
            many, and more than 128 are never under way. Default 2 on a disk; on an object store as many as help: the
            number begins at 16, for a restore at 32, far away at all that the memory budget holds; it grows up to that
            while the throughput grows, and falls where the storage asks for fewer requests.
        on_event: called with each event of `ckptflow.events`, in a thread of its own, one after another; or several
            such callables. One that raises is logged. `ckptflow.telemetry` has some.

    Raises:
        ValueError, UnsupportedStateError, StorageError: at once, before anything is written.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        state: Any,
        *,
        strategy: tf.distribute.Strategy | None = None,
        keep: Sequence[Policy] | Policy | int = arguments.DEFAULT_KEEP,
        storage_options: dict[str, Any] | None = None,
        shard_bytes: int | None = None,
        memory_budget_bytes: int = arguments.DEFAULT_MEMORY_BUDGET_BYTES,
        commit_timeout_s: float = arguments.DEFAULT_COMMIT_TIMEOUT_S,
        peer_timeout_s: float | None = arguments.DEFAULT_PEER_TIMEOUT_S,
        on_save_error: Literal["raise", "log"] = "raise",
        read_only: bool = False,
        fresh: bool = False,
        verify_replicas: Literal["small", "all"] = "small",
        restore_from: Literal["auto", "storage"] = "auto",
        reuse_unchanged: bool = True,
        check_finite: bool = False,
        concurrency: int | None = None,
        on_event: Hook | Sequence[Hook] = (),
    ) -> None:
        arguments.check_arguments(
            shard_bytes,
            memory_budget_bytes,
            commit_timeout_s,
            peer_timeout_s,
            on_save_error,
            verify_replicas,
            restore_from,
            concurrency,
        )
        # What ckptflow's own callbacks and watcher work with. Not for programs: it changes without notice.
        self.session = Session(
            url,
            state,
            strategy=strategy,
            policies=arguments.check_policies(keep),
            storage_options=storage_options,
            shard_bytes=shard_bytes,
            memory_budget_bytes=memory_budget_bytes,
            commit_timeout_s=commit_timeout_s,
            peer_timeout_s=math.inf if peer_timeout_s is None else float(peer_timeout_s),
            on_save_error=on_save_error,
            read_only=read_only,
            fresh=fresh,
            verify_replicas=verify_replicas,
            restore_from=restore_from,
            reuse_unchanged=reuse_unchanged,
            check_finite=check_finite,
            concurrency=concurrency,
            hooks=arguments.check_hooks(on_event),
        )
        cluster = self.session.cluster
        problem = unused_workers(cluster.strategy) if cluster.world_size == 1 and not read_only else None
        if problem is not None:
            logger.warning("%s: %s", self.session.store.url, problem)

    # Saving

    def save(
        self, step: SupportsIndex, *, metrics: Mapping[str, SupportsFloat] | None = None, metadata: Any = None
    ) -> PendingCheckpoint:
        """Takes the state as it is now and saves it in the background; returns as soon as it holds the values.

        Blocks for as long as it takes to hold references to every tensor, and for the save before this one, if that is
        still under way: one save at a time keeps memory bounded.

        Args:
            step: must not decrease within one attempt of the job, nor below what was restored. Equal steps are resaved.
            metrics: finite numbers that `KeepBest` can use. Only the chief's are saved.
            metadata: anything JSON-able, stored in the manifest. Only the chief's is saved.

        Raises:
            UsageError: on a root that holds checkpoints, before any `restore*`; after a restore that failed in the
                middle; after close; from another thread; for a Keras model that was never built and has no weights yet,
                only layers that will make some.
            StepOrderError, ValueError: for a bad step, metric or metadata. Nothing is saved.
            SaveFailedError: an earlier save failed (raised once, with `on_save_error="raise"`), or no thread that saves
                can be started (always). This step is not saved.
            FencedError: another incarnation holds the root; after `restore(step)` also where another job has started
                or saved since.
            StorageError: at the first save of all, or after `restore(step)`: the root could not be claimed. Raised with
                `on_save_error="log"` as well. Nothing is saved; the next save tries again, from the same step.
            PeerError: another worker raised, or ended, or did not come within `peer_timeout_s`.
        """
        return self.session.save(step, metrics, metadata)

    def wait(self) -> None:
        """Waits until the save under way has ended, and raises if it, or an earlier one, failed. Called by all."""
        self.session.wait()

    def close(self) -> None:
        """Like `wait`, and then gives back memory and threads, whether it raises or not. Closing twice does nothing.

        A call that may not be made, as from another thread, raises `UsageError` and changes nothing.
        """
        self.session.close()

    def __repr__(self) -> str:
        session = self.session
        step = f"step {session.last_step}" if session.last_step >= 0 else "nothing restored or saved yet"
        worker = f"worker {session.cluster.worker} of {session.cluster.world_size}"
        marks = ", read-only" * session.read_only + ", closed" * session.calls.is_closed
        return f"<CheckpointManager {session.store.url!r}: {worker}, {step}{marks}>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        raise UsageError("a manager belongs to the process that made it, and cannot be copied: make another one there")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leaving well closes. Leaving by an exception waits for no message.

        It waits for this worker's part of a save, and the chief at most 15 s for the others, which may be dead. A save
        that failed and was not raised yet is raised in the place of what says that all is well, as `sys.exit(0)` does;
        any other exception goes on, with a note of it.
        """
        if error is None:
            self.close()
        else:
            self.session.leave(error)

    # Restoring

    def restore_latest(self, *, partial: bool = False, rename: Rename | None = None) -> Checkpoint | None:
        """Restores the newest valid current checkpoint, and claims the root for this incarnation. Called by all.

        Returns None on an empty root, or with `fresh=True` until it has saved. A damaged checkpoint is logged, and the
        one before it is taken and saved again as this incarnation's own before this method returns. An error after the
        first value was assigned, of whatever class, says that the state holds a mixture: `save` then raises
        `UsageError` until a restore succeeds.

        Args:
            partial: takes what matches and leaves the rest as it is (a warm start); else every difference is an error.
                All is verified before the first value changes: the checkpoint is read twice.
            rename: a map from names, or prefixes up to a "/", in the checkpoint to those in the state, or a function.

        Raises:
            StateMismatchError: the differences, many of them grouped by prefix; no value was changed, nothing claimed.
            CorruptCheckpointError: no valid checkpoint is left.
            CheckpointGoneError: the only one was deleted while it was read.
            FencedError: another job holds the root.
            PeerError: another worker failed, ended or did not come.
            StorageError: the storage refused or failed.
            UsageError: the message says what to call instead.
        """
        return self.session.restore(None, partial=partial, rename=rename, claims=True)

    def restore(self, step: SupportsIndex, *, partial: bool = False, rename: Rename | None = None) -> Checkpoint:
        """Restores the checkpoint of `step` and no other, and changes nothing in storage. Called by all.

        To look at it, or to evaluate it: a later start resumes from the newest checkpoint, as if this had not been. A
        `save` after it goes on from `step`: with that save, not before, the process claims the root, and what came
        after `step` is superseded, a rollback. That save raises `FencedError`, and saves nothing, if another job has
        started or has saved since. Only if that one saved at the very moment does it end as well, as the message then
        says: it has lost nothing, start it again. `rollback` does it at once.

        Args:
            step: the step of a checkpoint that is there.
            partial, rename: as in `restore_latest`.

        Raises:
            CheckpointNotFoundError: there is none of that step; the message names the steps there are.
            CorruptCheckpointError: it is damaged; no other is taken in its place.
            CkptflowError: what `restore_latest` raises, too.
        """
        return self._restore(step, partial, rename, claims=False)

    def rollback(self, step: SupportsIndex, *, partial: bool = False, rename: Rename | None = None) -> Checkpoint:
        """Restores the checkpoint of `step` and no other, and claims the root: what came after is superseded.

        Unless it is the newest, it is saved again as this incarnation's own before this method returns: from then on
        every start resumes from it, or from what builds on it. Called by all. What is superseded stays in storage
        until a new checkpoint has reached its step: until then `restore` and `rollback` can bring it back.

        Args:
            step: the step of a checkpoint that is there.
            partial, rename: as in `restore_latest`.

        Raises:
            UsageError: the manager was opened with `read_only=True`.
            CheckpointNotFoundError: there is none of that step; the message names the steps there are.
            CorruptCheckpointError: it is damaged; no other is taken in its place.
            SaveFailedError: it was restored, and could not be saved again.
            CkptflowError: what `restore_latest` raises, too.
        """
        return self._restore(step, partial, rename, claims=True)

    def _restore(self, step: SupportsIndex, partial: bool, rename: Rename | None, *, claims: bool) -> Checkpoint:
        restored = self.session.restore(arguments.check_step(step), partial=partial, rename=rename, claims=claims)
        if restored is None:
            raise UsageError(f"step {step} was not found, and nothing was said")
        return restored

    # What is there

    def latest(self) -> Checkpoint | None:
        """The newest current checkpoint, without reading tensors; None if there is none. Needs no other worker."""
        self.session.calls.check()
        return find_checkpoint(self.session.store, self.session.summaries)

    def checkpoints(self) -> list[Checkpoint]:
        """The current checkpoints, oldest first, without reading tensors. Needs no other worker."""
        self.session.calls.check()
        return list_counting(self.session.store, self.session.summaries)

    def best(self, metric: str, mode: Mode | None = None) -> Checkpoint | None:
        """The one with the best value of `metric`, of those that `checkpoints` gives, or None if none has the metric.

        `mode` is as in `KeepBest`: "min", "max", or left out for the name of a loss or an error. Of equal values the
        older one is better. Needs no other worker. Raises ValueError if neither says which value is best.
        """
        choose_mode(metric, mode)  # refused before anything is read
        return next(iter(best_first(self.checkpoints(), metric, mode)), None)

    def pin(self, step: SupportsIndex, name: str | None = None) -> None:
        """Keeps the checkpoint of `step` until it is unpinned. Needs no other worker; done by the chief.

        `name`, such as "release", is shown with it; a run has it once: another checkpoint that had it loses it, and
        stays pinned. Waits for the save under way, so that no prune of this process runs meanwhile. Raises ValueError
        for a name that is not made of 1 to 100 letters, digits and . _ + -, `CheckpointNotFoundError`, or
        `CheckpointGoneError` if it was pruned before it could be pinned.
        """
        self.session.calls.check(writes=True)
        if name is not None:
            check_pin_name(name)  # on every worker
        if self.session.cluster.is_chief:
            self.session.settle()
            pin_checkpoint(self.session.store, self.session.summaries, arguments.check_step(step), name)

    def unpin(self, step: SupportsIndex) -> None:
        """Removes the pin and its names: retention decides again. One that is not pinned is not an error.

        Needs no other worker; done by the chief.
        """
        self.session.calls.check(writes=True)
        if self.session.cluster.is_chief:
            unpin_checkpoint(self.session.store, arguments.check_step(step))
