"""The key-value store of TensorFlow's coordination service, in worker 0's process, with a limit to each call.

No collective: a call that is given up leaves nothing behind that a later collective could trip over.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from dataclasses import dataclass, field

import tensorflow as tf
from tensorflow.python.eager import context

from ckptflow.peers.rounds import UnreachableError
from ckptflow.peers.watch import Answer, Peer

logger = logging.getLogger("ckptflow")

_SLICE_S = 0.5  # of waiting, so that a signal's handler gets its turn


def is_there() -> bool:
    """Whether this process belongs to a cluster with a coordination service."""
    return context.context().coordination_service is not None


def ask(peer: Peer, timeout_s: float) -> Answer:
    """Whether another worker's process answers. From any thread, at any time."""
    try:
        context.context().check_collective_ops_peer_health(peer.task, max(1, int(timeout_s * 1000)))
    except tf.errors.DeadlineExceededError:
        return Answer.SILENT
    except (tf.errors.UnavailableError, tf.errors.FailedPreconditionError):
        return Answer.ENDED
    except tf.errors.OpError:  # it cannot be asked for
        return Answer.HERE
    return Answer.HERE


class Service:
    """`put`, `get` and `forget` of short texts. A key is written once."""

    def put(self, key: str, text: str, timeout_s: float) -> bool:
        """Whether the text is there by now; False if the service has not said so within `timeout_s`, and it may come.

        TensorFlow's own call has no limit: a thread makes it, one after another, and this one waits.
        """
        sending = _Sending(key, text)
        _sender.send(sending)
        deadline = time.monotonic() + timeout_s
        while not sending.is_over.wait(max(0.0, min(_SLICE_S, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                return False
        if sending.error is not None:
            raise UnreachableError(_first_line(sending.error)) from sending.error
        return True

    def get(self, key: str, timeout_s: float) -> str | None:
        """The text under the key, or None if there is none by then."""
        try:
            return str(context.context().get_config_key_value(key, max(1, int(timeout_s * 1000))))
        except tf.errors.DeadlineExceededError:
            return None
        except tf.errors.NotFoundError:
            return None
        except tf.errors.OpError as error:
            raise UnreachableError(_first_line(error)) from error

    def forget(self, key: str) -> None:
        """Deletes what is under the key, and below it; without waiting, and without a word if that cannot be done."""
        _sender.send(_Sending(key, None))


@dataclass
class _Sending:
    key: str
    text: str | None  # None: delete
    is_over: threading.Event = field(default_factory=threading.Event)
    error: tf.errors.OpError | None = None


class _Sender:
    """One daemon thread that makes the calls without a limit; a stopped worker 0 can hold it up, and nothing else."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[_Sending] = queue.SimpleQueue()
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None

    def send(self, sending: _Sending) -> None:
        with self._start:
            if self._thread is None or not self._thread.is_alive():  # the latter: after a fork
                self._thread = threading.Thread(target=self._run, name="ckptflow-messages", daemon=True)
                self._thread.start()
        self._waiting.put(sending)

    def _run(self) -> None:
        while True:
            sending = self._waiting.get()
            try:
                if sending.text is None:
                    with contextlib.suppress(tf.errors.OpError):
                        context.context().delete_config_key_value(sending.key)
                else:
                    context.context().set_config_key_value(sending.key, sending.text)
            except tf.errors.AlreadyExistsError:  # sent again after a reply that was lost
                pass
            except tf.errors.OpError as error:
                sending.error = error
            finally:
                sending.is_over.set()


_sender = _Sender()


def _first_line(error: tf.errors.OpError) -> str:
    return (str(error.message).splitlines() or [""])[0]
