"""Trying again what may succeed: one wrapper over the verbs of a store, with jittered exponential back-off."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

import tenacity

from ckptflow.errors import ObjectExistsError, StorageError, StorageUnavailableError
from ckptflow.events import Retried, Tell, tell_nobody
from ckptflow.printable import said
from ckptflow.stops import awake_s
from ckptflow.storage.faults import chain
from ckptflow.storage.store import Store
from ckptflow.storage.throttling import tell_of_refusal
from ckptflow.storage.wanted import check_wanted, is_wanted
from ckptflow.storage.wrappers import StoreWrapper

_log = logging.getLogger("ckptflow.storage")
_Result = TypeVar("_Result")
_LOOK_S = 0.1  # between two looks, in a pause, whether anybody still waits
_ENOUGH_COPYING = tenacity.stop_after_attempt(3) | tenacity.stop_before_delay(5.0)


# How often stores that are opened now try an address at which nobody has ever listened: a job's server may be starting,
# whoever waits for a command has most often mistyped it.
connect_tries: ContextVar[float] = ContextVar("connect_tries", default=math.inf)


class Retries:
    """Tries a call again while it raises `StorageUnavailableError`: `max_tries`, within `max_wait_s`.

    Time in which this process was stopped does not count.
    """

    def __init__(self, max_tries: int = 8, max_wait_s: float = 60.0, first_wait_s: float = 0.25) -> None:
        self._connect_tries = connect_tries.get()  # until there was an answer
        self._max_tries, self._max_wait_s = max_tries, max_wait_s
        self._wait = tenacity.wait_exponential(multiplier=first_wait_s, max=10.0) + tenacity.wait_random(
            0, first_wait_s
        )

        self._left_s = math.inf  # of waiting between tries
        self._waited_until = 0.0
        self._lock = threading.Lock()

    def hurry(self, timeout_s: float) -> None:
        """From any thread: from now on calls wait `timeout_s` between their tries, those at the same time together."""
        with self._lock:
            self._left_s, self._waited_until = timeout_s, time.monotonic()

    def _wait_for(self, wait_s: float) -> None:
        """Counts the time in which any call waits, once."""
        with self._lock:
            now_s = time.monotonic()
            self._left_s -= max(0.0, now_s + wait_s - max(now_s, self._waited_until))
            self._waited_until = max(self._waited_until, now_s + wait_s)

    def _is_over(self, state: tenacity.RetryCallState, took_s: float) -> bool:
        error = state.outcome.exception() if state.outcome else None
        is_nobody_there = isinstance(error, StorageUnavailableError) and error.is_unreachable
        tries, until_next_s = state.attempt_number, took_s + state.upcoming_sleep
        is_enough = tries >= self._max_tries or until_next_s >= self._max_wait_s
        return self._left_s <= 0 or is_enough or (is_nobody_there and tries >= self._connect_tries)

    def run(self, call: Callable[[], _Result], verb: str = "", key: str = "", tell: Tell = tell_nobody) -> _Result:
        """What `call` returns; all else that it raises is raised at once. `verb` and `key`: what it is, for events.

        Of a "create", what a later try is refused for says nothing of one before that was not answered, and may have
        been done: that stays a `StorageUnavailableError`. A "get" is not tried, nor tried again, once nobody wants what
        it brings (`while_wanted`); a pause ends then. A "copy" has few tries, and fails quietly: who asked for it
        writes the bytes then.
        """
        is_reading, is_copying = verb == "get", verb == "copy"

        def attempt() -> _Result:
            if is_reading:
                check_wanted()
            try:
                result = call()
            except Exception as error:
                if not getattr(error, "is_unreachable", False):
                    self._connect_tries = math.inf  # also a refusal is an answer: somebody listens
                raise
            self._connect_tries = math.inf
            return result

        def is_over(state: tenacity.RetryCallState) -> bool:
            ends_early = (is_reading and not is_wanted()) or (is_copying and _ENOUGH_COPYING(state))
            return ends_early or self._is_over(state, awake_s() - started)

        def say(state: tenacity.RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            wait_s = state.next_action.sleep if state.next_action else 0.0
            self._wait_for(wait_s)
            level = logging.DEBUG if is_copying else logging.WARNING
            _log.log(
                level, "try %d failed, again in %.1f s: %s", state.attempt_number, wait_s, said(error) if error else ""
            )
            asks_for_less = isinstance(error, StorageUnavailableError) and error.asks_for_less
            if asks_for_less:
                tell_of_refusal()
            tell(
                Retried(
                    verb=verb,
                    key=key,
                    tries=state.attempt_number,
                    wait_s=wait_s,
                    error=str(error),
                    asks_for_less=asks_for_less,
                )
            )

        def pause(wait_s: float) -> None:
            ends_s = time.monotonic() + wait_s
            while (left_s := ends_s - time.monotonic()) > 0 and (is_wanted() or not is_reading):
                time.sleep(min(left_s, _LOOK_S))

        started = awake_s()
        retrying = tenacity.Retrying(
            sleep=pause,
            retry=tenacity.retry_if_exception_type(StorageUnavailableError),
            stop=is_over,
            wait=self._wait,
            before_sleep=say,
            reraise=True,
        )
        try:
            return retrying(attempt)
        except StorageError as error:
            tries = retrying.statistics.get("attempt_number", 1)
            for link in chain(error):
                if link.__suppress_context__:  # what must not be seen is not handed on either
                    link.__context__ = None
            is_known = isinstance(error, ObjectExistsError | StorageUnavailableError)
            if verb == "create" and tries > 1 and not is_known:
                raise StorageUnavailableError(
                    f"an earlier one of {tries} tries was not answered, so it may be there or not; the last was "
                    f"refused: {type(error).__name__}: {error}"
                ) from error
            if isinstance(error, StorageUnavailableError):
                error.add_note(f"given up after {tries} tries in {awake_s() - started:.0f} s")
            raise


class RetryingStore(StoreWrapper):
    """`store`, each verb tried again as `Retries` does it.

    A `create` whose first try landed although its reply was lost raises `ObjectExistsError` from the second: the caller
    reads back and compares its own id.
    """

    def __init__(
        self,
        store: Store,
        max_tries: int = 8,
        max_wait_s: float = 60.0,
        first_wait_s: float = 0.25,
        tell: Tell = tell_nobody,
    ) -> None:
        super().__init__(store)
        self._retries = Retries(max_tries, max_wait_s, first_wait_s)
        self._tell = tell
        self._quickest_s = math.inf

    def hurry(self, timeout_s: float) -> None:
        self._retries.hurry(timeout_s)
        super().hurry(timeout_s)

    def run(self, verb: str, key: str, call: Callable[[], _Result]) -> _Result:
        began_s = time.monotonic()
        result = self._retries.run(call, verb, key, self._tell)
        if verb not in ("delete", "filled_bytes"):  # of no keys, and of objects, these ask nothing
            self._quickest_s = min(self._quickest_s, time.monotonic() - began_s)
        return result

    @property
    def quickest_s(self) -> float | None:
        return self._quickest_s if self._quickest_s < math.inf else None
