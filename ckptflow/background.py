"""The one save under way, and what it left behind: nothing that failed in the background is ever lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from ckptflow.commit.catalog import Checkpoint
from ckptflow.errors import FencedError

logger = logging.getLogger("ckptflow")

SaveFuture = Future[Checkpoint | None]
Acknowledge = Callable[[Checkpoint | None], None]


class Background:
    """Runs saves one after another in one thread; remembers the newest failure until it is raised or forgotten."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "ckptflow-save")
        self._in_flight: Future[None] | None = None
        self.failure: Exception | None = None
        self.newest_error: BaseException | None = None  # of the newest save that was waited for; stays once raised

    def submit(self, save: Callable[[Acknowledge], None]) -> SaveFuture:
        """Hands a save over. What is returned ends when the save acknowledges, or fails: pruning may still go on."""
        acknowledged: SaveFuture = Future()
        self._in_flight = self._thread.submit(self._run, save, acknowledged)
        return acknowledged

    def settle(self) -> None:
        """Waits for the save under way and remembers how it failed; another failure never hides being fenced."""
        if self._in_flight is None:
            return
        error = self._in_flight.exception()
        self._in_flight = None
        self.newest_error = error
        if isinstance(error, Exception) and not isinstance(self.failure, FencedError):
            self.failure = error

    def raise_failure(self, *, only_fenced: bool = False) -> None:
        """Raises what a save left behind, once; being fenced is raised each time."""
        failure = self.failure
        if isinstance(failure, FencedError):
            raise failure
        if failure is not None and not only_fenced:
            self.failure = None
            raise failure

    def _run(self, save: Callable[[Acknowledge], None], acknowledged: SaveFuture) -> None:
        try:
            save(acknowledged.set_result)
        except BaseException as error:
            logger.error("%s", error)  # at once: a program that never closes its manager would end without a word
            if not acknowledged.done():  # else it failed in pruning: the save stands, `settle` reports it
                acknowledged.set_exception(error)
            raise

    def stop(self) -> None:
        """Ends the thread, after the save under way."""
        self._thread.shutdown(wait=True)
