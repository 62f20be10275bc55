"""The key-value store of TensorFlow's coordination service, in worker 0's process, with a limit to each call.

No collective: a call that is given up leaves nothing behind that a later collective could trip over.
"""

from __future__ import annotations

import queue
import signal
import threading
import time
from dataclasses import dataclass, field

import tensorflow as tf

from ckptflow.peers.post import Put, UnreachableError
from ckptflow.peers.rounds import SLICE_S
from ckptflow.peers.watch import Answer, Peer
from ckptflow.state.private.tensorflow import context

_LONGEST_READ_S = 60.0
_MAX_TEXT = 1000
_MAX_READINGS = 64
_UNWANTED_S = 10.0  # since a text was asked for last: then nobody waits for it any more
_CUT_OFF = ("timed out", "No route to host", "unreachable")  # in what TensorFlow says of a process that may live


def is_there() -> bool:
    """Whether this process belongs to a cluster with a coordination service."""
    return context().coordination_service is not None


def heed_sigterm() -> None:
    """SIGTERM does again what the program has last said in Python, by default it ends the process: the service has put
    a handler in that place, of which Python knows nothing, and which only makes a note of the signal.
    """
    handler = signal.getsignal(signal.SIGTERM)  # None: one in C that was there before Python
    if handler is not None and is_there() and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def ask(peer: Peer, timeout_s: float) -> Answer:
    """Whether another worker's process answers. From any thread, at any time; the others stand still meanwhile."""
    try:
        context().check_collective_ops_peer_health(peer.task, max(1, int(timeout_s * 1000)))
    except tf.errors.DeadlineExceededError:
        return Answer.SILENT
    except tf.errors.UnavailableError as error:
        return Answer.SILENT if any(text in str(error.message) for text in _CUT_OFF) else Answer.ENDED
    except tf.errors.FailedPreconditionError:  # another process has its address
        return Answer.ENDED
    except tf.errors.OpError:  # it cannot be asked for
        return Answer.HERE
    return Answer.HERE


class Service:
    """Short texts by key, as `peers.post.Post` says. `replace` and `forget` are for any thread, the rest for one.

    A read that has run out of time stays in TensorFlow until its key is written. So of a key that is asked for again
    and again one read is under way, ever longer, in a thread of its own.
    """

    def __init__(self) -> None:
        self._sendings: dict[str, _Sending] = {}
        self._readings: dict[str, _Get] = {}

    def put(self, key: str, text: str, timeout_s: float) -> Put:
        """What the service has said of it within `timeout_s`; called again, it waits on.

        TensorFlow's own call has no limit: a thread makes it, one after another, and this one waits.
        """
        sending = self._sendings.get(key)
        if sending is None:
            sending = self._sendings[key] = _Sending(key, text)
            _sender.send(sending)
        deadline = time.monotonic() + timeout_s
        while not sending.is_over.wait(max(0.0, min(SLICE_S, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                return Put.UNKNOWN
        self._sendings.pop(key, None)
        if isinstance(sending.error, tf.errors.AlreadyExistsError):  # perhaps its own, after a reply that was lost
            return Put.EXISTED
        if sending.error is not None:
            raise UnreachableError(_text_of(sending.error)) from sending.error
        return Put.WRITTEN

    def get(self, key: str, timeout_s: float) -> str | None:
        """The text under the key, or None if there is none by then."""
        reading = self._readings.get(key)
        if reading is None:
            text = self.look(key, min(timeout_s, SLICE_S))
            if text is None:
                self._readings[key] = _Get(key)
                while len(self._readings) > _MAX_READINGS:  # the oldest, which nobody waits for any more
                    self._readings.pop(next(iter(self._readings)), None)
            return text
        reading.wanted_at = time.monotonic()
        if not reading.is_over.wait(timeout_s):
            return None
        self._readings.pop(key, None)
        if reading.error is not None:
            raise UnreachableError(_text_of(reading.error)) from reading.error
        return reading.text

    def look(self, key: str, timeout_s: float) -> str | None:
        """The text under the key, or None if there is none, or none that comes within `timeout_s`."""
        try:
            return _read(key, timeout_s)
        except (tf.errors.OpError, ValueError) as error:  # the latter: it is no text
            raise UnreachableError(_text_of(error)) from error

    def replace(self, key: str, text: str) -> None:
        """Writes a text in place of what is there; without waiting, and without a word if that cannot be done."""
        _sender.send(_Sending(key, None))
        _sender.send(_Sending(key, text))

    def forget(self, key: str) -> None:
        """Deletes what is under the key, and below it; without waiting, and without a word if that cannot be done."""
        for known in (self._readings, self._sendings):
            for each in [each for each in list(known) if each == key or each.startswith(f"{key}/")]:
                known.pop(each, None)
        _sender.send(_Sending(key, None))


@dataclass
class _Sending:
    key: str
    text: str | None  # None: delete
    is_over: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None


class _Sender:
    """One daemon thread that makes the calls without a limit; a stopped worker 0 can hold it up, and nothing else."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[_Sending] = queue.SimpleQueue()
        self._start = threading.RLock()  # a signal's handler may come in between
        self._thread: threading.Thread | None = None

    def send(self, sending: _Sending) -> None:
        with self._start:
            if self._thread is None or not self._thread.is_alive():  # the latter: after a fork
                self._thread = threading.Thread(target=self._run, name="ckptflow-messages", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError as error:  # no more threads: the next one tries again, and sends this one, too
                    sending.error = error
                    sending.is_over.set()
        self._waiting.put(sending)

    def _run(self) -> None:
        while True:
            sending = self._waiting.get()
            try:
                if sending.text is None:
                    context().delete_config_key_value(sending.key)
                else:
                    context().set_config_key_value(sending.key, sending.text)
            except BaseException as error:  # whatever it is: what was not sent is not called sent
                sending.error = error
            finally:
                sending.is_over.set()


_sender = _Sender()


class _Get:
    """One read under way, for as long as somebody waits for it."""

    def __init__(self, key: str) -> None:
        self.text: str | None = None
        self.error: BaseException | None = None
        self.is_over = threading.Event()
        self.wanted_at = time.monotonic()
        try:
            threading.Thread(target=self._run, args=(key,), name="ckptflow-read", daemon=True).start()
        except RuntimeError as error:  # no more threads
            self.error = error
            self.is_over.set()

    def _run(self, key: str) -> None:
        timeout_s = SLICE_S
        try:
            while self.text is None and time.monotonic() - self.wanted_at < _UNWANTED_S:
                timeout_s = min(2 * timeout_s, _LONGEST_READ_S)
                self.text = _read(key, timeout_s)
        except BaseException as error:
            self.error = error
        finally:
            self.is_over.set()


def _read(key: str, timeout_s: float) -> str | None:
    """Raises `tf.errors.OpError`."""
    try:
        return str(context().get_config_key_value(key, max(1, int(timeout_s * 1000))))
    except (tf.errors.DeadlineExceededError, tf.errors.NotFoundError):
        return None


def _text_of(error: BaseException) -> str:
    """In one line; TensorFlow names tasks in the later ones."""
    text = str(error.message) if isinstance(error, tf.errors.OpError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:_MAX_TEXT]
