"""One worker of the chaos job: changes its state, saves all the time, and checks what it was given back.

Each save carries in its metadata the digest of the values that the chief had at that step. After a restore every worker
compares it with the digest of what it now holds, so that each resume is proved bit for bit, on each worker, for
whatever checkpoint it came from. The next values follow from the ones before, so that a wrong one would stay.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

import ckptflow
import ckptflow.job.session
from ckptflow.events import Tell, tell_nobody
from ckptflow.storage.opening import open_store
from ckptflow.storage.store import Store
from ckptflow.storage.wrappers import StoreWrapper

LENGTH = 30_000  # floats of each variable: several shards for each worker
FROZEN_LENGTH = 300_000  # of one that seldom changes: enough that it is copied
FROZEN_FOR = 20  # steps
T = TypeVar("T")


@dataclass(frozen=True)
class Moment:
    """When a worker kills itself: before or after its `number`th call of `verb` on a key with `key` in it."""

    verb: str
    key: str
    is_after: bool = False
    number: int = 1


@dataclass(frozen=True)
class Task:
    """What a worker is to do; plain data, since it travels to another process."""

    url: str
    worker: int
    ports: tuple[int, ...]
    log: str
    saves: int
    storage_options: dict[str, Any] = field(default_factory=dict)
    dies_at: Moment | None = None


class _DyingStore(StoreWrapper):
    """`store`, until the moment has come."""

    def __init__(self, store: Store, moment: Moment) -> None:
        super().__init__(store)
        self._moment = moment
        self._numbers = itertools.count(1)  # calls come from several threads

    def run(self, verb: str, key: str, call: Callable[[], T]) -> T:
        is_it = verb == self._moment.verb and self._moment.key in key and next(self._numbers) == self._moment.number
        if is_it and not self._moment.is_after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = call()
        if is_it:
            os.kill(os.getpid(), signal.SIGKILL)
        return result


def digest_of(variables: list[Any]) -> str:
    """A digest of every value that is saved."""
    digest = hashlib.sha256()
    for variable in variables:
        digest.update(np.ascontiguousarray(variable.numpy()).tobytes())
    return digest.hexdigest()


def work(task: Task) -> None:
    """The process's whole life; prints one JSON object a line for the supervisor."""
    log = os.open(task.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    addresses = [f"127.0.0.1:{port}" for port in task.ports]
    cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": task.worker}}
    os.environ["TF_CONFIG"] = json.dumps(cluster)
    moment = task.dies_at
    if moment is not None:

        def open_dying(url: str, options: dict[str, Any] | None = None, tell: Tell = tell_nobody) -> Store:
            return _DyingStore(open_store(url, options, tell), moment)

        vars(ckptflow.job.session)["open_store"] = open_dying
    try:
        _run(task)
    except (tf.errors.OpError, ckptflow.PeerError) as error:
        _say(event="left", why=type(error).__name__)
        sys.exit(3)


def _run(task: Task) -> None:
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        state = tf.Module()
        state.weights = [tf.Variable(tf.zeros([LENGTH])) for _ in range(3)]
        state.frozen = tf.Variable(tf.zeros([FROZEN_LENGTH]), trainable=False)
        state.step = tf.Variable(0, dtype=tf.int64)
    variables = [*state.weights, state.frozen, state.step]
    with ckptflow.CheckpointManager(
        task.url,
        {"state": state},
        strategy=strategy,
        keep=[ckptflow.KeepLast(2), ckptflow.KeepEvery(steps=40)],
        storage_options=task.storage_options,
        shard_bytes=1 << 16,
        memory_budget_bytes=1 << 18,
        commit_timeout_s=20,
    ) as manager:
        _say(event="begins")
        restored = manager.restore_latest()
        _check_restored(restored, variables)
        first = restored.step + 1 if restored else 1
        for step in range(first, first + task.saves):
            _advance(state, step)
            _say(event="saving", step=step)
            pending = manager.save(step, metadata={"digest": digest_of(variables)})
            if step % 2:  # else the next save goes on while this one is under way
                manager.wait()
                _say(event="acknowledged", step=pending.step)
    _say(event="acknowledged", step=step)
    _say(event="finished")


def _advance(state: Any, step: int) -> None:
    """What training does: the next values follow from these and from the step."""
    change = np.random.default_rng(step).random(LENGTH, np.float32)
    for variable in state.weights:
        variable.assign(variable.numpy() * np.float32(0.5) + change)
    if step % FROZEN_FOR == 1:
        state.frozen.assign(np.random.default_rng(step).random(FROZEN_LENGTH, np.float32))
    state.step.assign(step)


def _check_restored(restored: ckptflow.Checkpoint | None, variables: list[Any]) -> None:
    if restored is None:
        _say(event="restored", step=0, incarnation=0)
        return
    if digest_of(variables) != restored.metadata["digest"]:
        _say(event="wrong", step=restored.step, incarnation=restored.incarnation)
        sys.exit(4)
    _say(event="restored", step=restored.step, incarnation=restored.incarnation)


def _say(**event: Any) -> None:
    print(json.dumps(event), flush=True)
