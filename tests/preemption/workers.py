"""What the worker processes of test_workers.py run: life after life on one root, each ended by a real SIGTERM.

LIVES names them, "step:1,restore:0": where a worker is when it is told, and which one is told. A life begins with a
restore that must give exactly the step at which the life before was left. What must last until a worker has heard that
it is told lasts until there is a file in HEARD of the life's number.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import time
from pathlib import Path
from typing import Any

import tensorflow as tf

import ckptflow
from ckptflow.preemption import notices
from tests.waiting import HANG_S, until

logging.basicConfig(level=logging.WARNING)
notices._LAST_WORDS_S = HANG_S
# Before anything else touches TensorFlow.
strategy = tf.distribute.MultiWorkerMirroredStrategy()
worker = strategy.cluster_resolver.task_id


class Life:
    """One life: trains until told to leave; the only variable counts its steps, over all lives."""

    def __init__(self, number: int, kind: str, is_told: bool) -> None:
        self.name = f"life {number}"
        self.heard = Path(os.environ["HEARD"]) / str(number)
        self.kind = kind
        self.is_told = is_told
        self.watcher: ckptflow.PreemptionWatcher | None = None
        with strategy.scope():
            self.count = tf.Variable(0.0)
        self.train_step = tf.function(self._train_step)

    def run(self) -> None:
        state = {"count": self.count, "restoring": self}
        keep = ckptflow.KeepLast(100)
        with (
            ckptflow.CheckpointManager(os.environ["ROOT"], state, strategy=strategy, keep=keep) as manager,
            ckptflow.PreemptionWatcher(manager) as self.watcher,
        ):
            print(f"{self.name}: listens", flush=True)
            restored = manager.restore_latest()
            start = restored.step if restored else 0
            assert self.counted() == start
            print(f"{self.name}: begins after step {start}", flush=True)
            try:
                self.train(manager, self.watcher, start)
            except SystemExit:
                print(f"{self.name}: left at step {self.counted()}", flush=True)
                raise

    def train(self, manager: ckptflow.CheckpointManager, watcher: ckptflow.PreemptionWatcher, start: int) -> None:
        for step in itertools.count(start + 1):
            seconds, waits = self.seconds_of(step - start), self.waits(step - start)
            self.train_step(tf.constant(seconds, tf.float64), tf.constant(waits))
            if self.kind == "save" and step == start + 2:
                self.save_slowly(manager, step)
            if self.kind == "save before" and step == start + 2:
                self.save_slowly(manager, step)
                continue  # the next check is the next step's
            watcher.check(step)
            if self.kind == "evaluation" and step == start + 2:
                self.evaluate(watcher, step, batches=10**9)
            if self.kind == "anywhere":
                if step % 7 == 0:
                    manager.save(step)
                if step % 10 == 0:
                    self.evaluate(watcher, step, batches=step % 30)
            if self.kind == "hang" and step == start + 2:
                print(f"{self.name}: about to hang", flush=True)
                if worker == 0:
                    time.sleep(3600)  # the other one waits for it in a collective

    def seconds_of(self, steps_done: int) -> float:
        return steps_done % 5 * 0.05 if self.kind == "anywhere" else 0.0

    def waits(self, steps_done: int) -> bool:
        """A long third step on the worker that is told; in C++, and the others wait for it in a collective."""
        waits = self.kind == "step" and steps_done == 3 and self.is_told
        if waits:
            self.tell_me()
        return waits

    def _train_step(self, seconds: Any, waits: Any) -> None:
        if self.kind == "trace":  # this is Python, run once
            self.wait_until_told()
        end = tf.timestamp() + seconds

        def goes_on(count: Any) -> Any:
            path = tf.strings.regex_replace(
                tf.strings.as_string(count), ".+", str(self.heard)
            )  # a constant is read once
            return tf.timestamp() < end or (waits and tf.size(tf.io.matching_files(path)) == 0)

        tf.while_loop(goes_on, lambda count: count + 1, [tf.constant(0)])

        def on_replica() -> None:
            one = tf.distribute.get_replica_context().all_reduce("MEAN", tf.constant(1.0))
            self.count.assign_add(one)

        strategy.run(on_replica)

    def evaluate(self, watcher: ckptflow.PreemptionWatcher, step: int, batches: int) -> None:
        for batch in range(batches):
            time.sleep(0.02)
            if batch == 5 and self.is_told:
                self.tell_me()
            watcher.check(step)

    def save_slowly(self, manager: ckptflow.CheckpointManager, step: int) -> None:
        create = manager.session.store.create

        def slowly(key: str, data: memoryview) -> None:
            until(self.heard.exists, HANG_S)
            create(key, data)

        manager.session.store.create = slowly  # type: ignore[method-assign]
        manager.save(step)
        self.wait_until_told()

    # The state's entry "restoring"

    def get_state(self) -> None:
        return None

    def set_state(self, _: None) -> None:
        if self.kind == "restore":
            self.wait_until_told()

    # Being told

    def tell_me(self) -> None:
        print(f"{self.name}: tell me", flush=True)

    def wait_until_told(self) -> None:
        if not self.is_told or self.watcher is None:
            return
        self.tell_me()
        watcher = self.watcher
        until(lambda: watcher.is_preempted, HANG_S)

    def counted(self) -> int:
        return int(self.count.values[0].numpy())


def live() -> None:
    lives = os.environ["LIVES"].split(",")
    for number, life in enumerate(lives):
        kind, _, who = life.partition(":")
        is_last = number == len(lives) - 1
        with contextlib.nullcontext() if is_last else contextlib.suppress(SystemExit):
            Life(number, kind, who in (str(worker), "all")).run()
            raise RuntimeError("a life ended without being told")
