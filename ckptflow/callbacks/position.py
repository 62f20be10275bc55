"""How far a manager's fits are: what of it goes into each checkpoint, and how it comes back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import msgspec
import numpy as np
import tensorflow as tf

from ckptflow.callbacks.loops import Counters, FitStart, Loop
from ckptflow.callbacks.others import Others
from ckptflow.errors import CheckpointGoneError, CorruptCheckpointError, ObjectNotFoundError, UsageError
from ckptflow.format.layout import Folder
from ckptflow.job.session import Session
from ckptflow.peers.team import Call
from ckptflow.state.private.tensorflow import Trackable

logger = logging.getLogger("ckptflow")

NAME = "ckptflow.fit"


@dataclass(frozen=True)
class Position:
    """How far fits are: the first is number 1; `epoch` as Keras counts; `batch` of it are done.

    `is_stopping`: `model.stop_training` was true after that batch. `stopped_at`: the fit was ended by it, or by its
    input, when it was to go on to that epoch. `over`: it has ended, and whatever callbacks do to the model at a fit's
    end is done.
    """

    fit: int
    epoch: int
    batch: int = 0
    is_stopping: bool = False
    stopped_at: int | None = None
    over: bool = False


class FitState(Trackable):  # type: ignore[misc]
    """One for each manager, and from its first fit on part of what the manager saves, under a reserved name.

    A restore passes over it, so that a checkpoint is the same to a manager that runs no fit; `load` reads it.
    """

    def __init__(self) -> None:
        self.fits = 0  # begun by this process, or before what it restored
        self.position: Position | None = None
        self.has_passed_over = False  # a fit that was complete, since the position was loaded
        self._under_way = 0  # the fit that has begun and not ended; 0: none
        self._restored: Folder | None = None
        self._loaded_at = 0  # the session's count of restores when the position was loaded; 0: it was not
        self._retried_at = 0  # that count when it was to be loaded for a fit that begins once more
        self._loop: Loop | None = None
        self._others: Others | None = None
        self._counters: Counters | None = None
        self._trained: Any = None
        self._loaded: dict[str, Any] = {}

    @staticmethod
    def of(session: Session) -> FitState:
        """The session's; made and attached where it has none yet."""
        found = session.live.attached.get(NAME)
        if not isinstance(found, FitState):
            found = FitState()
            session.live.attach(NAME, found)
        return found

    @property
    def now(self) -> Position:
        """The position, where there is one."""
        if self.position is None:
            raise UsageError("no fit of this manager has begun")
        return self.position

    @property
    def is_of_this_fit(self) -> bool:
        """Whether the position is one in the newest fit, not in another."""
        return self.position is not None and self.position.fit == self.fits

    def is_interrupted(self, session: Session) -> bool:
        """Whether the newest fit ended by an exception, and nothing was restored since: the model may be a step ahead
        of the position.
        """
        return self._under_way > 0 and session.restores == self._loaded_at

    # What goes into a checkpoint, taken between two steps

    def follow(self, loop: Loop | None, others: Others | None) -> None:
        """From here on this fit is what is saved; None: it is over, and only its position is."""
        self._loop, self._others, self._counters = loop, others, None
        if loop is not None:
            self._under_way, self._trained = self.fits, loop.trained()

    def end(self) -> None:
        """The newest fit has ended well: what comes next is another one."""
        self._under_way = 0

    def move(self, position: Position) -> None:
        """The fit is at `position` now."""
        self.position = position
        if self._loop is not None:
            self._counters = self._loop.counters(between_epochs=position.batch == 0)
            self._trained = self._loop.trained()

    def _as_the_model_is(self) -> tuple[Position | None, Counters | None]:
        """The position and the counters to save: a batch may have changed the model and not come to its end, where an
        exception was first, or where another callback saves.
        """
        loop, position = self._loop, self.position
        ahead = int(loop.trained()) - int(self._trained) if loop is not None else 0
        if loop is None or position is None or not ahead:
            return position, self._counters
        if ahead != (loop.execution if loop.size is None else min(loop.execution, loop.size - position.batch)):
            logger.warning(
                "the model was trained since the last batch of fit ended, and not by one batch: a fit that goes on "
                "from this checkpoint begins after batch %d of epoch %d, and trains on what came then once more",
                position.batch,
                position.epoch + 1,
            )
            return position, self._counters
        return replace(position, batch=position.batch + ahead), loop.counters(between_epochs=False, ahead=ahead)

    def get_state(self) -> Any:
        position, counters = self._as_the_model_is()
        return {
            "position": None if position is None else asdict(position),
            "counters": None if counters is None else dict(counters),
            "callbacks": self._others.states() if self._others is not None else {},
        }

    def set_state(self, state: Any) -> None:
        """Never called: a restore passes over reserved names."""

    def _serialize_to_tensors(self) -> dict[str, Any]:
        nothing = tf.zeros([0], tf.uint8)
        found = nothing
        position, counters = self._as_the_model_is()
        if self._loop is not None and counters is not None and position is not None:
            found = self._loop.position(counters, position.batch)
        return {"input": found, "callbacks": self._others.pack() if self._others is not None else nothing}

    def _restore_from_tensors(self, restored_tensors: Any) -> None:
        """Never called, as above."""

    # What comes back

    def load(self, session: Session, *, is_retry: bool = False) -> bool:
        """Reads the position out of the checkpoint that was restored, once. Called by all workers.

        Returns whether there is one that no fit has begun with.

        `is_retry`: it was restored for a fit that begins at once, not by the user.
        """
        start = session.start
        if start is None or session.restores == self._loaded_at:
            return False
        if is_retry:
            self._retried_at = session.restores
        restored, found = start.restored, dict[str, Any]()
        if restored is not None:
            found, told = session.agree_on(Call.READ_POSITION, lambda: _read(session, restored.folder))
            damage = next((each.damage for each in told if each.damage), "")
            if damage and session.restore_with_attached():
                return self.load(session, is_retry=is_retry)
            if damage:
                raise CorruptCheckpointError(damage)
            if not all(each.is_there for each in told):  # pruned: who begin at different places never meet again
                found = {}
        position = found.get("position")
        self.position = Position(**position) if position else None
        self.fits = self._fits_before(is_retry=session.restores == self._retried_at, is_empty=restored is None)
        self._loaded, self._restored = found, restored.folder if restored is not None else None
        self._loaded_at, self.has_passed_over = session.restores, False
        self.follow(None, None)
        self.end()
        if restored is not None and self.position is None:
            logger.warning(
                "the checkpoint of step %d was not made inside of a fit: this fit begins at its first batch",
                restored.folder.step,
            )
        return restored is not None

    def _fits_before(self, *, is_retry: bool, is_empty: bool) -> int:
        """How many fits come before the next one, now that `position` was restored."""
        position = self.position
        if self._under_way and (is_retry or position is None or position.over):
            return self._under_way - 1  # the next one is the interrupted one again, wherever it begins
        if not self._loaded_at:  # the first restore, or one whose fit could not begin
            return self.fits
        if position is not None:  # a restore between two fits: the next one is the one that it was made in
            return position.fit - 1
        return 0 if is_empty else self.fits

    def origin(self, session: Session) -> str:
        """What the position was loaded from, for the log."""
        return (
            f"step {self._restored.step}, {session.store.url}/{self._restored}" if self._restored else "no checkpoint"
        )

    def forget_fit(self) -> None:
        """The newest fit could not begin: the next one takes its place, and loads what it would have gone on with."""
        self.fits -= 1
        self._loaded_at = 0

    def restored_metrics(self, session: Session) -> dict[str, float]:
        """Of the checkpoint that this process began from: a fit that trains nothing has none of its own."""
        restored = session.start.restored if session.start is not None else None
        return dict(restored.checkpoint.metrics) if restored is not None else {}

    def take_start(self, others: Others) -> FitStart:
        """Where the fit of `position` goes on; its callbacks get back what they knew. What was loaded serves once."""
        loaded, self._loaded = self._loaded, {}
        others.restore(loaded.get("callbacks", {}), loaded.get("packed", np.zeros(0, np.uint8)))
        now = self.now
        return FitStart(now.epoch, now.batch, loaded.get("counters"), loaded.get("input"), now.is_stopping)

    def restore_metrics(self, session: Session, build: Callable[[], None]) -> None:
        """Metrics' variables, which `build` makes, as in the checkpoint of `position`: Keras has reset them since.

        Called by all workers. Where one of them cannot build them, all leave them as they are, with a warning.
        """
        folder = self._restored

        def try_to_build() -> bool:
            try:
                build()
            except Exception as error:
                logger.warning(
                    "this epoch's metrics count from the resumed batch on, they cannot be built: %s", str(error)
                )
                return False
            return True

        def read() -> bool:
            if folder is not None:
                session.rereading.restore_metrics(folder)
            return True

        if all(session.agree(Call.BUILD_METRICS, try_to_build)):
            session.agree(Call.READ_METRICS, read)


class _PositionRead(msgspec.Struct, frozen=True):
    """How a worker's reading of the position went."""

    is_there: bool = False
    damage: str = ""


def _read(session: Session, folder: Folder) -> tuple[dict[str, Any], _PositionRead]:
    """What was saved by `FitState`, or nothing."""
    try:
        found = session.rereading.read_attached(NAME, folder)
    except (ObjectNotFoundError, CheckpointGoneError):
        logger.warning("%s was pruned before the fit that it belongs to began again", folder)
        return {}, _PositionRead()
    except CorruptCheckpointError as error:
        return {}, _PositionRead(damage=str(error))
    if found is None:
        return {}, _PositionRead()
    state, arrays = found
    return {**state, "input": arrays["input"], "packed": arrays["callbacks"]}, _PositionRead(is_there=True)
