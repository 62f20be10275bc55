"""Who this worker is among how many, and the one collective that all workers share their news by."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

from ckptflow.errors import PeerError, UnsupportedStateError, UsageError

LIMIT = 2**62  # of the numbers in a row, exclusive
_HALF_BITS = 31
_TEXT_BYTES_PER_WORD = 7  # below LIMIT


@dataclass(frozen=True)
class Cluster:
    """This worker's place. `worker` counts from 0, the chief; a process on its own is worker 0 of 1."""

    worker: int
    world_size: int
    strategy: Any = None

    @property
    def is_chief(self) -> bool:
        """Whether this worker coordinates."""
        return self.worker == 0

    def exchange(self, row: Sequence[int]) -> list[tuple[int, ...]]:
        """Every worker's row, in worker order, on every worker.

        All workers must call it the same number of times, on the main thread, outside of a step, each with a row of the
        same length. It waits for the slowest worker without limit.

        Raises:
          ValueError: a number is not between -2**62 and 2**62.
          UsageError: not on the main thread, or inside a replica or a tf.function.
          PeerError: another worker died, or the connection to it failed. Local work is still possible afterwards,
            another exchange is not.
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
        # With several replicas per worker the sum counts every worker that many times: the leading 1 tells how many.
        # Two halves of 31 bits, so that no such sum can overflow.
        halves = [1, *(half for number in numbers for half in (number >> _HALF_BITS, number & (2**_HALF_BITS - 1)))]
        matrix = np.zeros((self.world_size, len(halves)), np.int64)
        matrix[self.worker] = halves
        try:
            summed = self.strategy.reduce("SUM", tf.constant(matrix), axis=None).numpy()
        except tf.errors.OpError as error:
            raise PeerError(
                f"worker {self.worker} of {self.world_size}: another worker has ended or cannot be reached, or the "
                f"workers are out of step: {str(error.message).splitlines()[0]}"
            ) from error
        copies = summed[:, :1]
        if not (copies == copies[0, 0]).all() or copies[0, 0] < 1 or (summed % copies).any():
            raise PeerError(f"worker {self.worker} of {self.world_size}: the workers' rows do not fit together")
        rows = (summed // copies)[:, 1:]
        return [
            tuple((int(high) << _HALF_BITS) + int(low) for high, low in zip(line[::2], line[1::2], strict=True))
            for line in rows
        ]

    def is_alive(self, worker: int) -> bool:
        """Whether another worker's process answers. No collective: from any thread, at any time; within 5 s."""
        tasks = _tasks(self.strategy)
        kind = "chief" if worker < len(tasks.get("chief", ())) else "worker"
        number = worker if kind == "chief" else worker - len(tasks.get("chief", ()))
        try:
            context.context().check_collective_ops_peer_health(f"/job:{kind}/replica:0/task:{number}", 5000)
        except (tf.errors.UnavailableError, tf.errors.FailedPreconditionError, tf.errors.DeadlineExceededError):
            return False
        except tf.errors.OpError:  # it cannot be asked for
            return True
        return True


def between_steps() -> bool:
    """Whether this code runs where a training loop does: not inside a tf.function, nor inside strategy.run."""
    in_replica = tf.distribute.has_strategy() and not tf.distribute.in_cross_replica_context()
    return bool(tf.executing_eagerly()) and not in_replica


def find_cluster(strategy: Any = None) -> Cluster:
    """This worker's place under `strategy`, or, without one, under the strategy whose scope is open.

    Raises `UnsupportedStateError` for strategies that this version does not know.
    """
    if strategy is None:
        strategy = tf.distribute.get_strategy()
    known = (tf.distribute.MirroredStrategy, tf.distribute.OneDeviceStrategy, tf.distribute.MultiWorkerMirroredStrategy)
    is_default = type(strategy).__name__ == "_DefaultDistributionStrategy"
    if not is_default and not isinstance(strategy, known):
        raise UnsupportedStateError(
            f"{type(strategy).__name__} is not supported by this version of ckptflow; it knows no strategy, "
            "OneDeviceStrategy, MirroredStrategy and MultiWorkerMirroredStrategy"
        )
    return Cluster(worker_index(strategy), worker_count(strategy), strategy)


def worker_count(strategy: Any) -> int:
    """How many workers train together under a strategy."""
    return sum(len(tasks) for tasks in _tasks(strategy).values()) or 1


def worker_index(strategy: Any) -> int:
    """This worker's place under a strategy: the chief first, then the workers."""
    tasks = _tasks(strategy)
    if not tasks:
        return 0
    resolver = strategy.cluster_resolver
    if resolver.task_type not in tasks:
        raise UnsupportedStateError(
            f"a task of type {resolver.task_type!r} takes no part in training and saves nothing"
        )
    before = len(tasks.get("chief", ())) if resolver.task_type == "worker" else 0
    return before + int(resolver.task_id)


def _tasks(strategy: Any) -> dict[str, Sequence[str]]:
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return {}
    resolver = strategy.cluster_resolver
    spec = resolver.cluster_spec().as_dict() if resolver is not None else {}
    return {kind: addresses for kind, addresses in spec.items() if kind in ("chief", "worker") and addresses}


def pack_text(text: str, words: int = 32) -> list[int]:
    """The beginning of a text as `words` numbers that `exchange` can carry: 7 bytes of UTF-8 in each."""
    data = text.encode("utf-8", "replace")[: words * _TEXT_BYTES_PER_WORD]
    data = data.ljust(words * _TEXT_BYTES_PER_WORD, b"\0")
    return [
        int.from_bytes(data[start : start + _TEXT_BYTES_PER_WORD], "big")
        for start in range(0, len(data), _TEXT_BYTES_PER_WORD)
    ]


def unpack_text(numbers: Sequence[int]) -> str:
    """The text that `pack_text` packed; a character that was cut in two at the end is left out."""
    data = b"".join(number.to_bytes(_TEXT_BYTES_PER_WORD, "big") for number in numbers)
    return data.rstrip(b"\0").decode("utf-8", "ignore")
