"""Who this worker is among how many, and how it reaches the others: by messages, without them by a reduction."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf

from ckptflow.errors import PeerError, UsageError
from ckptflow.peers import service
from ckptflow.peers.progress import CALLS, STORAGE
from ckptflow.peers.rounds import Rounds
from ckptflow.peers.watch import ASK_EVERY_S, Peer, Watch, in_turn, neighbours
from ckptflow.state.private.tensorflow import is_dtensor_initialized
from ckptflow.state.strategies import check_known, is_between_steps, is_default, tasks_of, worker_index
from ckptflow.stops import awake_s

logger = logging.getLogger("ckptflow")

# The rounds that this process has begun for each of its clusters, in the order of their first ones: the same on all
# workers. A worker that leaves one may have begun others in it than those that remain: the next one starts from 0.
_begun: list[int] = []
_left: set[int] = set()  # by numbers, the clusters in which this worker has told that it comes no more
_ASKED_BY_CHIEF = 64  # at a time, of many: it asks for the whole job, and each question holds the interpreter's lock
_LOOKED_FOR = 8  # other clusters in which a worker that does not come may be
_gathered: list[str] = []  # the topic of the last one, on worker 0
_SPOKEN = re.compile(r"worker \d+ of \d+\b")  # how the text of one that has given up begins


@dataclass
class _Now:
    """What changes in the course of a job."""

    number: int | None = None  # among the clusters of this process that have begun a round
    has_met: bool = False
    lost: str | None = None  # what ended the exchanges
    has_told: bool = False  # the others, of that
    doing: str = ""  # what this worker does for the others, on the main thread


@dataclass(frozen=True)
class Cluster:
    """This worker's place. `worker` counts from 0, the chief; a process on its own is worker 0 of 1.

    `strategy` is None for DTensor clients. `peers` are all workers, this one as well, if there are several.
    `peer_timeout_s`: how long another worker is waited for; `arrival_timeout_s`: the same in the first exchange.
    """

    worker: int
    world_size: int
    strategy: Any = None
    peers: tuple[Peer, ...] = ()
    peer_timeout_s: float = math.inf
    arrival_timeout_s: float = math.inf
    _now: _Now = field(default_factory=_Now, compare=False, repr=False)

    @property
    def is_chief(self) -> bool:
        """Whether this worker coordinates."""
        return self.worker == 0

    def exchange(self, message: bytes, call: str) -> list[bytes]:
        """Every worker's message, a JSON document each, in the order of workers, on every worker.

        All workers must call it equally often, on the main thread, outside of a step. Each waits for the others
        `peer_timeout_s` at most, in the first exchange `arrival_timeout_s` if that is less; after 15 s, and then at
        growing intervals, a line in the log names who is missing. A job without TensorFlow's coordination service
        exchanges by a collective, which waits without limit. `call` is what is said of where this worker waits.

        Raises:
          UsageError: not on the main thread, or inside a replica or a tf.function.
          PeerError: another worker has ended, does not answer, or has not come in time; it is named. Local work is
            still possible afterwards, another exchange is not: it raises the same at once.
        """
        if self.world_size == 1:
            return [message]
        if threading.current_thread() is not threading.main_thread():
            raise UsageError("workers must talk to one another on the main thread, where the training steps run")
        if not is_between_steps():
            raise UsageError(
                "workers cannot talk to one another inside a tf.function or strategy.run: call it between steps"
            )
        if self._now.lost is not None:
            if not self._now.has_told and service.is_there():  # where it was lost, the others may have gone on
                self._tell_of(self._now.lost)
            raise PeerError(f"{self._now.lost}; {call} cannot be done without it")
        try:
            found = self._gather(message, call) if service.is_there() else self._reduce(message)
        except PeerError as error:
            text = str(error)
            self._now.lost = text if _SPOKEN.match(text) else f"worker {self.worker} of {self.world_size}: {text}"
            raise PeerError(self._now.lost) from error
        except BaseException as error:  # as Ctrl-C
            self._now.lost = f"worker {self.worker} of {self.world_size} left {call} by {type(error).__name__}"
            raise
        self._now.has_met = True
        return found

    @contextlib.contextmanager
    def working(self, doing: str) -> Iterator[None]:
        """While it is open, each request to the storage that ends is progress to those who wait for this worker.

        On another thread than the main one it means nothing: whoever waits, waits for the main one.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before, self._now.doing = self._now.doing, doing
        try:
            yield
        finally:
            self._now.doing = before

    def storage_goes_on(self) -> None:
        """Says that a request to the storage came to an end. From any thread, as often as one does."""
        if self.world_size > 1 and service.is_there():
            self._messages.show_progress(STORAGE, "")
            if self._now.doing:
                self._messages.show_progress(CALLS, self._now.doing)

    def begin_wait(self) -> Callable[[Sequence[int]], dict[int, str]]:
        """Begins to wait for other workers outside of an exchange. Called with workers, what it returns tells which of
        them have ended, do not answer, or whose storage shows no progress for `peer_timeout_s`, and which of these.
        It asks some of many at each call, others each time, and again those that have not answered. From any thread.
        """
        started = awake_s()
        signs = self._messages.storage_signs(started) if service.is_there() else None
        turns = itertools.count()

        def find_lost(workers: Sequence[int]) -> dict[int, str]:
            idle = set(signs.find_idle(workers)) if signs is not None else set()
            asked = {*in_turn(workers, next(turns), _ASKED_BY_CHIEF), *self._watch.find_suspects(workers), *idle}
            gone = self._watch.find_gone(sorted(asked), started)
            lost = {worker: answer.value for worker, answer in gone.items()}
            idle -= set(lost)
            if idle:
                silent = self._watch.find_silent(started)
                no_progress = f"shows no progress for {self.peer_timeout_s:g} s"
                lost |= {worker: silent[worker].value if worker in silent else no_progress for worker in idle}
            return {worker: f"{what} ({self.peers[worker].address})" for worker, what in lost.items()}

        return find_lost

    def looking_after(self, call: str) -> Callable[[], None]:
        """For a long part of a call, on the main thread: what this returns, called as often as one likes, raises
        `PeerError` once another worker has ended or does not answer. The round at its end would tell no sooner."""
        if self.world_size == 1 or not service.is_there():
            return _nothing
        started = awake_s()
        others = neighbours(self.worker, self.world_size)
        asked_s = started

        def look() -> None:
            nonlocal asked_s
            now_s = awake_s()
            if now_s - asked_s < ASK_EVERY_S:
                return
            asked_s = now_s
            gone = self._watch.find_gone(others, started)
            if gone:
                names = "; ".join(
                    f"worker {worker} ({self.peers[worker].address}) {answer.value}" for worker, answer in gone.items()
                )
                self._now.lost = f"worker {self.worker} of {self.world_size}: {names}, in {call}"
                raise PeerError(self._now.lost)

        return look

    @property
    def is_lost(self) -> bool:
        """Whether an exchange has failed, so that no other one can be."""
        return self._now.lost is not None

    @property
    def carries_much(self) -> bool:
        """Whether a message of megabytes costs no more than its bytes: a reduction sums eight times as many for each
        worker, on each worker."""
        return service.is_there()

    def leave(self, call: str, error: BaseException) -> None:
        """Tells the others that this worker leaves instead of coming to `call`, and returns at once."""
        if self.world_size > 1 and not self._now.has_told:
            left = f"worker {self.worker} of {self.world_size} left {call} by {type(error).__name__}"
            self._now.lost = self._now.lost or left
            if service.is_there():  # also where a round was lost here: the others may have ended that one, and gone on
                self._tell_of(self._now.lost)

    def part(self) -> None:
        """After the last exchange: worker 0, in whose process the messages are, stays until the others have them."""
        is_possible = self.world_size > 1 and self._now.lost is None and service.is_there()
        if is_possible and self._messages.part(self._next_topic("parting")):
            self._forget_the_last()

    @cached_property
    def _watch(self) -> Watch:
        return Watch(self.peers, service.ask, self.peer_timeout_s, awake_s)

    @cached_property
    def _messages(self) -> Rounds:
        return Rounds(service.Service(), self.worker, self.peers, self._watch, self.peer_timeout_s)

    def _next_topic(self, kind: str = "round") -> str:
        """Of the round that this worker begins in this cluster."""
        if self._now.number is None:
            self._now.number = len(_begun)
            _begun.append(0)
        _begun[self._now.number] += 1
        return _topic(self._now.number, _begun[self._now.number] - 1, kind)

    def _tell_of(self, lost: str) -> None:
        """Tells the others why this worker comes to no further round."""
        self._now.has_told = True
        topic = self._next_topic()
        if self._now.number is not None:
            _left.add(self._now.number)
        self._messages.give_up(topic, lost)

    def _topics_of_others(self) -> list[str]:
        """Where a worker would be that has begun a round of another cluster instead, the newest first.

        Not where this worker has left, which they know. One that has parted may go on, as with the next `fit`.
        """
        nexts = [(len(_begun), 0), *reversed([*enumerate(_begun)])]
        return [_topic(*each) for each in nexts if each[0] not in {*_left, self._now.number}][:_LOOKED_FOR]

    def _gather(self, message: bytes, call: str) -> list[bytes]:
        topic = self._next_topic()
        limit_s, hint = self.peer_timeout_s, f", within peer_timeout_s={self.peer_timeout_s:g}"
        if not self._now.has_met and self.arrival_timeout_s < limit_s:
            limit_s = self.arrival_timeout_s
            hint = (
                f", within commit_timeout_s={limit_s:g}: every worker has to make a CheckpointManager, and to call "
                "restore_latest, restore, save, wait and close at the same points as the others"
            )
        others = self._topics_of_others()
        texts = self._messages.gather(topic, message, call, limit_s=limit_s, hint=hint, elsewhere=others)
        self._forget_the_last()  # whoever is here has read it
        _gathered.append(topic)
        return texts

    def _forget_the_last(self) -> None:
        while self.is_chief and _gathered:
            self._messages.forget(_gathered.pop())

    def _reduce(self, message: bytes) -> list[bytes]:
        """By collectives of the strategy: how long the messages are, and then the messages."""
        if self.strategy is None:
            raise UsageError("DTensor clients reach one another through TensorFlow's coordination service alone")
        if not self._now.has_met:
            logger.info("no coordination service: a worker that makes no CheckpointManager is waited for without limit")
        sizes = [int(row[0]) for row in self._sum_rows(np.asarray([len(message)]))]
        padded = np.zeros(max(sizes), np.int64)
        padded[: len(message)] = np.frombuffer(message, np.uint8)
        rows = self._sum_rows(padded)
        return [row[:size].astype(np.uint8).tobytes() for row, size in zip(rows, sizes, strict=True)]

    def _sum_rows(self, row: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Every worker's row of numbers, each below 2**32: all rows of one length."""
        # With several replicas per worker the sum counts every worker that many times: the leading 1 tells how many.
        matrix = np.zeros((self.world_size, 1 + len(row)), np.int64)
        matrix[self.worker] = [1, *row]
        try:
            summed = self.strategy.reduce("SUM", tf.constant(matrix), axis=None).numpy()
        except tf.errors.OpError as error:
            raise PeerError(
                "another worker has ended or cannot be reached, or the workers are out of step: "
                f"{str(error.message).splitlines()[0]}"
            ) from error
        copies = summed[:, :1]
        if not (copies == copies[0, 0]).all() or copies[0, 0] < 1 or (summed % copies).any():
            raise PeerError("the workers' messages do not fit together")
        rows: np.ndarray[Any, Any] = (summed // copies)[:, 1:]
        return rows


def find_cluster(
    strategy: Any = None, *, peer_timeout_s: float = math.inf, arrival_timeout_s: float = math.inf
) -> Cluster:
    """This worker's place under `strategy`, or, without one, under the strategy whose scope is open, or in DTensor.

    SIGTERM ends a process of a cluster from here on. Raises `UnsupportedStateError` for strategies that this version
    does not know, and in tasks that must not save.
    """
    if strategy is None:
        strategy = tf.distribute.get_strategy()
    check_known(strategy)
    service.heed_sigterm()
    if is_default(strategy):
        clients = _dtensor_clients()
        if clients:
            worker = tf.experimental.dtensor.client_id()
            return Cluster(worker, len(clients), None, clients, peer_timeout_s, arrival_timeout_s)
    peers = _peers_of(strategy)
    return Cluster(worker_index(strategy), len(peers) or 1, strategy, peers, peer_timeout_s, arrival_timeout_s)


def _peers_of(strategy: Any) -> tuple[Peer, ...]:
    """The processes that train together, in the order of workers; none where it is one."""
    return tuple(
        Peer(f"/job:{kind}/replica:0/task:{number}", address)
        for kind, addresses in tasks_of(strategy).items()
        for number, address in enumerate(addresses)
    )


def _dtensor_clients() -> tuple[Peer, ...]:
    """All DTensor clients, if there are several."""
    dtensor = tf.experimental.dtensor
    if dtensor.num_clients() == 1:
        return ()
    if not is_dtensor_initialized():
        raise UsageError(
            f"DTENSOR_JOBS names {dtensor.num_clients()} clients, and this process is none of them yet: call "
            "tf.experimental.dtensor.initialize_accelerator_system() first, or unset DTENSOR_JOBS"
        )
    if not service.is_there():
        raise UsageError(
            "DTensor clients reach one another through TensorFlow's coordination service, and this job has none: leave "
            "enable_coordination_service of initialize_accelerator_system() as it is"
        )
    return tuple(
        Peer(f"/job:{dtensor.full_job_name(number)}", address) for number, address in enumerate(dtensor.jobs())
    )


def _topic(number: int, round_number: int, kind: str = "round") -> str:
    return f"ckptflow/{kind}/{number}/{round_number}"


def _nothing() -> None:
    pass
