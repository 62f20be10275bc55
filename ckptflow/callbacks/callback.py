"""`CheckpointCallback`: a manager at work inside of `fit`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Protocol, SupportsIndex

from ckptflow.callbacks.cadence import choose
from ckptflow.callbacks.checks import check_manager, check_model, check_others, check_state
from ckptflow.callbacks.loops import FitStart, Loop, find_callback_list, find_loop
from ckptflow.callbacks.others import Others, averages_weights, finite_metrics, learning_rate
from ckptflow.callbacks.own_manager import OwnManager, root_of
from ckptflow.callbacks.position import FitState, Position
from ckptflow.commit.retention import KeepBest, Policy
from ckptflow.errors import UsageError
from ckptflow.job.session import Session
from ckptflow.manager import CheckpointManager
from ckptflow.peers.team import Call
from ckptflow.state.private.keras import run_hooks_in_time

logger = logging.getLogger("ckptflow")

_Logs = Mapping[str, Any] | None

_NO_FIT = "CheckpointCallback: no fit has begun; its methods are called by fit"
_NO_METRIC = "Correct the name; a metric of validation needs validation_data= in fit, and validation_freq=1"
_NO_METRIC_YET = "Correct the name; metrics of validation are known at the end of an epoch: give every_epochs as well"
_MANY_BATCHES = 100  # more than mixed precision skips at its start, or gradients are accumulated over


class Watcher(Protocol):
    """What `PreemptionWatcher` is to the callback."""

    def check(self, step: int, metrics: Mapping[str, float] | None = None) -> Any: ...


class CheckpointCallback:
    """Saves while `fit` runs, and makes a `fit` that is started again go on at the very batch.

    For `fit` of Keras 3 (no strategy, `MirroredStrategy`) and of tf_keras (these, and `MultiWorkerMirroredStrategy`,
    where each worker has one). `step` is the number of updates of the model's optimizer.

    At the start of `fit`, unless the manager has restored already, it calls `manager.restore_latest()`. Then `fit` goes
    on in the epoch and at the batch where the checkpoint was made: no batch is trained twice, none is left out, and
    EarlyStopping, ReduceLROnPlateau, the history, metrics of the epoch and callbacks with `get_state` and `set_state`
    are as they were. Re-running a finished `fit` does nothing. Before `fit` ends, the last step is saved, and a save
    that failed raises out of `fit`.

    It runs after all other callbacks, wherever it stands in the list.

    With a URL it makes its manager when the first `fit` begins, on `{"model": model}` and under the model's strategy,
    and keeps it: a second `fit` of the same model goes on with it, as with a manager of your own. It is closed by
    `close`, which raises what failed since the last `fit`, or by the end of the process, which waits for the saves
    under way. After an exception out of `fit`, another `fit` restores the newest checkpoint and goes on from there.

    Args:
        manager: a `CheckpointManager` with the model in its state; or a URL, as a manager takes it.
        every_steps: saves at the first batch end at or after each multiple of so many steps.
        every_epochs: saves at the end of each so-many-th epoch, validation included.
        every_seconds: saves when so much time has passed since the last save, by the first worker's clock. At least one
            of the three is given, and any two or all can be: with `every_steps=500, every_epochs=1` little is lost in a
            crash, and a checkpoint of each epoch has the metrics of validation, for `KeepBest`.
        watcher: a `PreemptionWatcher`, which is asked after each batch, of validation, too, and each epoch. Not with a
            URL: it needs a manager of your own, like any argument of the manager that is not among these.
        keep: with a URL, what `CheckpointManager` takes; default: the newest 5.
        storage_options: with a URL, what `CheckpointManager` takes.

    Raises:
        ValueError: none of the `every_…` was given, or one is not above 0; or `watcher` was given with a URL,
            `keep` or `storage_options` with a manager.
        UsageError: the manager was opened with `read_only=True`, or `fit` cannot run under its strategy. Out of `fit`:
            with a URL, another model than that of the first `fit`, or one that was fitted with another callback of
            this URL; or this process has fitted another model to this root, and has not closed that callback.
    """

    _supports_tf_logs = True  # tf_keras: numbers are taken from logs only when they are needed

    def __init__(
        self,
        manager: CheckpointManager | str | os.PathLike[str],
        *,
        every_steps: SupportsIndex | None = None,
        every_epochs: SupportsIndex | None = None,
        every_seconds: float | None = None,
        watcher: Watcher | None = None,
        keep: Sequence[Policy] | Policy | int | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        self._cadence = choose(every_steps, every_epochs, every_seconds, self._chief_reads_clock)
        every = {"every_steps": every_steps, "every_epochs": every_epochs, "every_seconds": every_seconds}
        self._saves_epochs = every_epochs is not None
        self._every = ", ".join(f"{name}={period}" for name, period in every.items() if period is not None)
        self._watcher = watcher
        self._of: CheckpointManager | OwnManager
        if isinstance(manager, CheckpointManager):
            if keep is not None or storage_options is not None:
                raise ValueError("keep and storage_options are for a callback with a URL: give them to the manager")
            check_manager(manager.session)
            self._of = manager
        else:
            if watcher is not None:
                raise ValueError("a watcher saves with its manager: make the callback with that manager, not a URL")
            self._of = OwnManager(manager, keep, storage_options)
        self.model: Any = None
        self.params: dict[str, Any] = {}
        self._loop: Loop | None = None  # of the fit that is running
        self._others = Others(())
        self._state: FitState | None = None
        self._saved: tuple[int, Position | None] = (-1, None)
        self._first_step = 0
        self._trained = 0  # batches, since then
        self._warned: set[str] = set()
        self._rate: tuple[Any, Any] | None = None  # the learning rate to put back where an epoch goes on

    def __repr__(self) -> str:
        return f"CheckpointCallback({self._of!r}, {self._every})"

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        raise UsageError(
            "a CheckpointCallback cannot be copied, as hyperparameter searches do: two models would be saved to one "
            "root, and each would go on from the other. Make one for each model, each with a root of its own"
        )

    @property
    def manager(self) -> CheckpointManager | None:
        """The manager that it saves with; with a URL None before the first `fit` has begun."""
        return self._of.manager if isinstance(self._of, OwnManager) else self._of

    def close(self) -> None:
        """Closes the manager that it has made of a URL, and raises what failed since the last `fit` ended; such a
        callback serves no further `fit`. A manager of your own stays open. Closing twice does nothing."""
        if isinstance(self._of, OwnManager):
            self._of.close()

    # What Keras asks

    def set_params(self, params: dict[str, Any]) -> None:
        self.params = params

    def set_model(self, model: Any) -> None:
        self.model = model
        found = find_callback_list(self)
        if found is not None:  # a new list: Keras is walking the old one
            found.callbacks = [*(item for item in found.callbacks if item is not self), self]
            run_hooks_in_time(found)

    def _implements_train_batch_hooks(self) -> bool:
        return True

    def _implements_test_batch_hooks(self) -> bool:
        return self._watcher is not None

    def _implements_predict_batch_hooks(self) -> bool:
        return False

    def on_train_begin(self, logs: _Logs = None) -> None:
        loop = find_loop(self, self._is_rival)
        check_others([item for item in loop.callbacks.callbacks if item is not self], CheckpointCallback)
        check_model(self.model)
        with self._of.begin(self.model) if isinstance(self._of, OwnManager) else nullcontext():
            self._begin(loop)

    def _begin(self, loop: Loop) -> None:
        check_state(self.model, self._session)
        self._state = state = FitState.of(self._session)
        self._session.live.release_metrics()  # of a validation that an exception has ended
        is_retry = self._session.restore_for_fit(is_interrupted=state.is_interrupted(self._session))
        self._loop = loop
        self._others = Others(item for item in loop.callbacks.callbacks if item is not self)
        if state.load(self._session, is_retry=is_retry):
            self._others.were_restored()
        state.fits += 1
        # Together: callbacks of one's own are given back what they knew, and may raise.
        try:
            start, _ = self._session.agree_on(Call.BEGIN_FIT, lambda: (self._find_start(state, loop), True))
            if state.is_of_this_fit and state.has_passed_over:
                self._session.restore_again()
                state.has_passed_over = False
            if not self._have_averages_come():
                self._others.take_no_swap()
            self._others.swap_back_lost(self.model)
        except BaseException:
            state.forget_fit()
            raise
        rate = learning_rate(self.model.optimizer) if start.batch else None
        self._rate = None if rate is None else (rate, rate.numpy())
        self._first_step, self._trained = self._step(), 0
        state.follow(loop, self._others)
        is_resumed = state.is_of_this_fit
        if not is_resumed and start.epoch < loop.epochs:
            self._check_step()
            state.move(Position(state.fits, start.epoch))
        self._saved = (self._first_step, state.position) if is_resumed else (-1, None)
        self._cadence.begin(self._first_step, start.epoch)
        loop.start_at(start, self._bring_metrics_back)

    def on_train_batch_begin(self, batch: int, logs: _Logs = None) -> None:
        loop, _ = self._running()
        if loop.is_echo:
            loop.begin_echo()
        else:
            self._others.swap_back()

    def on_train_batch_end(self, batch: int, logs: _Logs = None) -> None:
        loop, state = self._running()
        if loop.is_echo:
            loop.end_echo()
            self.model.stop_training |= state.now.is_stopping
            state.move(state.now)
            return
        state.move(replace(state.now, batch=loop.advance(batch), is_stopping=bool(self.model.stop_training)))
        self._session.is_ahead = True
        self._trained += loop.execution
        if self._cadence.after_batches(loop.execution, self._step):
            self._save(finite_metrics(logs))
        if self._watcher is not None:
            self._watcher.check(self._step(), finite_metrics(logs))

    def on_epoch_end(self, epoch: int, logs: _Logs = None) -> None:
        loop, state = self._running()
        self._others.swap_back()
        loop.end_epoch(state.now.batch)
        is_stopped = self.model.stop_training or loop.has_run_out
        state.move(Position(state.fits, epoch + 1, stopped_at=loop.epochs if is_stopped else None))
        if self._trained >= _MANY_BATCHES and self._step() == self._first_step:
            self._warn_once(
                "no step was counted in %d batches: model.optimizer.iterations is still %d. Where train_step uses "
                "other optimizers, set model.optimizer to one of them",
                self._trained,
                self._first_step,
            )
        metrics = finite_metrics(logs)
        if self._cadence.after_epoch(epoch + 1):
            self._save(metrics, has_all=True)
        if self._watcher is not None:
            self._watcher.check(self._step(), metrics)

    def on_test_begin(self, logs: _Logs = None) -> None:
        if self._loop is not None and self._watcher is not None:
            self._session.live.hold_metrics()  # those of training: validation is about to reset them

    def on_test_batch_end(self, batch: int, logs: _Logs = None) -> None:
        if self._loop is not None and self._watcher is not None:
            self._watcher.check(self._step())

    def on_test_end(self, logs: _Logs = None) -> None:
        if self.manager is not None:
            self._session.live.release_metrics()

    def on_train_end(self, logs: _Logs = None) -> None:
        loop, state = self._running()
        try:
            if state.is_of_this_fit:
                self._end_fit(state, logs)
            self._manager.wait()
            state.end()
            if isinstance(self._of, OwnManager):
                self._of.end()
        finally:
            loop.close()
            self._loop = None
            state.follow(None, None)

    def on_epoch_begin(self, epoch: int, logs: _Logs = None) -> None:
        if self._rate is not None:  # this epoch began before: a scheduler must not change the rate once more
            variable, value = self._rate
            self._rate = None
            variable.assign(value)

    def on_batch_begin(self, batch: int, logs: _Logs = None) -> None: ...
    def on_batch_end(self, batch: int, logs: _Logs = None) -> None: ...
    def on_test_batch_begin(self, batch: int, logs: _Logs = None) -> None: ...
    def on_predict_begin(self, logs: _Logs = None) -> None: ...
    def on_predict_end(self, logs: _Logs = None) -> None: ...
    def on_predict_batch_begin(self, batch: int, logs: _Logs = None) -> None: ...
    def on_predict_batch_end(self, batch: int, logs: _Logs = None) -> None: ...

    # Where to begin

    def _have_averages_come(self) -> bool:
        """Whether all that `SwapEMAWeights` would put in the model's place is what was restored."""
        model = self.model
        if not (averages_weights(model.optimizer) and model.built):
            return False
        return self._session.has_restored([*model.trainable_variables, *model.optimizer.variables])

    def _find_start(self, state: FitState, loop: Loop) -> FitStart:
        """What was saved, if it was this fit that was under way, and if its `initial_epoch` is not later."""
        position, origin = state.position, state.origin(self._session)
        if position is None or position.fit < state.fits:
            return FitStart(loop.initial_epoch)
        if position.fit > state.fits:
            logger.info("fit %d was trained before (fit %d: %s); nothing to do", state.fits, position.fit, origin)
            state.has_passed_over = True
            return FitStart(loop.epochs)
        start = state.take_start(self._others)
        if position.stopped_at is not None and loop.epochs <= position.stopped_at:
            text = (
                "fit: a callback, or its input, had ended it after epoch %d (%s); nothing to do. Raise epochs= to go on"
            )
            logger.info(text, position.epoch, origin)
            return FitStart(loop.epochs)
        if start.epoch < loop.initial_epoch:
            state.position = Position(state.fits, loop.initial_epoch)
            start = FitStart(loop.initial_epoch)
        elif start.epoch < loop.epochs:
            state.position = replace(position, stopped_at=None, over=False)
        if start.epoch < loop.epochs:
            logger.info("fit resumes in epoch %d after batch %d (%s)", start.epoch + 1, start.batch, origin)
        else:
            text = "fit: no epoch is left to train of epochs=%d (%s); nothing to do. Raise epochs= to go on"
            logger.info(text, loop.epochs, origin)
        return start

    def _bring_metrics_back(self) -> None:
        """Metrics as they were inside the epoch that goes on; Keras has just reset them."""
        loop, state = self._running()
        state.restore_metrics(self._session, loop.build_metrics)

    def _is_rival(self, callback: Any) -> bool:
        if not isinstance(callback, CheckpointCallback):
            return False
        ours, theirs = (
            each.root if isinstance(each, OwnManager) else root_of(each.session.store)
            for each in (self._of, callback._of)
        )
        return ours == theirs

    # Saving

    def _save(self, metrics: dict[str, float], *, has_all: bool = False) -> None:
        """`has_all`: an epoch has ended, so that the metrics of validation are among `metrics`."""
        _, state = self._running()
        step = self._step()
        for policy in self._session.policies:
            if isinstance(policy, KeepBest) and policy.metric not in metrics and (has_all or not self._saves_epochs):
                self._warn_once(
                    "KeepBest(%r): the checkpoint of step %d has no such metric and is never a best one; it has %s. %s",
                    policy.metric,
                    step,
                    ", ".join(metrics) or "none",
                    _NO_METRIC if has_all else _NO_METRIC_YET,
                )
        self._manager.save(step, metrics=metrics)
        self._saved = (step, state.position)
        self._cadence.saved(step, state.now.epoch)

    def _end_fit(self, state: FitState, logs: _Logs) -> None:
        """Saves what this fit comes to; where it had ended before, takes back what its end has done once more."""
        was_over = state.now.over
        before = (self._step(), state.now)

        def changes() -> bool:
            may_change = self._others.change_weights_at_end()
            if was_over or may_change:
                return may_change
            return self._saved != before or averages_weights(self.model.optimizer)

        # Workers may have other callbacks each, and save together or not at all.
        changed = any(self._session.agree(Call.END_FIT, changes))
        if was_over:
            if changed:
                self._session.restore_again()
            return
        state.move(replace(state.now, over=True))
        if changed:
            self._save(finite_metrics(logs) if logs else state.restored_metrics(self._session), has_all=True)

    @property
    def _manager(self) -> CheckpointManager:
        if self.manager is None:
            raise UsageError(_NO_FIT)
        return self.manager

    @property
    def _session(self) -> Session:
        return self._manager.session

    def _chief_reads_clock(self, passed_ms: Callable[[], int]) -> int:
        return self._session.chief_says(Call.READ_CLOCK, passed_ms, int)

    def _step(self) -> int:
        return int(self.model.optimizer.iterations.numpy())

    def _running(self) -> tuple[Loop, FitState]:
        if self._loop is None or self._state is None:
            raise UsageError(_NO_FIT)
        return self._loop, self._state

    # What cannot be

    def _check_step(self) -> None:
        if self._first_step < self._session.last_step:
            raise UsageError(
                f"the optimizer of the model that is fitted is at step {self._first_step}, the manager at step "
                f"{self._session.last_step}, and steps must not decrease: models with a count of their own need a "
                "manager "
                "each, with a root each"
            )

    def _warn_once(self, message: str, *args: Any) -> None:
        if message not in self._warned:
            self._warned.add(message)
            logger.warning(message, *args)
