"""Who is told of events: hooks and a log, in a thread of their own, so that they hold up neither training nor saves."""

from __future__ import annotations

import atexit
import contextlib
import copy
import dataclasses
import json
import logging
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from ckptflow.events import Event
from ckptflow.storage.credentials import for_log
from ckptflow.storage.redaction import redact

logger = logging.getLogger("ckptflow")
event_logger = logging.getLogger("ckptflow.events")

Hook = Callable[[Event], object]
_Events = queue.SimpleQueue[tuple[Event, tuple[Hook, ...]] | None]  # one that a finalizer may put into

MAX_WAITING = 10_000  # events, some 10 MB; a hook that hangs must not eat the job's memory
CLOSING_S = 10.0


class Hooks:
    """Tells every hook of every event, in the order in which they happened, in one thread.

    `tell` returns at once and never raises. Each hook gets an event of its own. One that raises is logged, and told of
    the next event all the same. What is still to be told at `close`, or at the end of a program that closes nothing, is
    told first, for at most 10 s. Each event is also one line of the log `ckptflow.events`, at level INFO.
    """

    def __init__(self, hooks: Sequence[Hook], worker: int) -> None:
        self.url = ""  # of the root, once the store is open
        self._hooks = tuple(hooks)
        self._worker = worker
        self._process = os.getpid()
        self._waiting: _Events = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.RLock()
        self._dropped = 0
        if self._is_heard():
            self._begin()

    def tell(self, event: Event) -> None:
        """From any thread."""
        if not self._is_heard():
            return
        if self._waiting.qsize() >= MAX_WAITING:
            self._dropped += 1
            return
        self._waiting.put((dataclasses.replace(event, url=self.url, worker=self._worker), (_log, *self._hooks)))
        if self._thread is None:  # the log is listened to by now
            self._begin()

    def _is_heard(self) -> bool:
        return bool(self._hooks) or event_logger.isEnabledFor(logging.INFO)

    def _begin(self) -> None:
        with self._lock:
            if self._thread is None:
                try:
                    self._thread = _start(self._waiting)
                except RuntimeError:  # no more threads: the next event tries again, and no save fails by it
                    return
                weakref.finalize(self, self._waiting.put, None).atexit = False  # nobody is left who could tell more

    def close(self) -> None:
        """Waits until all is told, at most 10 s. What is told later is lost."""
        if self._thread is None and not self._waiting.empty():  # no thread could be had so far
            self._begin()
        thread = self._thread
        if thread is None and not self._waiting.empty():
            logger.warning(
                "no thread could be started: %d event(s) were not told", self._waiting.qsize() + self._dropped
            )
        if thread is None or os.getpid() != self._process or threading.current_thread() is thread:
            return
        self._waiting.put(None)
        thread.join(CLOSING_S)
        _telling.pop(thread, None)
        # With a hook that hangs, one event is still with it, and the mark of the end waits behind the others.
        left = self._dropped + (self._waiting.qsize() if thread.is_alive() else 0)
        if left:
            logger.warning("a hook of on_event is too slow or hangs: %d event(s) were not told", left)


_telling: dict[threading.Thread, _Events] = {}


def _start(waiting: _Events) -> threading.Thread:
    """A daemon: a hook that hangs must not keep a finished job alive.

    It knows the queue alone, so that a manager which nobody closes can be collected, hooks and all, and this ends.
    """
    thread = threading.Thread(target=_tell_all, args=(waiting,), name="ckptflow-events", daemon=True)
    thread.start()
    _telling[thread] = waiting
    return thread


def _tell_all(waiting: _Events) -> None:
    failed: set[int] = set()
    while (item := waiting.get()) is not None:
        event, hooks = item
        for number, hook in enumerate(hooks):
            try:
                hook(copy.deepcopy(event))  # what one changes in it is seen by nobody else
            except BaseException as error:  # also SystemExit, which would end this thread without a word
                # Its first failure with the stack, the others in one line: a hook may fail at every event.
                with contextlib.suppress(BaseException):  # a handler of the log may be what raises
                    shown, name = for_log(error), redact(repr(hook))
                    stack = None if number in failed else shown
                    logger.warning("on_event: %s failed at %s: %s", name, event.name, shown, exc_info=stack)
                failed.add(number)
        del item, event, hooks, hook  # nothing of the manager's is held while this waits
    _telling.pop(threading.current_thread(), None)


@atexit.register
def _tell_the_rest() -> None:
    """Saves that a program leaves behind end before the functions of `atexit` are called: what they tell is told."""
    deadline = time.monotonic() + CLOSING_S
    for thread, waiting in list(_telling.items()):
        waiting.put(None)
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            logger.warning("a hook of on_event is too slow or hangs: %d event(s) were not told", waiting.qsize())


def _log(event: Event) -> None:
    event_logger.info("%s", as_line(event), extra={"ckptflow_event": as_fields(event)})


def as_fields(event: Event) -> dict[str, Any]:
    """The event's name and fields as JSON-able values, times as ISO texts: what a structured log takes."""
    fields = {"event": event.name, **dataclasses.asdict(event)}
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in fields.items()}


def as_line(event: Event) -> str:
    """`committed step=500 size_bytes=…`: the fields as `name=value`, a value in JSON's quotes where it needs them."""
    fields = as_fields(event)
    name = fields.pop("event")
    return " ".join([name, *(f"{key}={_as_value(value)}" for key, value in fields.items())])


def _as_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping) or (
        isinstance(value, str) and (not value.isprintable() or set(value) & set(' "=') or not value)
    ):
        return json.dumps(value)
    return str(value)
