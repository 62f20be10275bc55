"""Who this worker is among how many, and the one exchange that all workers share their news by."""

from __future__ import annotations

import itertools
import json
import logging
import math
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from ckptflow.errors import PeerError, UnsupportedStateError, UsageError
from ckptflow.state.messages import Peer, can_gather, forget, gather
from ckptflow.state.strategies import check_known, is_default, peers_of, tasks_of

logger = logging.getLogger("ckptflow")

LIMIT = 2**62  # of the numbers in a row, exclusive
_HALF_BITS = 31

# Workers meet in the same order everywhere, whichever managers they meet for: these count for the whole process.
_arrivals = itertools.count()
_rounds = itertools.count()


@dataclass(frozen=True)
class Cluster:
    """This worker's place. `worker` counts from 0, the chief; a process on its own is worker 0 of 1.

    `strategy` is None for DTensor clients. `peers` are all workers, this one as well, where there are several.
    """

    worker: int
    world_size: int
    strategy: Any = None
    peers: tuple[Peer, ...] = ()
    arrival_timeout_s: float = math.inf
    _has_met: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)

    @property
    def is_chief(self) -> bool:
        """Whether this worker coordinates."""
        return self.worker == 0

    def exchange(self, row: Sequence[int]) -> list[tuple[int, ...]]:
        """Every worker's row, in worker order, on every worker.

        All workers must call it the same number of times, on the main thread, outside of a step, each with a row of the
        same length. The first one waits for the others `arrival_timeout_s` at most; later ones wait without limit.

        Raises:
          ValueError: a number is not between -2**62 and 2**62.
          UsageError: not on the main thread, or inside a replica or a tf.function.
          PeerError: another worker died, cannot be reached, or has never come (it is named). Local work is still
            possible afterwards, another exchange is not.
        """
        numbers = [int(number) for number in row]
        if any(not -LIMIT < number < LIMIT for number in numbers):
            raise ValueError(f"numbers to exchange must be between -2**62 and 2**62: {numbers}")
        if self.world_size == 1:
            return [tuple(numbers)]
        if threading.current_thread() is not threading.main_thread():
            raise UsageError("workers must talk to one another on the main thread, where the training steps run")
        if not between_steps():
            raise UsageError(
                "workers cannot talk to one another inside a tf.function or strategy.run: call it between steps"
            )
        if not self._has_met.is_set():
            self._meet()
            self._has_met.set()
        try:
            return self._gather(numbers) if self.strategy is None else self._reduce(numbers)
        except PeerError as error:
            raise PeerError(f"worker {self.worker} of {self.world_size}: {error}") from error

    def is_alive(self, worker: int) -> bool:
        """Whether another worker's process answers. No collective: from any thread, at any time; within 5 s."""
        return self.peers[worker].is_alive()

    def _meet(self) -> None:
        """Waits until every worker is here; a collective that one of them never enters would wait for ever."""
        if not can_gather():
            logger.info("no coordination service: a worker that makes no CheckpointManager is waited for without limit")
            return
        gather(
            f"ckptflow/arrival/{next(_arrivals)}",
            "here",
            worker=self.worker,
            peers=self.peers,
            timeout_s=self.arrival_timeout_s,
            late=f" (commit_timeout_s={self.arrival_timeout_s:g}): every worker has to make a CheckpointManager, and "
            "to call restore_latest, restore, save, wait and close at the same points as the others",
        )

    def _reduce(self, numbers: list[int]) -> list[tuple[int, ...]]:
        """By a collective of the strategy."""
        # With several replicas per worker the sum counts every worker that many times: the leading 1 tells how many.
        # Two halves of 31 bits, so that no such sum can overflow.
        halves = [1, *(half for number in numbers for half in (number >> _HALF_BITS, number & (2**_HALF_BITS - 1)))]
        matrix = np.zeros((self.world_size, len(halves)), np.int64)
        matrix[self.worker] = halves
        try:
            summed = self.strategy.reduce("SUM", tf.constant(matrix), axis=None).numpy()
        except tf.errors.OpError as error:
            raise PeerError(
                "another worker has ended or cannot be reached, or the workers are out of step: "
                f"{str(error.message).splitlines()[0]}"
            ) from error
        copies = summed[:, :1]
        if not (copies == copies[0, 0]).all() or copies[0, 0] < 1 or (summed % copies).any():
            raise PeerError("the workers' rows do not fit together")
        rows = (summed // copies)[:, 1:]
        return [
            tuple((int(high) << _HALF_BITS) + int(low) for high, low in zip(line[::2], line[1::2], strict=True))
            for line in rows
        ]

    def _gather(self, numbers: list[int]) -> list[tuple[int, ...]]:
        """By messages: DTensor has no strategy, and its collectives need a mesh, which the state may not have."""
        number = next(_rounds)
        texts = gather(f"ckptflow/round/{number}", json.dumps(numbers), worker=self.worker, peers=self.peers)
        if self.is_chief and number:
            forget(f"ckptflow/round/{number - 1}")  # whoever is here has read it
        rows = [tuple(json.loads(text)) for text in texts]
        if len({len(row) for row in rows}) > 1:
            raise PeerError("the workers' rows do not fit together")
        return rows


def between_steps() -> bool:
    """Whether this code runs where a training loop does: not inside a tf.function, nor inside strategy.run."""
    in_replica = tf.distribute.has_strategy() and not tf.distribute.in_cross_replica_context()
    return bool(tf.executing_eagerly()) and not in_replica


def server_is_gone(error: Any, what: str) -> PeerError:
    """What TensorFlow's UnavailableError means for variables that are on parameter servers."""
    found = re.search(r"/job:ps/replica:\d+/task:\d+", str(error.message))
    return PeerError(
        f"{what}: {found[0] if found else 'a parameter server'} that holds variables has ended or cannot be reached. "
        "What was saved before is untouched; start all processes again, and restore"
    )


def find_cluster(strategy: Any = None, *, arrival_timeout_s: float = math.inf) -> Cluster:
    """This worker's place under `strategy`, or, without one, under the strategy whose scope is open, or in DTensor.

    Raises `UnsupportedStateError` for strategies that this version does not know, and in tasks that must not save.
    """
    if strategy is None:
        strategy = tf.distribute.get_strategy()
    check_known(strategy)
    if is_default(strategy):
        clients = _dtensor_clients()
        if clients:
            worker = tf.experimental.dtensor.client_id()
            return Cluster(worker, len(clients), None, clients, arrival_timeout_s)
    worker, peers = worker_index(strategy), peers_of(strategy)
    return Cluster(worker, len(peers) or 1, strategy, peers, arrival_timeout_s)


def _dtensor_clients() -> tuple[Peer, ...]:
    """All DTensor clients, where there are several."""
    from tensorflow.dtensor.python import accelerator_util

    dtensor = tf.experimental.dtensor
    if dtensor.num_clients() == 1:
        return ()
    if not accelerator_util.is_initialized():
        raise UsageError(
            f"DTENSOR_JOBS names {dtensor.num_clients()} clients, and this process is none of them yet: call "
            "tf.experimental.dtensor.initialize_accelerator_system() first, or unset DTENSOR_JOBS"
        )
    if not can_gather():
        raise UsageError(
            "DTensor clients reach one another through TensorFlow's coordination service, and this job has none: leave "
            "enable_coordination_service of initialize_accelerator_system() as it is"
        )
    return tuple(
        Peer(f"/job:{dtensor.full_job_name(number)}", address) for number, address in enumerate(dtensor.jobs())
    )


def worker_count(strategy: Any) -> int:
    """How many workers train together under a strategy."""
    return len(peers_of(strategy)) or 1


def worker_index(strategy: Any) -> int:
    """This worker's place under a strategy: the chief first, then the workers."""
    tasks = tasks_of(strategy)
    if not tasks:
        return 0
    resolver = strategy.cluster_resolver
    if resolver.task_type not in tasks:
        raise UnsupportedStateError(
            f"a task of type {resolver.task_type!r} takes no part in training and saves nothing"
        )
    before = len(tasks.get("chief", ())) if resolver.task_type == "worker" else 0
    return before + int(resolver.task_id)
