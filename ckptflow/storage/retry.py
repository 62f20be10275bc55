"""Trying again what may succeed: one wrapper over the five verbs, with jittered exponential back-off."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import tenacity

from ckptflow.errors import StorageUnavailableError
from ckptflow.storage.store import Entry, Store

_log = logging.getLogger("ckptflow.storage")
_Result = TypeVar("_Result")


class RetryingStore:
    """`store`, each verb tried again while it raises `StorageUnavailableError`: `max_tries`, within `max_wait_s`.

    Everything else is raised at once. A `create` whose first try landed although its reply was lost raises
    `ObjectExistsError` from the second: the caller reads back and compares its own id.
    """

    def __init__(self, store: Store, max_tries: int = 8, max_wait_s: float = 60.0, first_wait_s: float = 0.25) -> None:
        self._store = store
        self._stop = tenacity.stop_after_attempt(max_tries) | tenacity.stop_before_delay(max_wait_s)
        self._wait = tenacity.wait_exponential_jitter(initial=first_wait_s, max=10.0, jitter=first_wait_s)

    @property
    def url(self) -> str:
        return self._store.url

    @property
    def is_create_only(self) -> bool:
        return self._store.is_create_only

    @property
    def is_object_store(self) -> bool:
        return self._store.is_object_store

    def put(self, key: str, data: memoryview) -> None:
        self._try(lambda: self._store.put(key, data))

    def create(self, key: str, data: memoryview) -> None:
        self._try(lambda: self._store.create(key, data))

    def get(self, key: str, into: memoryview, start: int = 0) -> int:
        return self._try(lambda: self._store.get(key, into, start))

    def list(self, prefix: str = "") -> list[Entry]:
        return self._try(lambda: self._store.list(prefix))

    def delete(self, keys: Sequence[str]) -> None:
        self._try(lambda: self._store.delete(keys))

    def close(self) -> None:
        self._store.close()

    def _try(self, call: Callable[[], _Result]) -> _Result:
        started = time.monotonic()
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(StorageUnavailableError),
            stop=self._stop,
            wait=self._wait,
            before_sleep=_say,
            reraise=True,
        )
        try:
            return retrying(call)
        except StorageUnavailableError as error:
            tries = retrying.statistics.get("attempt_number", 1)
            error.add_note(f"given up after {tries} tries in {time.monotonic() - started:.0f} s")
            raise


def _say(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    wait_s = state.next_action.sleep if state.next_action else 0.0
    _log.warning("try %d failed, again in %.1f s: %s", state.attempt_number, wait_s, error)
