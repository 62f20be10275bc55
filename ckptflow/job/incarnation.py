"""One run attempt of the job, from its claim to its end: it numbers its saves and hands them to the background."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ckptflow.commit.catalog import Checkpoint
from ckptflow.commit.resume import Start
from ckptflow.errors import CkptflowError, FencedError
from ckptflow.events import Claimed, SaveBegan
from ckptflow.format.layout import Folder
from ckptflow.format.values import to_json
from ckptflow.job.background import Background
from ckptflow.job.live_state import LiveState
from ckptflow.job.pending import PendingCheckpoint
from ckptflow.job.saver import Job, Saver, Stopwatch
from ckptflow.peers.team import Call, agree, agree_on
from ckptflow.reading import await_checkpoint

if TYPE_CHECKING:
    from ckptflow.state.capture import Snapshot

logger = logging.getLogger("ckptflow")

_SLICE_S = 1.0  # of waiting


class Incarnation:
    """What `start` began. `last_step` is the newest that it restored or saved; steps do not fall below it."""

    def __init__(
        self,
        start: Start,
        saver: Saver,
        background: Background,
        live: LiveState,
        commit_timeout_s: float,
        while_waiting: Callable[[], None],
        find_failure: Callable[[Folder], CkptflowError | None],
    ) -> None:
        self.start = start
        self.last_step = start.restored.checkpoint.step if start.restored else -1
        self._saver = saver
        self._background = background
        self._live = live
        self._commit_timeout_s = commit_timeout_s
        self._while_waiting = while_waiting
        self._find_failure = find_failure
        self._calls: Counter[int] = Counter()
        saver.tell(Claimed(incarnation=saver.held.number, reason=start.reason))

    @property
    def has_checkpoints(self) -> bool:
        """Whether it builds on a checkpoint, restored or its own. False on other workers than the chief."""
        return self._saver.has_checkpoints

    def save(
        self,
        step: int,
        snapshot: Snapshot,
        metrics: Mapping[str, float],
        metadata: Any,
        *,
        watch: Stopwatch,
        capture_s: float = 0.0,
        prune: bool = True,
    ) -> PendingCheckpoint:
        """Hands the save to the background. `watch` runs since `save` was called."""
        saver = self._saver
        if step != self.last_step:
            self._calls.clear()  # steps do not fall: an earlier one is never saved again in this run attempt
        self._calls[step] += 1
        self.last_step = step
        folder = Folder(step, saver.held.number, self._calls[step])
        blocked_s = watch.elapsed_s()
        job = Job(folder, snapshot, lambda: self._live.plan(snapshot), metrics, metadata, prune, watch, blocked_s)
        saver.tell(SaveBegan(step=step, folder=str(folder), blocked_s=blocked_s, capture_s=capture_s))
        future = self._background.submit(lambda acknowledge: saver.run(job, acknowledge))
        return PendingCheckpoint(step, future, self._look_for(folder))

    def save_again(self) -> None:
        """What was restored is not the newest that counted: until it is saved as our own, nothing protects it.

        Called by all workers. Returns once that is acknowledged; after damage a failure is only logged, and nothing is
        lost by it.
        """
        if self.start.restored is None:
            return
        checkpoint = self.start.restored.checkpoint

        def take() -> tuple[Snapshot, bool]:
            return self._live.capture(again=True), True

        def finish(snapshot: Snapshot) -> bool:
            metadata = to_json(checkpoint.metadata, "metadata")
            metrics = dict(checkpoint.metrics)
            pending = self.save(checkpoint.step, snapshot, metrics, metadata, watch=Stopwatch(), prune=False)
            while not pending.wait(_SLICE_S):
                self._while_waiting()
            if (error := pending.exception()) is not None:
                raise error
            return True

        before = self._background.failure  # of a save before the restore: not ours to forget
        try:
            # Two rounds: nobody waits for a save of one who could not capture.
            snapshot, _ = agree_on(self._saver.cluster, Call.CAPTURE_AGAIN, take)
            agree(self._saver.cluster, Call.SAVE_AGAIN, partial(finish, snapshot))
        except Exception as error:
            if self.start.reason == "rollback" or isinstance(error, FencedError):
                raise
            self._background.settle()
            self._background.failure = before
            logger.warning(
                "step %d was restored after damage, and saving it again failed: nothing protects it until the next "
                "save (%s)",
                checkpoint.step,
                error,
            )

    def hurry(self, timeout_s: float) -> None:
        """The save under way waits at most so long for the other workers, who may be dead."""
        if self._saver.coordinator is not None:
            self._saver.coordinator.hurry(timeout_s)

    def _look_for(self, folder: Folder) -> Callable[[float | None], Checkpoint]:
        """How a worker that is not the chief learns of a commit without a message."""
        store, limit_s, find_failure = self._saver.store, self._commit_timeout_s, self._find_failure

        def look(timeout_s: float | None) -> Checkpoint:
            return await_checkpoint(store, folder, limit_s if timeout_s is None else timeout_s, find_failure)

        return look
