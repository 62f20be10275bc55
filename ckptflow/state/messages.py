"""Texts between workers through the key-value store of TensorFlow's coordination service.

No collective: waiting here can be given up, and leaves nothing behind that a later collective could trip over. Worker 0
gathers all texts and publishes them, so that a gathering costs each of the others one write and one read.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tensorflow as tf
from tensorflow.python.eager import context

from ckptflow.errors import PeerError

logger = logging.getLogger("ckptflow")

_SLICE_MS = 500  # of waiting, so that a signal's handler gets its turn
_ASK_EVERY_S = 2.0
_SILENT_ASKS = 3  # in a row, before a worker counts as dead
_SAY_AFTER_S = 15.0


@dataclass(frozen=True)
class Peer:
    """Another worker, as TensorFlow addresses it, and where its process is."""

    task: str
    address: str

    def is_alive(self) -> bool:
        """Whether its process answers. From any thread, at any time; within 5 s."""
        try:
            context.context().check_collective_ops_peer_health(self.task, 5000)
        except (tf.errors.UnavailableError, tf.errors.FailedPreconditionError, tf.errors.DeadlineExceededError):
            return False
        except tf.errors.OpError:  # it cannot be asked for
            return True
        return True


def can_gather() -> bool:
    """Whether this process belongs to a cluster with a coordination service."""
    return context.context().coordination_service is not None


def gather(
    topic: str, text: str, *, worker: int, peers: Sequence[Peer], timeout_s: float = math.inf, late: str = ""
) -> list[str]:
    """Every worker's text, in worker order, on every worker. A topic serves once.

    Raises `PeerError`, with the names of those who are missing, where a worker has ended, or where one has not come
    within `timeout_s`; `late` then says what it should have done. Others can still be reached afterwards.
    """
    wait = _Wait(topic, worker, peers, time.monotonic() + timeout_s, late)
    _put(wait.key(worker), text)
    if worker:
        try:
            texts, problem = json.loads(wait.read("all", 0))
        except PeerError:
            forget(wait.key(worker))  # worker 0 must not count on this one any more
            raise
        if problem:
            raise PeerError(problem)
        return list(texts)
    try:
        texts = [wait.read(str(peer), peer) for peer in range(len(peers))]
    except PeerError as error:
        _put(wait.key("all"), json.dumps([[], str(error)]))
        raise
    _put(wait.key("all"), json.dumps([texts, ""]))
    return texts


def forget(topic: str) -> None:
    """Deletes what was gathered. Only when all workers are known to have read it."""
    try:
        context.context().delete_config_key_value(topic)
    except tf.errors.OpError as error:
        logger.debug("%s stays in the coordination service: %s", topic, error)


@dataclass
class _Wait:
    """Waiting for the others' texts on one topic."""

    topic: str
    worker: int
    peers: Sequence[Peer]
    deadline: float
    late: str

    def key(self, name: int | str) -> str:
        return f"{self.topic}/{name}"

    def read(self, name: str, peer: int) -> str:
        """The text `name`, which `peer` writes."""
        started = asked = time.monotonic()
        silent, said = 0, False
        while True:
            found = _get(self.key(name), _SLICE_MS)
            now = time.monotonic()
            if found is not None:
                return found
            if now >= self.deadline:
                raise PeerError(f"{self._places(self._missing() or [peer])} did not come in time{self.late}")
            if now - started >= _SAY_AFTER_S and not said:
                said = True
                logger.warning("worker %d waits for %s", self.worker, self._places(self._missing() or [peer]))
            if now - asked >= _ASK_EVERY_S:
                asked = now
                silent = 0 if self.peers[peer].is_alive() else silent + 1
                if silent >= _SILENT_ASKS:
                    raise PeerError(f"{self._places([peer])} ended")

    def _missing(self) -> list[int]:
        """Who has written nothing."""
        return [other for other in range(len(self.peers)) if _get(self.key(other), 20) is None]

    def _places(self, workers: Sequence[int]) -> str:
        """How the workers are called in a message: their numbers, and where the first few of them are."""
        addresses = ", ".join(self.peers[other].address for other in workers[:8]) + (", …" if len(workers) > 8 else "")
        return f"worker(s) {', '.join(map(str, workers))} of {len(self.peers)} ({addresses})"


def _put(key: str, text: str) -> None:
    _reached(lambda: context.context().set_config_key_value(key, text))


def _get(key: str, timeout_ms: int) -> str | None:
    """What is written under the key by then, or None."""
    try:
        return str(_reached(lambda: context.context().get_config_key_value(key, timeout_ms)))
    except tf.errors.DeadlineExceededError:
        return None


def _reached(call: Callable[[], object]) -> object:
    try:
        return call()
    except tf.errors.DeadlineExceededError:
        raise
    except tf.errors.OpError as error:
        reason = str(error.message).splitlines()[0]
        raise PeerError(
            f"the coordination service, which runs in worker 0's process, cannot be reached: {reason}"
        ) from error
