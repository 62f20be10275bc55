"""The saves under way and what they left behind, and the calls that learn of it: nothing that failed is ever lost."""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from contextvars import ContextVar, copy_context
from functools import partial
from types import TracebackType
from typing import TypeVar

from ckptflow.commit.catalog import Checkpoint
from ckptflow.errors import CkptflowError, FencedError, SaveFailedError, UsageError
from ckptflow.printable import said
from ckptflow.storage.credentials import for_log
from ckptflow.storage.faults import chain

logger = logging.getLogger("ckptflow")

SaveFuture = Future[Checkpoint | None]
Acknowledge = Callable[[Checkpoint | None], None]
_Result = TypeVar("_Result")


class Background:
    """Runs saves one after another in one thread; keeps the newest failure until it has been raised to the program."""

    def __init__(self, waiting: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """`waiting()` is open for as long as the calling thread waits for saves."""
        self.waiting = waiting
        self._thread = ThreadPoolExecutor(1, "ckptflow-save")
        self._begun = 0  # how many saves were handed over
        self._settled = 0  # how many of them have been waited for
        self.failure: Exception | None = None  # noted by the thread itself: no interrupt of the caller can lose it
        self.newest_error: Exception | None = None  # of the newest save that has ended; stays once raised

    def start(self) -> None:
        """Starts the thread, which otherwise the first save would: before other workers rely on that save.

        Raises `SaveFailedError` if it cannot be started, and `UsageError` while the interpreter is ending.
        """
        self._hand_over(_nothing)

    def submit(self, save: Callable[[Acknowledge], None]) -> SaveFuture:
        """Hands a save over. What is returned ends when the save acknowledges, or fails: pruning may still go on."""
        acknowledged: SaveFuture = Future()
        self._begun += 1  # before: an interrupt between the two must not leave a save that nobody waits for
        self._hand_over(partial(self._run, save, acknowledged))
        return acknowledged

    def _hand_over(self, do: Callable[[], None]) -> None:
        try:
            self._thread.submit(do)
        except RuntimeError as error:
            if "shutdown" in str(error):
                raise UsageError(
                    "nothing can be saved any more, since the interpreter is ending: save before the program's last "
                    "line, not in a function of atexit"
                ) from error
            raise SaveFailedError(
                f"nothing was saved: the thread that saves in the background cannot be started ({error}). Raise the "
                "limit of processes and threads (ulimit -u, pids.max of a container), or start fewer"
            ) from error

    def settle(self) -> None:
        """Waits until every save that was handed over has ended, also those that a signal's handler adds meanwhile."""
        while self._settled < self._begun:
            begun = self._begun
            # No more is taken, RuntimeError: the thread has ended, all saves with it.
            with self.waiting(), suppress(RuntimeError):
                self._thread.submit(_nothing).result()  # one thread, first come first served
            self._settled = begun

    def raise_failure(self, *, only_fenced: bool = False) -> None:
        """Raises what a save left behind. It stays until it has left a `delivery`; being fenced stays for ever."""
        if self.failure is not None and (isinstance(self.failure, FencedError) or not only_fenced):
            raise self.failure

    def raise_on_leaving(self, error: BaseException) -> None:
        """The last chance: `error` leaves the manager's block, and says by itself whether something went wrong."""
        failure = self.failure
        if failure is None or failure is error:
            return
        if _says_all_is_well(error):
            raise failure
        error.add_note(f"Beside this a save had failed: {type(failure).__name__}: {said(failure)}")

    def delivery(self) -> Delivery:
        """The outermost block of a public call: a failure that leaves it has reached the program, and is forgotten."""
        return Delivery(self)

    def _run(self, save: Callable[[Acknowledge], None], acknowledged: SaveFuture) -> None:
        try:
            save(acknowledged.set_result)
        except BaseException as caught:  # whatever ended it: a save that was not acknowledged has failed
            self._fail(caught, acknowledged)
        else:
            self.newest_error = None

    def _fail(self, caught: BaseException, acknowledged: SaveFuture) -> None:
        error: Exception = SaveFailedError("a save failed in the background, and why cannot be told")
        try:
            error = _as_failure(caught)
            for link in chain(caught):  # a kept error must not keep what was being sent
                traceback.clear_frames(link.__traceback__)
        finally:
            self._keep(error, acknowledged)

    def _keep(self, error: Exception, acknowledged: SaveFuture) -> None:
        self.newest_error = error
        if not isinstance(self.failure, FencedError):  # which no other failure hides
            self.failure = error
        if not acknowledged.done():  # else it failed in pruning: the save stands, and this is raised later
            acknowledged.set_exception(error)
        # At once: a program that never closes its manager would end without a word. And as text: a handler that keeps
        # its records would keep, by the traceback, what was captured.
        logger.error("%s", said(error))

    def stop(self) -> None:
        """Ends the thread, after the saves under way."""
        self._thread.shutdown(wait=True)


class Delivery:
    """See `Background.delivery`."""

    def __init__(self, background: Background) -> None:
        self._background = background

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Forgetting is the last thing that is done: an interrupt before it is raised instead, and the failure stays.
        if error is not None and error is self._background.failure and not isinstance(error, FencedError):
            self._background.failure = None


# The marks of those whose `alone` is on the stack. A flag could be left set by an interrupt; Python itself puts a
# context back. Not they themselves: a client's connection keeps the context in which it was made, for as long as it is.
_under_way: ContextVar[tuple[object, ...]] = ContextVar("ckptflow_under_way", default=())


class Calls:
    """The calls of one manager: from the thread and in the process that made it, one at a time, until it is closed."""

    def __init__(self, background: Background, *, read_only: bool) -> None:
        self.is_closed = False
        self._background = background
        self._read_only = read_only
        self._thread, self._process = threading.get_ident(), os.getpid()
        self._mark = object()

    @property
    def is_of_this_process(self) -> bool:
        return os.getpid() == self._process

    def make(self, do: Callable[[], _Result], *, writes: bool = False) -> _Result:
        """One whole call. What a signal's handler does while the saves under way are waited for is done before it."""
        self.check_turn(writes=writes)
        self._background.settle()
        self.check_turn(writes=writes)
        with self._background.delivery():
            return self.alone(do)

    def take_turn(self, do: Callable[[], _Result]) -> _Result:
        """What `do` returns: a call that takes other workers, and not the saves under way."""
        self._check_is_outside()
        return self.alone(do)

    def alone(self, do: Callable[[], _Result]) -> _Result:
        """What `do` returns: the part of a call that no other call may come between."""
        return copy_context().run(self._marked, do)

    def _marked(self, do: Callable[[], _Result]) -> _Result:
        _under_way.set((*_under_way.get(), self._mark))
        return do()

    def check_turn(self, *, writes: bool = False) -> None:
        """Raises `UsageError` also inside of another call: what is half captured or half restored must not be saved."""
        self.check(writes=writes)
        self._check_is_outside()

    def _check_is_outside(self) -> None:
        if self._is_inside():
            raise UsageError(
                "this call comes from inside of another one of this manager: from a signal's handler, or from code "
                "that the manager calls, as get_state. Set a flag there and call it later, as PreemptionWatcher does"
            )

    def close(self) -> None:
        """From here on `check` raises."""
        self.is_closed = True

    def _is_inside(self) -> bool:
        """Whether who calls is called by `alone`."""
        return self._mark in _under_way.get()

    def check(self, *, writes: bool = False) -> None:
        """Raises `UsageError` where the manager may not be used, or not so."""
        if not self.is_of_this_process:
            raise UsageError("this manager was made before a fork; make one in the new process")
        if self.is_closed:
            raise UsageError("this manager is closed; make a new one")
        if threading.get_ident() != self._thread:
            raise UsageError("a manager is used from the thread that made it: all workers make its calls in one order")
        if writes and self._read_only:
            raise UsageError("this manager was opened with read_only=True")


def call_each(first: Callable[[], object], *rest: Callable[[], object]) -> None:
    """Calls all of them, whatever one of them raises; unlike an `ExitStack` it leaves the contexts of errors alone."""
    try:
        first()
    finally:
        if rest:
            call_each(*rest)


def _as_failure(error: BaseException) -> Exception:
    """What the program gets: raised as it is, SystemExit would end the job with code 0 and without a word."""
    if isinstance(error, CkptflowError):
        return error
    shown = for_log(error)
    what = str(shown) if shown is not error else f"{type(error).__name__}: {said(error)}"
    failure = SaveFailedError(f"a save failed in the background: {what}")
    failure.__cause__ = shown
    return failure


def _says_all_is_well(error: BaseException) -> bool:
    """Whether a program that ends by it ends with exit code 0, or goes on without a word, as a generator does, and a
    loop whose input has come to its end. Any other tells by itself that something is wrong, and stays what it is: who
    handles it looks for its class."""
    if isinstance(error, SystemExit):
        return error.code is None or (isinstance(error.code, int) and error.code % 256 == 0)
    if not isinstance(error, Exception):
        return not isinstance(error, KeyboardInterrupt)
    # As the Exit of click and typer has it.
    return isinstance(error, _ENDS_OF_INPUT) or _is_out_of_range(error) or getattr(error, "exit_code", None) == 0


_ENDS_OF_INPUT = (StopIteration, StopAsyncIteration)


def _is_out_of_range(error: Exception) -> bool:
    """Whether it is that of TensorFlow, which is not imported to find that out."""
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(error, tensorflow.errors.OutOfRangeError)


def _nothing() -> None:
    pass
