"""`CheckpointManager`: wires the rooms together; decides nothing itself.

Everything here runs on the thread that made the manager, but for what `saver.Saver` does in the background. Collectives
are in `_agree`, in `Resume`, in `Incarnation.save_again`, and nowhere else.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, SupportsFloat, SupportsIndex

from ckptflow import arguments
from ckptflow.background import Background, Calls, call_each
from ckptflow.commit.catalog import Checkpoint, Summaries
from ckptflow.commit.coordinator import Coordinator
from ckptflow.commit.lineage import NOT_EXCLUSIVE
from ckptflow.commit.resume import Resume, Start
from ckptflow.commit.retention import Policy
from ckptflow.commit.team import Vote, agree
from ckptflow.errors import StepOrderError, UsageError
from ckptflow.events import Restored
from ckptflow.hooks import Hook, Hooks
from ckptflow.incarnation import Incarnation
from ckptflow.live_state import LiveState, Rename
from ckptflow.loading import Loading
from ckptflow.pending import PendingCheckpoint
from ckptflow.reading import find_checkpoint, list_counting, pin_checkpoint, unpin_checkpoint
from ckptflow.saver import Saver, Stopwatch, software_versions
from ckptflow.state.cluster import find_cluster
from ckptflow.storage.store import open_store
from ckptflow.transfer.buffers import BufferPool

if TYPE_CHECKING:
    import tensorflow as tf

    from ckptflow.state.capture import Snapshot

logger = logging.getLogger("ckptflow")


_SAVE, _WAIT, _RESTORE = 1, 2, 3  # what workers call together; `incarnation.SAVE_AGAIN` is another


class CheckpointManager:
    """Saves the state in the background and brings back the newest valid checkpoint.

    Guarantees. A save that was acknowledged (`PendingCheckpoint.result()` on the coordinator, `wait`, leaving the
    block) is durable and is what the next life of the job restores, or something that builds on it. A save that failed
    is raised at the next `save`, `wait` or close, and leaves older checkpoints untouched. A restore gives every tensor
    bit for bit as it was saved, or raises. Of two jobs on one root the older one is told by `FencedError`.

    Under a multi-worker strategy every worker makes a manager, and calls `restore*`, `save`, `wait` and `close` at the
    same points of its program, as with any collective. All calls come from the thread that made the manager.

    Args:
        url: the root of one run: a folder, or `s3://…`, `gs://…`, `memory://…`, any fsspec URL.
        state: a dict of named objects, one object, or a `tf.train.Checkpoint`.
        strategy: the `tf.distribute.Strategy` under which the state was made; default: the current one.
        keep: retention policies; what any of them keeps stays, and the newest checkpoint always does.
        storage_options: passed to the file system, except for `client` and `stall_timeout_s` (seconds without a byte
            after which a request is given up and tried again: 30, or None for no limit). Never written to storage or a
            log.
        shard_bytes: the size of a shard at most, and so of one write or request. Default 65 MiB.
        memory_budget_bytes: host memory for staging, reused for every save and restore. Default 260 MiB; at least one
            shard. What training overwrites while it is being saved is copied by TensorFlow on top of this.
        commit_timeout_s: how long the coordinator waits for the other workers' receipts, and each worker for all others
            to make their manager. Default 600 s.
        on_save_error: "raise" raises a failed save at the next `save`; "log" lets training go on, and raises at `wait`
            and close all the same. Being fenced is always raised.
        read_only: never writes: for an evaluation job beside a running one.
        fresh: starts over, once, on a root that holds checkpoints; they are kept until deleted by hand. Left in a
            script, it starts over at every restart.
        verify_replicas: "small" reports replicated tensors under 1 MiB that differ between workers; "all" covers every
            tensor, at the cost of reading all of them on every worker.
        concurrency: how many shards each worker writes, and ranges it reads, at once; memory_budget_bytes must hold as
            many. Default 2 on a disk, 8 on an object store. `ckptflow bench URL` finds what suits a storage.
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
        keep: Sequence[Policy] | Policy = arguments.DEFAULT_KEEP,
        storage_options: dict[str, Any] | None = None,
        shard_bytes: int = arguments.DEFAULT_SHARD_BYTES,
        memory_budget_bytes: int = arguments.DEFAULT_MEMORY_BUDGET_BYTES,
        commit_timeout_s: float = arguments.DEFAULT_COMMIT_TIMEOUT_S,
        on_save_error: Literal["raise", "log"] = "raise",
        read_only: bool = False,
        fresh: bool = False,
        verify_replicas: Literal["small", "all"] = "small",
        concurrency: int | None = None,
        on_event: Hook | Sequence[Hook] = (),
    ) -> None:
        arguments.check_arguments(
            shard_bytes, memory_budget_bytes, commit_timeout_s, on_save_error, verify_replicas, concurrency
        )
        self._policies = arguments.check_policies(keep)
        hooks = arguments.check_hooks(on_event)
        self._shard_bytes = shard_bytes
        self._commit_timeout_s = commit_timeout_s
        self._on_save_error = on_save_error
        self._read_only = read_only
        self._fresh = fresh
        self._verify_replicas = verify_replicas
        self._concurrency = concurrency

        self._cluster = find_cluster(strategy, arrival_timeout_s=commit_timeout_s)
        self._live = LiveState(state, self._cluster, shard_bytes)
        self._hooks = Hooks(hooks, self._cluster.worker)
        self._store = open_store(os.fspath(url), storage_options, self._hooks.tell)
        self._hooks.url = self._store.url
        if not self._store.is_create_only and not read_only:
            logger.warning(NOT_EXCLUSIVE, self._store.url)
        self._summaries = Summaries(self._store)
        self._pool = BufferPool(max(memory_budget_bytes, shard_bytes), shard_bytes)
        self._background = Background()
        self._calls = Calls(self._background, read_only=read_only)

        self._incarnation: Incarnation | None = None

    # Saving

    def save(
        self, step: SupportsIndex, *, metrics: Mapping[str, SupportsFloat] | None = None, metadata: Any = None
    ) -> PendingCheckpoint:
        """Takes the state as it is now and saves it in the background; returns as soon as it holds the values.

        Blocks for as long as it takes to hold references to every tensor, and for the save before this one, if that is
        still under way: one save at a time keeps memory bounded.

        Args:
            step: steps do not fall within a run of the job, nor below what was restored. Equal steps are saved anew.
            metrics: finite numbers that `KeepBest` can use. The chief's count.
            metadata: anything JSON-able, kept in the manifest. The chief's counts.

        Raises:
            UsageError: on a root that holds checkpoints, before any `restore*`; after a restore that failed in the
                middle; after close; from another thread.
            StepOrderError, ValueError: for a bad step, metric or metadata. Nothing is saved.
            SaveFailedError: an earlier save failed (raised once, with `on_save_error="raise"`). This step is not saved.
            FencedError: another incarnation holds the root.
            PeerError: another worker raised.
        """
        watch = Stopwatch()
        return self._calls.make(lambda: self._save(step, metrics, metadata, watch), writes=True)

    def _save(
        self, step: SupportsIndex, metrics: Mapping[str, SupportsFloat] | None, metadata: Any, watch: Stopwatch
    ) -> PendingCheckpoint:
        prepared: list[tuple[int, dict[str, float], Any, Snapshot]] = []
        capture_s: list[float] = []

        def prepare() -> tuple[int, ...]:
            self._background.raise_failure(only_fenced=self._on_save_error == "log")
            number = arguments.check_step(step)
            if number < self._last_step:
                raise StepOrderError(
                    f"step {number} is below step {self._last_step}, which was saved or restored; to go back, call "
                    "restore(step)"
                )
            checked = arguments.check_metrics(metrics), arguments.check_metadata(metadata)
            before_s = watch.elapsed_s()
            prepared.append((number, *checked, self._live.capture()))
            capture_s.append(watch.elapsed_s() - before_s)
            return (number, self._live.checksum())

        votes = self._agree((_SAVE,), prepare)
        self._live.check_same(votes)
        number, checked_metrics, checked_metadata, snapshot = prepared[0]
        steps = [v.numbers[0] for v in votes]
        if len(set(steps)) > 1:
            raise UsageError(f"workers save different steps at once: {dict(enumerate(steps))}")
        incarnation = self._incarnation or self._begin(self._resume(None).start_anew(fresh=self._fresh))
        return incarnation.save(
            number, snapshot, checked_metrics, checked_metadata, watch=watch, capture_s=capture_s[0]
        )

    def wait(self) -> None:
        """Waits until the save under way has ended, and raises if it, or an earlier one, failed. A collective."""
        self._calls.make(self._raise_failure)

    def _raise_failure(self) -> None:
        def look() -> tuple[int, ...]:
            self._background.raise_failure()
            return ()

        self._agree((_WAIT,), look)

    def close(self) -> None:
        """Like `wait`, and then gives back memory and threads, whether it raises or not. Closing twice does nothing.

        A call that may not be made, as from another thread, raises `UsageError` and changes nothing.
        """
        if self._calls.is_closed:
            return
        self._calls.check_turn()
        with self._background.delivery():
            try:
                self._background.settle()
                self._calls.alone(self._raise_failure)
            except BaseException as error:
                self._leave_by(error)
                raise
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leaving well closes. Leaving by an exception uses no collective.

        It waits for this worker's part of a save, and the chief at most 15 s for the others, which may be dead. A save
        that failed and was not raised yet is raised in the place of what says that all is well, as `sys.exit(0)` does;
        any other exception goes on, with a note of it.
        """
        if error is None:
            self.close()
        elif not self._calls.is_closed and self._calls.is_of_this_process:
            if self._incarnation is not None:
                self._incarnation.hurry(arguments.LEAVING_S)  # the others may be dead
            self._background.settle()
            self._leave_by(error)

    # Restoring

    def restore_latest(self, *, partial: bool = False, rename: Rename | None = None) -> Checkpoint | None:
        """Restores the newest valid checkpoint that counts, and claims the root for this incarnation. A collective.

        Returns None on an empty root, or with `fresh=True` until it has saved. A damaged checkpoint is logged, and the
        one before it is taken and saved again as this incarnation's own before this method returns. An error after the
        first value was assigned, of whatever class, says that the state holds a mixture: `save` then raises
        `UsageError` until a restore succeeds.

        Args:
            partial: takes what matches and leaves the rest as it is (a warm start); else every difference is an error.
                All is verified before the first value changes: the checkpoint is read twice.
            rename: a map from names, or prefixes up to a "/", in the checkpoint to those in the state, or a function.

        Raises:
            StateMismatchError: all differences in one message; no value was changed, nothing claimed.
            CorruptCheckpointError: no valid checkpoint is left.
            CheckpointGoneError: the only one was deleted while it was read.
            FencedError, PeerError, StorageError, UsageError: as their docstrings say.
        """
        return self._restore(None, partial, rename)

    def restore(self, step: SupportsIndex, *, partial: bool = False, rename: Rename | None = None) -> Checkpoint:
        """Restores the checkpoint of `step` and no other. What came after it no longer counts: a rollback.

        Unless it is the newest, it is saved again as this incarnation's own before this method returns, so that the
        rollback holds. Raises `CheckpointNotFoundError` (names the steps there are), and what `restore_latest` raises.
        """
        restored = self._restore(arguments.check_step(step), partial, rename)
        if restored is None:
            raise UsageError("restore(step) found nothing and said nothing")
        return restored

    # What is there

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that counts, without reading tensors; None where there is none. No collective."""
        self._calls.check()
        return find_checkpoint(self._store, self._summaries)

    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoints that count, oldest first, without reading tensors. No collective."""
        self._calls.check()
        return list_counting(self._store, self._summaries)

    def pin(self, step: SupportsIndex) -> None:
        """Keeps the checkpoint of `step` until it is unpinned. No collective; done by the chief.

        Waits for the save under way, so that no prune of this process runs meanwhile. Raises `CheckpointNotFoundError`,
        or `CheckpointGoneError` where it was pruned before the pin was there.
        """
        self._calls.check(writes=True)
        if self._cluster.is_chief:
            self._background.settle()
            pin_checkpoint(self._store, self._summaries, arguments.check_step(step))

    def unpin(self, step: SupportsIndex) -> None:
        """Lets retention decide again. One that is not pinned is no error. No collective; done by the chief."""
        self._calls.check(writes=True)
        if self._cluster.is_chief:
            unpin_checkpoint(self._store, arguments.check_step(step))

    # Inside

    @property
    def _last_step(self) -> int:
        """The newest step that this life has restored or saved; -1 before either."""
        return self._incarnation.last_step if self._incarnation is not None else -1

    def _agree(self, call: tuple[int, ...], do: Callable[[], tuple[int, ...]]) -> list[Vote]:
        return agree(self._cluster, call, do)

    def _restore(self, step: int | None, partial: bool, rename: Rename | None) -> Checkpoint | None:
        watch = Stopwatch()
        return self._calls.make(lambda: self._restore_now(step, partial, rename, watch))

    def _restore_now(
        self, step: int | None, partial: bool, rename: Rename | None, watch: Stopwatch
    ) -> Checkpoint | None:
        def look() -> tuple[int, ...]:
            self._background.raise_failure(only_fenced=True)  # another is raised next: restoring saves nothing
            incarnation = self._incarnation
            return (int(incarnation is not None and incarnation.has_checkpoints), self._live.checksum())

        how = (_RESTORE, 0 if step is None else step + 1, int(self._read_only), int(self._fresh))
        votes = self._agree(how, look)
        self._live.check_same(votes)
        if votes[0].numbers[0]:
            self._fresh = False  # it has started over; from here on the newest is this run's own
        if step is None and self._fresh and not self._read_only:
            self._begin(self._resume(None).start_anew(fresh=True))
            return None
        resume = self._resume((partial, rename))
        try:
            start = resume.run(step)
        except BaseException as error:
            if resume.has_claimed:  # the incarnation before is fenced by our own claim
                self._incarnation = None
            self._live.tell_of_mixture(error)
            raise
        if start.restored is not None:
            self._live.unfinished.clear()
        incarnation = None if self._read_only else self._begin(start)
        if start.restored is None:
            return None
        found = start.restored.checkpoint
        self._hooks.tell(
            Restored(
                step=found.step,
                folder=str(start.restored.folder),
                size_bytes=found.size_bytes,
                restore_s=watch.elapsed_s(),
                created_at=found.created_at,
            )
        )
        if incarnation is not None and start.save_again:
            incarnation.save_again()
        return found

    def _resume(self, how: tuple[bool, Rename | None] | None) -> Resume:
        """A restore that checks manifests against the state and loads into it."""
        partial, rename = how if how is not None else (False, None)
        loading = Loading(self._live, self._store, self._pool, self._concurrency, partial=partial, rename=rename)
        return Resume(
            self._store,
            self._cluster,
            self._summaries,
            check=loading.check,
            load=loading.load,
            complete=loading.complete,
            read_only=self._read_only,
            claim_timeout_s=min(self._commit_timeout_s, 60.0),
            tell=self._hooks.tell,
        )

    def _begin(self, start: Start) -> Incarnation:
        """From here on this process is the incarnation that `start` claimed."""
        if start.held is None:
            raise UsageError("a reader begins no incarnation")
        self._live.prepare()
        coordinator = None
        if self._cluster.is_chief:
            coordinator = Coordinator(
                self._store,
                start,
                self._summaries,
                self._policies,
                commit_timeout_s=self._commit_timeout_s,
                is_alive=self._cluster.is_alive,
                tell=self._hooks.tell,
            )
        saver = Saver(
            store=self._store,
            cluster=self._cluster,
            pool=self._pool,
            held=start.held,
            coordinator=coordinator,
            shard_bytes=self._shard_bytes,
            verify_replicas=self._verify_replicas,
            concurrency=self._concurrency,
            software=software_versions(),
            tell=self._hooks.tell,
        )
        self._incarnation = Incarnation(start, saver, self._background, self._live, self._commit_timeout_s)
        return self._incarnation

    def _leave_by(self, error: BaseException) -> None:
        """Gives everything back; of a save that failed it is the last chance to speak, unless `error` does."""
        self._release()
        self._background.raise_on_leaving(error)

    def _release(self) -> None:
        call_each(self._background.stop, self._pool.close, self._store.close, self._hooks.close, self._calls.close)
