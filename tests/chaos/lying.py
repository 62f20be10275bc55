"""A job of three workers that restore together, of which one does something else at some moment of it.

`lies` restores again and again in one job, with a peer that gives wrong bytes, fewer, others, none, or slowly, or does
not know the token: every worker has right values each time. `ends` restores once, with one that is killed or stopped:
the others have right values, or are told of it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from ckptflow import CheckpointManager, PeerError
from ckptflow.events import Event, Restored
from ckptflow.peers import link, listener, pulls
from ckptflow.peers.loans import Loans
from tests.edge import programs

WORKERS = 3
LENGTHS = (400_000, 400_000, 300_000, 100_000, 10)
SENT_BYTES = 3_200_000  # by each worker in a restore, about
GETS = 8  # by each worker
LIES = ("flips", "cuts", "other bytes", "1 KiB/s", "silent", "wrong token")
ENDS = ("killed", "stopped")
LIMIT_S = 1.0  # in place of five seconds


@dataclass(frozen=True)
class Case:
    """Worker `victim` does `what` after so many bytes that it has sent, or at its so manieth request to the storage."""

    what: str
    victim: int
    sent_bytes: int
    gets: int

    @classmethod
    def of(cls, number: int, kinds: tuple[str, ...]) -> Case:
        rng = random.Random(number)
        what, victim, is_sending = kinds[number % len(kinds)], rng.randrange(WORKERS), rng.random() < 0.7
        never = 10**9
        if is_sending:
            return cls(what, victim, rng.randrange(SENT_BYTES), never)
        return cls(what, victim, never, rng.randrange(GETS))


class Lying:
    """What a worker's connections do once the moment has come."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._left_bytes = case.sent_bytes
        self._lock = threading.Lock()
        self.gets = 0

    def get(self) -> None:
        self.gets += 1
        if self.gets > self._case.gets:
            self._left_bytes = -1
            self.end()

    def end(self) -> None:
        if self._case.what == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._case.what == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)

    def send(self, connection: socket.socket, data: Any) -> None:
        with self._lock:
            self._left_bytes -= len(data)
            is_time = self._left_bytes < 0
        if not is_time:
            connection.sendall(data)
            return
        self.end()
        changed = bytearray(data)
        match self._case.what:
            case "flips":
                changed[len(changed) // 2] ^= 4
            case "cuts":
                connection.sendall(changed[: len(changed) // 2])
                connection.shutdown(socket.SHUT_RDWR)
                return
            case "other bytes" if len(changed) > 100:
                changed.reverse()
            case "1 KiB/s":
                for begin in range(0, len(changed), 256):
                    connection.sendall(changed[begin : begin + 256])
                    time.sleep(0.25)
                return
            case "silent":
                while connection.recv(1000):
                    pass
                return
        connection.sendall(changed)


class Tampered:
    """A connection of which what is sent goes another way."""

    def __init__(self, connection: socket.socket, lying: Lying) -> None:
        self._connection = connection
        self._lying = lying

    def sendall(self, data: Any) -> None:
        self._lying.send(self._connection, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def _tamper(case: Case) -> None:
    """From here on this worker is what the case says."""
    lying = Lying(case)
    serve, let_in = link.serve, listener.Listener.open

    def serve_wrongly(connection: Any, worker: int, loans: Loans, is_over: Callable[[], bool]) -> None:
        serve(Tampered(connection, lying), worker, loans, is_over)  # type: ignore[arg-type]

    listener.serve = serve_wrongly  # type: ignore[attr-defined]
    if case.what == "wrong token":
        listener.Listener.open = lambda self, token: let_in(self, bytes(32))  # type: ignore[method-assign]

    def hook(verb: str, key: str) -> None:
        if verb == "get" and "shard" in key:
            lying.get()
            time.sleep(0.01)

    programs.hook_stores(hook)


def _join() -> tuple[Any, int, tf.Module, dict[str, Any]]:
    strategy, worker = programs.join()
    module = tf.Module()
    with strategy.scope():
        module.v = [tf.Variable(tf.range(length, dtype=tf.float32) * (i + 1.0)) for i, length in enumerate(LENGTHS)]
    options = {"strategy": strategy, "shard_bytes": 2**18, "memory_budget_bytes": 2**20, "peer_timeout_s": 60.0}
    with CheckpointManager(programs.ROOT, {"m": module}, **options) as manager:
        if manager.restore_latest() is None:
            manager.save(1)
    return strategy, worker, module, options


def _restore(module: tf.Module, options: dict[str, Any]) -> Restored:
    for variable in module.v:
        variable.assign(tf.zeros_like(variable))
    told: list[Event] = []
    with CheckpointManager(programs.ROOT, {"m": module}, read_only=True, on_event=told.append, **options) as manager:
        manager.restore_latest()
    for i, variable in enumerate(module.v):
        expected = np.arange(LENGTHS[i], dtype=np.float32) * np.float32(i + 1)
        np.testing.assert_array_equal(variable.values[0].numpy(), expected)
    return next(event for event in told if isinstance(event, Restored))


def lies() -> None:
    """All cases of "CASES" (numbers), one after another."""
    _, worker, module, options = _join()
    vars(link)["SILENT_S"] = LIMIT_S
    vars(pulls)["Loans"] = partial(Loans, late_s=LIMIT_S)
    honest = link.serve, listener.Listener.open
    for number in json.loads(os.environ["CASES"]):
        case = Case.of(number, LIES)
        if worker == case.victim:
            _tamper(case)
        restored = _restore(module, options)
        print(f"right {number}: {restored.storage_bytes} {restored.peer_bytes}", flush=True)
        listener.serve, listener.Listener.open = honest  # type: ignore[attr-defined, method-assign]
        programs.hook_stores(lambda verb, key: None)
    print("well", flush=True)


def ends() -> None:
    """The case "CASE" (a number)."""
    _, worker, module, options = _join()
    case = Case.of(int(os.environ["CASE"]), ENDS)
    if worker == case.victim:
        _tamper(case)
    print("ready", flush=True)
    try:
        _restore(module, options)
    except PeerError:
        print("told", flush=True)
    print("well", flush=True)
    os._exit(0)
