"""`Session`: one process's part in a job, from its manager to its last save; what works with a manager works with this.

Everything here runs on the thread that made the manager, but for what `saver.Saver` does in the background. Workers
talk to one another in `agree` and `chief_says`, in `Beginning` and `Resume`, in `Incarnation.save_again`, nowhere else.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial as partial_of
from typing import Any, Literal, SupportsFloat, SupportsIndex, TypeVar

import msgspec

from ckptflow.commit.beginning import Beginning
from ckptflow.commit.catalog import Checkpoint, Summaries
from ckptflow.commit.lineage import NOT_EXCLUSIVE
from ckptflow.commit.resume import Resume, Start
from ckptflow.commit.retention import Policy
from ckptflow.commit.reuse import Reuse
from ckptflow.errors import StepOrderError, UsageError
from ckptflow.format.spec import Rename
from ckptflow.job import arguments
from ckptflow.job.background import Background, Calls, call_each
from ckptflow.job.carried import carried_in
from ckptflow.job.footing import Footing, Ground
from ckptflow.job.hooks import Hook, Hooks
from ckptflow.job.incarnation import Asked, Incarnation, begin
from ckptflow.job.live_state import LiveState
from ckptflow.job.loading import Loading
from ckptflow.job.pending import PendingCheckpoint
from ckptflow.job.rereading import Rereading
from ckptflow.job.saver import Stopwatch
from ckptflow.peers.cluster import find_cluster
from ckptflow.peers.team import Call, Called, Done, agree, agree_on, called, chief_says
from ckptflow.reading import run_url
from ckptflow.state.strategies import is_between_steps
from ckptflow.storage.again import hurry
from ckptflow.storage.opening import open_store
from ckptflow.storage.wrappers import ProgressStore
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.streams import streams_for

logger = logging.getLogger("ckptflow")

_Value = TypeVar("_Value")
_Kept = TypeVar("_Kept")


class _Standing(msgspec.Struct, frozen=True):
    """What a worker holds before a save or a restore: whether a checkpoint of this run attempt, and which state."""

    state: str
    has_checkpoints: bool = False
    reuse: Reuse | None = None  # what the chief says of the save


class Session:
    """What a `CheckpointManager` does, and what callbacks, watchers and imports need of it. See the manager."""

    def __init__(
        self,
        url: str | os.PathLike[str],
        state: Any,
        *,
        strategy: Any,
        policies: Sequence[Policy],
        storage_options: dict[str, Any] | None,
        shard_bytes: int | None,
        memory_budget_bytes: int,
        commit_timeout_s: float,
        peer_timeout_s: float,
        on_save_error: Literal["raise", "log"],
        read_only: bool,
        fresh: bool,
        verify_replicas: Literal["small", "all"],
        restore_from: Literal["auto", "storage"],
        reuse_unchanged: bool,
        check_finite: bool,
        concurrency: int | None,
        hooks: Sequence[Hook],
    ) -> None:
        self.policies = tuple(policies)
        self.read_only = read_only
        self._commit_timeout_s = commit_timeout_s
        self._claim_timeout_s = min(commit_timeout_s, 60.0)
        self._on_save_error = on_save_error
        self._fresh = fresh
        self._verify_replicas: Literal["small", "all"] = verify_replicas
        self._restore_from = restore_from
        self._reuse_unchanged = reuse_unchanged
        self._check_finite = check_finite
        self.cluster = find_cluster(strategy, peer_timeout_s=peer_timeout_s, arrival_timeout_s=commit_timeout_s)
        self.live = LiveState(state, self.cluster)
        self._hooks = Hooks(hooks, self.cluster.worker)
        self.store = ProgressStore(
            open_store(run_url(url), storage_options, self._hooks.tell), self.cluster.storage_goes_on
        )
        self._shard_bytes = shard_bytes or arguments.default_shard_bytes(
            is_object_store=self.store.is_object_store, memory_budget_bytes=memory_budget_bytes
        )
        self._pool = BufferPool(memory_budget_bytes, self._shard_bytes)
        self._reading = streams_for(self.store, self._pool, concurrency)
        self._writing = streams_for(self.store, self._pool, concurrency, is_for_reading=False)
        self._hooks.url = self.store.url
        if not self.store.is_create_only and not read_only:
            logger.warning(NOT_EXCLUSIVE, self.store.url)
        self.summaries = Summaries(self.store)
        self._background = Background(lambda: self.cluster.working("the saves under way"))
        self.calls = Calls(self._background, read_only=read_only)
        self._footing = Footing()
        self.rereading = Rereading(self.live, self.cluster, self.store, self.summaries, self._pool, self._reading)
        self._missing: frozenset[str] = frozenset()  # what the newest restore, in part, has given no value
        self._repeat: Callable[[], object] | None = None  # the restore of the newest that this was
        self.restores = 0  # that went well; a run that began on an empty root counts as one
        self.is_ahead = False  # a fit has trained since the newest save or restore; its batches need not count steps

    # What a call of the manager is

    def save(
        self, step: SupportsIndex, metrics: Mapping[str, SupportsFloat] | None, metadata: Any
    ) -> PendingCheckpoint:
        watch = Stopwatch()
        return self.calls.make(lambda: self._save(step, metrics, metadata, watch), writes=True)

    def wait(self) -> None:
        self.calls.make(self._raise_failure)

    def close(self) -> None:
        if self.calls.is_closed:
            return
        self.calls.check_turn()
        try:
            self.settle()
            try:
                self.calls.alone(self._raise_failure)
            finally:  # what is raised was agreed upon, or no exchange is possible any more
                self.cluster.part()
        except BaseException as error:
            self._leave_by(error)
            raise
        self._release()

    def leave(self, error: BaseException) -> None:
        """The end of the manager's block by an exception: nobody is waited for who may have ended."""
        if self.calls.is_closed or not self.calls.is_of_this_process:
            return
        if self._footing.incarnation is not None:
            self._footing.incarnation.hurry(arguments.LEAVING_S)
            hurry(self.store, arguments.LEAVING_S)
        self.settle()
        self.cluster.leave("the end of the manager's block", error)
        self._leave_by(error)

    def restore(self, step: int | None, *, partial: bool, rename: Rename | None, claims: bool) -> Checkpoint | None:
        """With `claims`, what is restored is from now on what counts; else from the first save on."""
        if not is_between_steps():
            raise UsageError("a state is restored between two steps: not inside a tf.function, nor inside strategy.run")
        watch = Stopwatch()
        is_rollback = claims and step is not None
        return self.calls.make(lambda: self._restore(step, partial, rename, claims, watch), writes=is_rollback)

    # What works with a manager

    @property
    def last_step(self) -> int:
        """The newest step that this run attempt has restored or saved; -1 before either."""
        return self._footing.last_step

    @property
    def start(self) -> Start | None:
        """What this process goes on from: its newest restore, or the begin of a run; None before either."""
        return self._footing.start

    def has_restored(self, variables: Iterable[Any]) -> bool:
        """Whether the newest restore has given all of these a value."""
        return self._missing.isdisjoint(self.live.names_of(variables))

    @property
    def has_saved_all(self) -> bool:
        """Whether the newest save that has ended went well, on this worker."""
        return self._background.newest_error is None

    def settle(self) -> None:
        """Waits until every save under way has ended on this worker; raises nothing."""
        self._background.settle()

    def agree(self, call: Called | Call, do: Callable[[], _Value]) -> list[_Value]:
        """Every worker's result of `do`; see `peers.team.agree`."""
        return self.calls.take_turn(lambda: agree(self.cluster, call, do))

    def agree_on(self, call: Called | Call, do: Callable[[], tuple[_Kept, _Value]]) -> tuple[_Kept, list[_Value]]:
        """The same, where this worker keeps one of two results to itself."""
        return self.calls.take_turn(lambda: agree_on(self.cluster, call, do))

    def chief_says(self, call: Called | Call, decide: Callable[[], _Value], kind: type[_Value]) -> _Value:
        """The chief's result of `decide`; see `peers.team.chief_says`."""
        return self.calls.take_turn(lambda: chief_says(self.cluster, call, decide, kind))

    def restore_with_attached(self) -> bool:
        """Restores the newest that is sound in what is attached to the state, too; it was attached too late for that.

        False, with nothing done, where that was looked at, a step was asked for, or something was saved since. Called
        by all workers.
        """
        loading = self.rereading.loading
        if self._repeat is None or loading is None or loading.has_set_aside:
            return False
        self._repeat()
        return True

    def restore_again(self) -> None:
        """Assigns what was restored once more, where nothing was saved since: the program may have changed it.

        Called by all workers. Claims nothing, and takes no other checkpoint in its place.
        """
        restored = self.start.restored if self.start is not None else None
        if restored is not None and self.rereading.loading is not None:
            self._let_go()
            self.calls.take_turn(lambda: self.rereading.load_again(restored.folder))
            self.is_ahead = False

    def restore_for_fit(self, *, is_interrupted: bool) -> bool:
        """Restores where a fit cannot go on from the state as it is, and says whether it did. Called by all workers.

        It cannot where nothing was restored so far, where the fit before `is_interrupted`, or where a restore failed in
        the middle. What `restore(step)` has read is restored once more, as long as nothing is committed that goes on
        from it: then the next save takes it up, again where one has tried to. Else it is the newest.
        """
        if is_interrupted:
            self.settle()

        footing = self._footing
        grounds = self.agree(Call.LOOK_BACK, lambda: Ground(bool(self.live.unfinished), footing.has_committed))
        if footing.start is not None and not is_interrupted and not any(each.is_torn for each in grounds):
            return False
        back = footing.back(has_committed=grounds[0].has_committed)
        if back is None or back.loading is None:
            self.restore(None, partial=False, rename=None, claims=True)
            return True
        self._let_go()
        self._footing, self.rereading.loading = back, back.loading
        self.restore_again()
        self.restores += 1
        return True

    # Inside

    def _save(
        self, step: SupportsIndex, metrics: Mapping[str, SupportsFloat] | None, metadata: Any, watch: Stopwatch
    ) -> PendingCheckpoint:
        def prepare() -> tuple[Asked, _Standing]:
            self._background.raise_failure(only_fenced=self._on_save_error == "log")
            number = arguments.check_step(step)
            if number < self.last_step:
                raise StepOrderError(
                    f"step {number} is below step {self.last_step}, which was saved or restored; to go back, restore "
                    "an older step first, by restore(step) or rollback(step)"
                )
            checked = arguments.check_metrics(metrics), arguments.check_metadata(metadata)
            self._background.start()
            before_s = watch.elapsed_s()
            snapshot = self.live.capture()
            asked = Asked(number, *checked, snapshot, watch, watch.elapsed_s() - before_s)
            reuse = self._footing.acting.choose_reuse(asked) if self._footing.acting is not None else None
            return asked, _Standing(self.live.checksum(), reuse=reuse)

        asked, held = agree_on(self.cluster, called(Call.SAVE, step=arguments.describe_step(step)), prepare)
        self.live.check_same([each.state for each in held])
        incarnation = self._footing.acting
        reuse = held[0].reuse
        if incarnation is None:
            incarnation = self._begin_to_save()
            reuse = incarnation.reuse_of_restored()
        source = self.rereading.loaded
        self.rereading.loading, self.is_ahead = None, False
        return incarnation.save(asked, reuse=reuse, source=source)

    def _begin_to_save(self) -> Incarnation:
        """What was only read is taken up; on an empty root, or over what is there with `fresh`, a run begins."""
        own, read = self._footing.own, self._footing.read
        beginning = Beginning(self.store, self.cluster, self.summaries, own=own, claim_timeout_s=self._claim_timeout_s)
        try:
            start = beginning.take_up(read) if read is not None else beginning.start_anew(fresh=self._fresh)
            incarnation = self._begin(start)
        except BaseException:  # what was read stays: the next save tries again
            self._footing = self._footing.but_tried(beginning.writer_id)
            raise
        self.restores += read is None
        return incarnation

    def _raise_failure(self) -> None:
        def look() -> Done:
            self._background.raise_failure()
            return Done()

        agree(self.cluster, Call.WAIT, look)

    def _restore(
        self, step: int | None, partial: bool, rename: Rename | None, claims: bool, watch: Stopwatch
    ) -> Checkpoint | None:
        def look() -> _Standing:
            self._background.raise_failure(only_fenced=True)  # another is raised next: restoring saves nothing
            incarnation = self._footing.incarnation
            return _Standing(self.live.checksum(), incarnation is not None and incarnation.has_checkpoints)

        self.live.release_metrics()  # held for a validation that an exception has ended
        arguments_: dict[str, Any] = {"step": step, "read_only": self.read_only, "fresh": self._fresh}
        arguments_ |= {"restore_from": self._restore_from} if self._restore_from != "auto" else {}
        call = Call.ROLLBACK if claims and step is not None else Call.RESTORE
        held = agree(self.cluster, called(call, **arguments_), look)
        self.live.check_same([each.state for each in held])
        if held[0].has_checkpoints:
            self._fresh = False  # it has started over; from here on the newest is this run's own
        is_anew = self._fresh and not self.read_only
        if is_anew and step is not None:
            raise UsageError(arguments.why_not_before_fresh(step))
        self._let_go()
        is_shared = self._restore_from == "auto"
        loading = self.rereading.begin_loading(partial=partial, rename=rename, is_shared=is_shared)
        resume = self._resume(loading)
        try:
            with loading.together():
                if is_anew:
                    start = resume.start_anew(fresh=True)
                elif step is None or claims or self.read_only:
                    start = resume.run(step)
                else:
                    start = resume.read(step)
        except BaseException as error:
            if resume.may_have_claimed:  # the incarnation before is fenced by our own claim
                self._footing = self._footing.but_tried(resume.writer_id)
            self.live.tell_of_mixture(error)
            raise
        is_read = start.held is None
        claimed = Footing(own=self._footing.own.but_tried(resume.writer_id))
        self._footing = self._footing.but_read(start, loading) if is_read else claimed
        self.restores, self.is_ahead = self.restores + 1, False
        if start.restored is not None:
            self.live.unfinished.clear()
            self.live.built.clear()
            self._missing = loading.missing
            self.rereading.loading = None if self.read_only else loading
            again = partial_of(self.restore, None, partial=partial, rename=rename, claims=True)
            self._repeat = again if step is None else None
        incarnation = self._begin(start) if start.held is not None else None
        if start.restored is None:
            return None
        is_look = step is not None and not claims
        self._hooks.tell(loading.event(start.restored, restore_s=watch.elapsed_s(), is_only_read=is_look))
        if incarnation is not None and start.save_again:
            folder = start.restored.folder
            incarnation.save_again(lambda: carried_in(self.rereading.open(folder), loading), loading.manifest)
        return start.restored.checkpoint

    def _resume(self, loading: Loading) -> Resume:
        """A restore that checks manifests against the state and loads into it."""
        return Resume(
            self.store,
            self.cluster,
            self.summaries,
            divide=loading.divide if loading.is_divided else None,
            share=loading.share,
            check=loading.check,
            load=loading.load,
            complete=loading.complete,
            verify=loading.find_damage,
            read_only=self.read_only,
            own=self._footing.own,
            claim_timeout_s=self._claim_timeout_s,
            tell=self._hooks.tell,
        )

    def _begin(self, start: Start) -> Incarnation:
        """From here on this process is the incarnation that `start` claimed."""
        agree(self.cluster, Call.PREPARE, self.live.prepare)
        incarnation = begin(
            start,
            store=self.store,
            cluster=self.cluster,
            live=self.live,
            summaries=self.summaries,
            policies=self.policies,
            background=self._background,
            pool=self._pool,
            shard_bytes=self._shard_bytes,
            streams=self._writing,
            commit_timeout_s=self._commit_timeout_s,
            reuses=self._reuse_unchanged,
            verify_replicas=self._verify_replicas,
            check_finite=self._check_finite,
            tell=self._hooks.tell,
        )
        self._footing = self._footing.begun(incarnation)
        return incarnation

    def _let_go(self) -> None:
        """Nothing of what was saved is kept."""
        if self._footing.incarnation is not None:
            self._footing.incarnation.let_go()

    def _leave_by(self, error: BaseException) -> None:
        """Gives everything back; of a save that failed it is the last chance to speak, unless `error` does."""
        self._release()
        self._background.raise_on_leaving(error)

    def _release(self) -> None:
        call_each(
            self._background.stop, self._let_go, self._pool.close, self.store.close, self._hooks.close, self.calls.close
        )
