"""`PreemptionWatcher`: all workers leave together, at one step, saved and committed, when any of them is told to."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, SupportsFloat, SupportsIndex

import msgspec

from ckptflow.errors import PeerError, SaveFailedError, UsageError
from ckptflow.format.values import to_json
from ckptflow.format.words import NAMED, some_of
from ckptflow.job.arguments import check_metrics, check_step
from ckptflow.peers.team import Call, called
from ckptflow.preemption.notices import Notice, Notices, name_of
from ckptflow.preemption.pace import Pace
from ckptflow.storage.credentials import for_log
from ckptflow.threads import as_timeout

if TYPE_CHECKING:
    from ckptflow.manager import CheckpointManager

logger = logging.getLogger("ckptflow")

EX_TEMPFAIL = 75  # of sysexits.h: "temporary failure, the user is invited to retry"


class _Told(msgspec.Struct, frozen=True):
    """What a worker tells at a check: who told it to leave (0: nobody), how long ago, and how fast its checks come."""

    by: int
    ago_ms: int
    news: tuple[int, int]


class PreemptionWatcher:
    """When any worker is preempted, all workers save one step, wait until it is committed, and exit with the same code.

    A signal preempts a worker, or `notice` returning true. `check` then raises `SystemExit(exit_code)` on every worker,
    at the same check, once the step given to it is committed; without a save where the model is not built yet and there
    is nothing else to save, as before the first batch. So a process that ends with `exit_code` has lost nothing.
    If that step cannot be saved, `check` raises why, and the exit code is not `exit_code`: a supervisor may still
    restart the job, and it resumes from the checkpoint before.

    Signals are heard from construction on, also while TensorFlow runs a step, traces or restores, and until `close` or
    the end of the block, which put back the handlers that were there. A signal that comes again a second or more after
    the first ends the process at once with 128 + its number, even while the main thread hangs; no save is waited for.
    Once the last step is committed, signals are ignored, so that a late one does not change the exit code.

    Args:
        manager: saves the last step. Make the watcher after it, on the main thread, on every worker.
        signals: those that preempt this worker. SIGINT is not among them unless you say so.
        notice: a function of no arguments, asked about once a second in a background thread: true preempts this
            worker. What it raises is logged once. See `ckptflow.preemption.gce_notice`.
        grace_period_s: how long this process will be left alive from the notice on; only logged.
        exit_code: 75 is sysexits.h's EX_TEMPFAIL: "saved; start me again".

    Raises:
        UsageError, ValueError: not on the main thread, a signal that cannot be caught, a reader's manager.
    """

    def __init__(
        self,
        manager: CheckpointManager,
        *,
        signals: Iterable[int] = (signal.SIGTERM,),
        notice: Callable[[], object] | None = None,
        grace_period_s: float = 30.0,
        exit_code: int = EX_TEMPFAIL,
    ) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise UsageError("a PreemptionWatcher is made on the main thread: signals can be caught only there")
        manager.session.calls.check(writes=True)
        if notice is not None and not callable(notice):
            raise ValueError(f"notice is a function that returns true or false, not {notice!r}")
        if not grace_period_s > 0:
            raise ValueError(f"grace_period_s is above 0, not {grace_period_s}")
        if not 0 <= exit_code <= 255:
            raise ValueError(f"exit_code is between 0 and 255, not {exit_code}")
        self._manager = manager
        self._session = manager.session
        self._cluster = manager.session.cluster
        self._grace_period_s = grace_period_s
        self._exit_code = exit_code
        self._pace = Pace()
        self._clock: threading.Timer | None = None
        self._notices = Notices(_check_signals(signals), notice, self._on_told)

    def __repr__(self) -> str:
        told = "told to leave" if self.is_preempted else "not told to leave"
        return f"<PreemptionWatcher of {self._manager!r}: {told}>"

    @property
    def is_preempted(self) -> bool:
        """Whether this worker was preempted. Others may have been; only `check` finds out."""
        return self._notices.told is not None

    def check(
        self, step: SupportsIndex, metrics: Mapping[str, SupportsFloat] | None = None, metadata: Any = None
    ) -> None:
        """Returns at once, or saves `step` and leaves. Called between steps on every worker, equally often.

        Call it after each training step, with the steps done so far, and, so that nothing takes longer than the grace
        period, after each batch of an evaluation, with the same step again. About once a second, at the same check on
        every worker, they exchange a message. A step that this incarnation has saved or restored is not saved again,
        unless a `fit` has trained since, in which not every batch is a step; `metrics` and `metadata` go to `save`,
        but for metrics that are not finite.

        Raises:
            SystemExit: some worker was preempted, and `step` is committed.
            UsageError: workers differ in `step`, or in what they call.
            ValueError, UnsupportedStateError: for a bad step, metric or metadata, also when nobody was preempted.
            SaveFailedError, FencedError, PeerError, StorageError: some worker was preempted, and `step` could not be
                saved. A next `check` tries again.
        """
        number = check_step(step)
        is_due = self._pace.is_due(number, time.monotonic())
        if not is_due and (self._cluster.world_size > 1 or not self.is_preempted):
            return

        def tell() -> tuple[dict[str, float], _Told]:
            self._session.calls.check(writes=True)
            finite = _finite(metrics)
            to_json(metadata, "metadata")  # a mistake shows at the first check, not with the last step
            told = self._notices.told
            by, ago_ms = (told.by, int((time.monotonic() - told.at_s) * 1000)) if told else (0, 0)
            return finite, _Told(by, ago_ms, self._pace.news())

        finite, all_told = self._session.agree_on(called(Call.CHECK_NOTICES, step=number), tell)
        self._pace.looked([each.news for each in all_told], time.monotonic())
        told = {worker: (each.by, each.ago_ms / 1000) for worker, each in enumerate(all_told) if each.by}
        if told:
            self._leave(number, finite, metadata, told)

    def close(self) -> None:
        """Puts back the handlers that were there. Closing twice does nothing."""
        self._notices.close()
        self._stop_clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leaving well first waits, like the manager, for the save under way: no signal may cut it short."""
        try:
            if kind is None and not self._session.calls.is_closed:
                self._manager.wait()
        finally:
            self.close()
        if kind is None and self.is_preempted:
            logger.warning("worker %d was told to leave when the training was over", self._cluster.worker)

    # Inside

    def _leave(self, step: int, metrics: dict[str, float], metadata: Any, told: dict[int, tuple[int, float]]) -> None:
        """The end of this process's work: `step` committed, and `SystemExit`; or why not."""
        agreed_s = time.monotonic()
        left_s = self._grace_period_s - max(ago_s for _, ago_s in told.values())
        tellings = (f"worker {worker} by {name_of(by)} {ago_s:.1f} s ago" for worker, (by, ago_s) in told.items())
        who = some_of([*tellings], NAMED)
        logger.warning(
            "told to leave: %s; all workers save step %d now, with %.1f of %g s of the grace period left",
            who,
            step,
            left_s,
            self._grace_period_s,
        )
        if self._clock is None:
            self._start_clock(left_s)
        try:
            outcome = self._save(step, metrics, metadata)
        except BaseException as error:
            logger.error("told to leave: step %d could not be saved: %s", step, repr(for_log(error)))
            raise
        finally:
            self._stop_clock()
        self._notices.ignore()  # this process takes seconds to end; one that comes late must not change how
        took_s = time.monotonic() - agreed_s
        logger.warning(
            "told to leave: %s; step %d %s after %.1f s, with %.1f of %g s of the grace period left; "
            "leaving with exit code %d",
            who,
            step,
            outcome,
            took_s,
            left_s - took_s,
            self._grace_period_s,
            self._exit_code,
        )
        raise SystemExit(self._exit_code)

    def _save(self, step: int, metrics: dict[str, float], metadata: Any) -> str:
        """Returns once `step` is committed, or holds nothing yet; which of these, in words. All workers go the same
        way."""
        manager, session = self._manager, self._session
        try:
            manager.wait()
        except (SaveFailedError, PeerError) as error:  # with a dead peer, what follows raises the like
            logger.warning("told to leave: a save before this one failed, trying once more: %s", str(error))

        def what_is_there() -> str:  # a worker's own part says nothing: the chief commits
            if session.last_step == step and not session.is_ahead and session.has_saved_all:
                return "had been saved and committed"
            reason = session.live.why_empty()
            return f"has nothing to save yet ({reason})" if reason else ""

        found = session.chief_says(Call.LEAVE, what_is_there, str)
        if found:
            return found
        manager.save(step, metrics=metrics, metadata=metadata)
        manager.wait()
        return "was saved and committed"

    def _on_told(self, notice: Notice) -> None:
        """In a thread of its own, so this worker's log has it before the step that is running has ended."""
        logger.warning(
            "worker %d was told to leave by %s; the workers agree at a check soon, and %g s are left",
            self._cluster.worker,
            name_of(notice.by),
            self._grace_period_s,
        )
        if self._clock is None:
            self._start_clock(self._grace_period_s)

    def _start_clock(self, left_s: float) -> None:
        limit_s = as_timeout(max(0.0, left_s))
        if limit_s is None:
            return
        self._clock = threading.Timer(limit_s, self._say_it_is_over)
        self._clock.daemon = True
        self._clock.start()

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()

    def _say_it_is_over(self) -> None:
        logger.error(
            "the grace period of %g s is over and the last step is not committed; if this process is killed now, the "
            "job resumes from the newest checkpoint that is",
            self._grace_period_s,
        )


def _finite(metrics: Mapping[str, SupportsFloat] | None) -> dict[str, float]:
    """Without infinities and NaN, which `save` refuses: a loss that is NaN must not cost the last step."""

    def is_finite(value: SupportsFloat) -> bool:
        try:
            return math.isfinite(float(value))
        except (TypeError, ValueError, OverflowError):
            return True  # no number: `check_metrics` says so

    return check_metrics({name: value for name, value in (metrics or {}).items() if is_finite(value)})


def _check_signals(signals: Iterable[int]) -> list[signal.Signals]:
    checked = []
    for number in signals:
        try:
            checked.append(signal.Signals(number))
        except ValueError:
            raise ValueError(f"signals: {number!r} is not a signal of this system") from None
    if uncatchable := {signal.SIGKILL, signal.SIGSTOP} & set(checked):
        raise ValueError(f"signals: {', '.join(s.name for s in uncatchable)} cannot be caught")
    return checked
