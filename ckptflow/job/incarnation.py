"""One run attempt of the job, from its claim to its end: it numbers its saves and hands them to the background."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from ckptflow.commit.catalog import Checkpoint, Summaries
from ckptflow.commit.coordinator import Coordinator
from ckptflow.commit.finding import await_checkpoint
from ckptflow.commit.receipts import BeginWait
from ckptflow.commit.resume import Start
from ckptflow.commit.retention import Policy
from ckptflow.commit.reuse import Reuse, reuse_restored
from ckptflow.errors import FencedError, PeerError, UsageError
from ckptflow.events import Claimed, SaveBegan, Tell
from ckptflow.format.layout import Folder
from ckptflow.format.manifest import Manifest
from ckptflow.format.values import to_json
from ckptflow.job.background import Background
from ckptflow.job.live_state import LiveState
from ckptflow.job.notes import Notes
from ckptflow.job.pending import PendingCheckpoint
from ckptflow.job.saver import Job, Saver, Stopwatch, software_versions
from ckptflow.job.unchanged import Unchanged
from ckptflow.peers.cluster import Cluster
from ckptflow.peers.team import Call, agree, agree_on
from ckptflow.peers.watch import ASK_EVERY_S
from ckptflow.printable import said
from ckptflow.storage.store import Store
from ckptflow.storage.wrappers import can_copy
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.streams import Streams

if TYPE_CHECKING:
    from ckptflow.state.capture import Snapshot

logger = logging.getLogger("ckptflow")


@dataclass(frozen=True, slots=True)
class Asked:
    """A save that was checked and captured, and not yet agreed upon; `watch` runs since `save` was called."""

    step: int
    metrics: Mapping[str, float]
    metadata: Any
    snapshot: Snapshot
    watch: Stopwatch
    capture_s: float = 0.0


class Incarnation:
    """What `start` began. `last_step` is the newest that it restored or saved; steps must not decrease below it."""

    def __init__(
        self,
        start: Start,
        saver: Saver,
        background: Background,
        live: LiveState,
        commit_timeout_s: float,
        begin_wait: BeginWait,
        notes: Notes,
        goes_on: Callable[[], None],
    ) -> None:
        """`goes_on` tells other workers that a wait of this one goes on."""
        self.start = start
        self.last_step = start.restored.checkpoint.step if start.restored else -1
        self._saver = saver
        self._background = background
        self._live = live
        self._commit_timeout_s = commit_timeout_s
        self._begin_wait = begin_wait
        self._notes = notes
        self._goes_on = goes_on
        self._calls: Counter[int] = Counter()
        saver.tell(Claimed(incarnation=saver.held.number, reason=start.reason))

    def choose_reuse(self, asked: Asked) -> Reuse | None:
        """On the chief, from which checkpoint the next save may copy what has not changed."""
        coordinator = self._saver.coordinator
        if coordinator is None or not self._saver.unchanged.is_on:
            return None
        return coordinator.choose_reuse(asked.step, asked.metrics, asked.metadata)

    @property
    def has_checkpoints(self) -> bool:
        """Whether it builds on a checkpoint, restored or its own. Only the chief knows of its own."""
        return self.start.restored is not None or self.has_committed

    @property
    def has_committed(self) -> bool:
        """Whether it has committed a checkpoint. False on other workers than the chief."""
        return self._saver.has_committed

    def save(
        self, asked: Asked, *, prune: bool = True, reuse: Reuse | None = None, source: Manifest | None = None
    ) -> PendingCheckpoint:
        """Hands the save to the background.

        `reuse`: what the chief says of it; None, it is written whole. `source`: the manifest of what was restored, at
        the first save after that.
        """
        step, watch = asked.step, asked.watch
        saver = self._saver
        for earlier in [each for each in self._calls if each < step]:
            del self._calls[earlier]  # steps must not decrease: it is never saved again in this run attempt
        self._calls[step] += 1  # for good: a save that could not be handed over may be queued all the same, and run
        folder = Folder(step, saver.held.number, self._calls[step])
        blocked_s = watch.elapsed_s()
        reuse = reuse or Reuse()
        snapshot, about = asked.snapshot, (asked.metrics, asked.metadata)
        job = Job(folder, snapshot, *about, prune, watch, blocked_s, snapshot, reuse, source)
        before = self.last_step
        try:
            self.last_step = step
            saver.tell(SaveBegan(step=step, folder=str(folder), blocked_s=blocked_s, capture_s=asked.capture_s))
            future = self._background.submit(lambda acknowledge: saver.run(job, acknowledge))
        except BaseException:  # nobody may take this step for saved
            self.last_step = before
            raise
        return PendingCheckpoint(step, future, self._look_for(folder), self._commit_timeout_s, self._background.waiting)

    def save_again(self, read_attached: Callable[[], Mapping[str, Any]], source: Manifest | None) -> None:
        """What was restored is not the newest that counted: until it is saved as our own, nothing protects it.

        `read_attached` gives what it holds beside the user's state, which a restore passes over: not what is now.
        Called by all workers. Returns once that is acknowledged; after damage a failure is only logged, and nothing is
        lost by it.
        """
        if self.start.restored is None:
            return
        checkpoint = self.start.restored.checkpoint

        def take() -> tuple[Snapshot, bool]:
            self._background.start()
            return self._live.capture_again(read_attached()), True

        def finish(snapshot: Snapshot) -> bool:
            metadata = to_json(checkpoint.metadata, "metadata")
            metrics = dict(checkpoint.metrics)
            asked = Asked(checkpoint.step, metrics, metadata, snapshot, Stopwatch())
            pending = self.save(asked, prune=False, reuse=self.reuse_of_restored(), source=source)
            pending.wait()
            if (error := pending.exception()) is not None:
                raise error
            return True

        before = self._background.failure  # of a save before the restore: not ours to forget
        try:
            # Two rounds: nobody waits for a save of one who could not capture.
            snapshot, _ = agree_on(self._saver.cluster, Call.CAPTURE_AGAIN, take)
            agree(self._saver.cluster, Call.SAVE_AGAIN, partial(finish, snapshot))
        except Exception as error:
            if self.start.reason == "rollback" or isinstance(error, FencedError) or self._saver.cluster.is_lost:
                raise
            self._background.settle()
            self._background.failure = before
            logger.warning(
                "step %d was restored after damage, and saving it again failed: nothing protects it until the next "
                "save (%s)",
                checkpoint.step,
                said(error),
            )

    def reuse_of_restored(self) -> Reuse:
        """What the first save after a restore that is not the newest may copy, without asking the chief."""
        return reuse_restored(self.start.restored, is_shared=not self._saver.store.is_object_store)

    def let_go(self) -> None:
        """Keeps none of the values that were saved: the state is about to get others, or this has ended."""
        self._saver.unchanged.let_go()

    def hurry(self, timeout_s: float) -> None:
        """The save under way waits at most so long for the other workers, who may be dead."""
        if self._saver.coordinator is not None:
            self._saver.coordinator.hurry(timeout_s)

    def _look_for(self, folder: Folder) -> Callable[[float], Checkpoint]:
        """How a worker that is not the chief learns of a commit without a message; of a failure, or a lost chief."""
        store = self._saver.store

        def look(timeout_s: float) -> Checkpoint:
            find_lost, ask_at = self._begin_wait(), time.monotonic() + ASK_EVERY_S
            lost: str | None = None

            def ask() -> bool:
                nonlocal ask_at, lost
                self._goes_on()
                note = self._notes.read(folder)
                if note is not None and note.failure is not None:
                    raise note.failure
                if lost is not None and note is None:  # and storage was looked at since
                    raise PeerError(
                        f"worker 0 {lost}, which commits: {store.url}/{folder} has no manifest so far: whether it "
                        "counts, the next start finds out"
                    )
                if time.monotonic() >= ask_at:
                    ask_at = time.monotonic() + ASK_EVERY_S
                    lost = find_lost([0]).get(0)
                return note is not None or lost is not None or not self._notes.are_left

            return await_checkpoint(store, folder, timeout_s, ask)

        return look


def begin(
    start: Start,
    *,
    store: Store,
    cluster: Cluster,
    live: LiveState,
    summaries: Summaries,
    policies: Sequence[Policy],
    background: Background,
    pool: BufferPool,
    shard_bytes: int,
    streams: Streams,
    commit_timeout_s: float,
    reuses: bool,
    verify_replicas: Literal["small", "all"],
    check_finite: bool,
    tell: Tell,
) -> Incarnation:
    """The incarnation that `start` claimed. `reuses`: what has not changed is copied where the storage can."""
    if start.held is None:
        raise UsageError("without a claim no incarnation begins")
    notes = Notes(start.held.tag, cluster.world_size)
    coordinator = None
    if cluster.is_chief:
        coordinator = Coordinator(
            store,
            start,
            summaries,
            policies,
            commit_timeout_s=commit_timeout_s,
            begin_wait=cluster.begin_wait,
            find_failure=notes.find,
            tell=tell,
        )
    unchanged = Unchanged(cluster.worker, cluster.world_size, shard_bytes, is_on=reuses and can_copy(store))
    saver = Saver(
        store=store,
        cluster=cluster,
        pool=pool,
        held=start.held,
        coordinator=coordinator,
        unchanged=unchanged,
        shard_bytes=shard_bytes,
        verify_replicas=verify_replicas,
        streams=streams,
        software=software_versions(),
        check_finite=check_finite,
        tell=tell,
        leave_note=notes.leave,
    )
    return Incarnation(
        start, saver, background, live, commit_timeout_s, cluster.begin_wait, notes, cluster.storage_goes_on
    )
