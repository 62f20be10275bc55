"""How this process hears that it is to end: signals at once, whatever the main thread does; a function asked in turn.

Python runs a signal's handler on the main thread, between two bytecodes: not while TensorFlow runs a step, nor ever
while a step hangs. But the interpreter's C code writes the signal's number to the wakeup descriptor at once, and
a thread of ours reads the other end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType

from ckptflow.storage.credentials import for_log

logger = logging.getLogger("ckptflow")

ASK_EVERY_S = 1.0
SAME_SIGNAL_S = 1.0  # `timeout` and others send a signal twice: to the process, and to its group
BY_FUNCTION = 127  # where a signal's number would stand
_LAST_WORDS_S = 1.0
_HANDLER_RAN = 128  # added to the number by the handler


@dataclass(frozen=True, slots=True)
class Notice:
    """That this process is to end: `by` a signal's number or `BY_FUNCTION`, `at_s` on the monotonic clock."""

    by: int
    at_s: float


def name_of(by: int) -> str:
    """SIGTERM, or what stands for the user's function."""
    return "the notice function" if by == BY_FUNCTION else signal.Signals(by).name


class Notices:
    """Listens from construction to `close`, on the main thread both; `told` is the first notice.

    `on_told` is called once, in a thread of its own. A signal that comes again, later than `SAME_SIGNAL_S` after the
    first, ends the process at once with 128 + its number. Other users of the wakeup descriptor get what is theirs;
    handlers are replaced, and all is put back by `close`. A forked child gets its signals back.
    """

    def __init__(
        self, signals: Sequence[int], ask: Callable[[], object] | None, on_told: Callable[[Notice], None]
    ) -> None:
        self.told: Notice | None = None
        self._signals = frozenset(signals)
        self._on_told = on_told
        self._lock = threading.Lock()
        self._first_signal_s: float | None = None
        self._closed = threading.Event()
        self._handlers: dict[int, signal.Handlers | Callable[[int, FrameType | None], object] | int | None] = {}
        self._inbox, self._outbox = socket.socketpair()
        self._outbox.setblocking(False)
        # Before the handlers: a signal between the two would be lost.
        self._chained = signal.set_wakeup_fd(self._outbox.fileno(), warn_on_full_buffer=False)
        _listening.append(self)
        threading.Thread(target=self._listen, name="ckptflow-signals", daemon=True).start()
        try:
            for number in signals:
                self._handlers[number] = signal.signal(number, self._on_main_thread)
        except BaseException:
            self.close()
            raise
        if ask is not None:  # not the thread that hears signals: a user's function may hang
            threading.Thread(target=self._ask, args=(ask,), name="ckptflow-notice", daemon=True).start()

    def close(self) -> None:
        """Puts back handlers and the wakeup descriptor, unless somebody else has replaced ours since.

        Several may be closed in any order.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        position = _listening.index(self)
        for later in _listening[position + 1 :]:
            later._inherit(self)
        del _listening[position]
        self.put_back()
        self._outbox.shutdown(socket.SHUT_RDWR)  # the listener reads the end, and ends
        self._outbox.close()

    def ignore(self) -> None:
        """From here on a signal changes nothing, up to the last moment of the process: Python's own end sets only
        handlers to the default, not what is ignored. `close` leaves it so.
        """
        for number in self._signals:
            signal.signal(number, signal.SIG_IGN)

    def put_back(self) -> None:
        """Handlers and the wakeup descriptor as they were, where ours are still there."""
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._on_main_thread:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        descriptor = signal.set_wakeup_fd(-1)
        if descriptor == self._outbox.fileno():
            descriptor = self._chained
        with contextlib.suppress(OSError, ValueError):  # closed by its owner meanwhile
            signal.set_wakeup_fd(descriptor)

    def _inherit(self, closing: Notices) -> None:
        """What `closing` had replaced takes its place in what this one replaced, which is put back or written to."""
        with self._lock:  # the listener may be writing to a descriptor that is another file's soon
            if self._chained == closing._outbox.fileno():
                self._chained = closing._chained
        for number, handler in self._handlers.items():
            if handler == closing._on_main_thread:
                self._handlers[number] = closing._handlers[number]

    def _on_main_thread(self, number: int, _: FrameType | None) -> None:
        """Runs late; needed for the number to be written at once, and where another library took the descriptor."""
        with contextlib.suppress(OSError):
            self._outbox.send(bytes([_HANDLER_RAN + number]))

    def _listen(self) -> None:
        with self._inbox:
            while data := self._inbox.recv(4096):
                numbers = bytes(number for number in data if number < _HANDLER_RAN)
                with self._lock, contextlib.suppress(OSError):
                    if self._chained != -1 and numbers:
                        os.write(self._chained, numbers)
                for number in data:
                    if number % _HANDLER_RAN in self._signals:
                        self._heard(number % _HANDLER_RAN, is_new=number < _HANDLER_RAN)

    def _heard(self, number: int, *, is_new: bool) -> None:
        now_s = time.monotonic()
        if self._first_signal_s is None:
            self._first_signal_s = now_s
            self._tell(Notice(number, now_s))
        elif is_new and now_s > self._first_signal_s + SAME_SIGNAL_S:
            _leave_at_once(number)

    def _tell(self, notice: Notice) -> None:
        with self._lock:
            if self.told is not None:
                return
            self.told = notice
        # Of its own: should logging hang, the listener still hears the next signal.
        threading.Thread(target=self._on_told, args=(notice,), name="ckptflow-told", daemon=True).start()

    def _ask(self, ask: Callable[[], object]) -> None:
        has_failed = False
        while not self._closed.is_set():
            try:
                if ask():
                    self._tell(Notice(BY_FUNCTION, time.monotonic()))
                    return
            except BaseException as error:  # also SystemExit, which would end this thread without a word
                if not has_failed:
                    logger.error(
                        "the notice function raised; it is asked again, and this is not said again",
                        exc_info=for_log(error),
                    )
                has_failed = True
            self._closed.wait(ASK_EVERY_S)


_listening: list[Notices] = []


def _in_child() -> None:
    """After a fork: the child's end must not be heard as the parent's, and the child must be able to end."""
    while _listening:
        notices = _listening.pop()
        notices.put_back()
        notices._outbox.close()


os.register_at_fork(after_in_child=_in_child)


def _leave_at_once(number: int) -> None:
    """Ends the process from this thread: the main thread may never come back."""
    words = threading.Thread(target=_last_words, args=(number,), daemon=True)
    words.start()
    words.join(_LAST_WORDS_S)  # a lock that they need may be held by what hangs
    os._exit(128 + number)


def _last_words(number: int) -> None:
    logger.error("%s again: leaving at once with exit code %d, without a save", name_of(number), 128 + number)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
