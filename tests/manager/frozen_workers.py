"""What the worker processes of test_unchanged_workers.py run: a frozen backbone, and a head that is trained."""

from __future__ import annotations

import os
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from ckptflow import CheckpointManager, KeepLast
from ckptflow.errors import StorageUnavailableError
from ckptflow.events import Event, ShardsWritten
from ckptflow.testing import FaultyStore

ROOT = Path(os.environ.get("ROOT", "."))
SIDE = 1024
# Before anything else touches TensorFlow.
strategy = tf.distribute.MultiWorkerMirroredStrategy()
worker = strategy.cluster_resolver.task_id


class Job:
    """One run attempt: its state, its manager, and what this worker has sent in each save."""

    def __init__(self, *, reuse_unchanged: bool = True) -> None:
        on_read = {"synchronization": tf.VariableSynchronization.ON_READ, "aggregation": tf.VariableAggregation.SUM}
        with strategy.scope():
            self.backbone = keras.Sequential([keras.Input((SIDE,)), keras.layers.Dense(SIDE, name="dense")])
            self.head = tf.Variable(tf.zeros([50_000]))
            self.seen = tf.Variable(tf.zeros([1000]), trainable=False, **on_read)
        self.backbone.trainable = False
        self.told: list[Event] = []
        state = {"backbone": self.backbone, "head": self.head, "seen": self.seen}
        self.manager = CheckpointManager(
            ROOT,
            state,
            strategy=strategy,
            keep=[KeepLast(3)],
            shard_bytes=2**20,
            memory_budget_bytes=2**22,
            reuse_unchanged=reuse_unchanged,
            on_event=self.told.append,
        )
        self.store = FaultyStore(self.manager.session.store.store)
        self.manager.session.store.store = self.store

    def fill(self) -> None:
        """A backbone that was trained elsewhere, the same on every worker."""
        kernel = np.random.default_rng(7).random((SIDE, SIDE), np.float32)
        self.backbone.layers[0].kernel.assign(kernel)

    def save(self, step: int) -> float:
        """Trains and saves; the share of its bytes that this worker has sent."""
        self.head.assign(tf.fill([50_000], float(step)))
        self.seen.values[0].assign(tf.fill([1000], float(step + worker)))
        self.manager.save(step).result()
        self.manager.wait()
        (written,) = (each for each in self.told if isinstance(each, ShardsWritten) and each.step == step)
        self.told.clear()
        return 1 - written.copied_bytes / written.size_bytes

    def check_backbone(self) -> None:
        expected = np.random.default_rng(7).random((SIDE, SIDE), np.float32)
        kernel = self.backbone.layers[0].kernel._value.values[0].numpy()
        np.testing.assert_array_equal(kernel, expected)


def first() -> None:
    """Each worker writes its part once for each family, and copies it from then on; one whose copies fail writes it,
    and the other one copies. At a rollback what it restored is written whole; what comes next is copied from both.
    """
    job = Job()
    job.fill()
    job.manager.restore_latest()
    assert [job.save(step) == 1 for step in range(1, 5)] == [True, True, False, False]
    if worker == 1:
        job.store.fail("copy", StorageUnavailableError("503 from the test"), times=100)
    assert (job.save(5) == 1) is (worker == 1)
    job.store.faults.clear()
    assert job.save(6) < 0.2
    assert job.save(7) < 0.2
    job.manager.rollback(6)
    assert [each.copied_bytes for each in job.told if isinstance(each, ShardsWritten)] == [0]
    job.told.clear()
    job.check_backbone()
    assert all(job.save(step) < 0.2 for step in range(7, 10))
    job.manager.close()
    print("well")


def again() -> None:
    """The same number of workers: the first save copies."""
    job = Job()
    job.manager.restore_latest()
    job.check_backbone()
    assert job.save(10) < 0.2
    assert job.save(11) < 0.2
    job.manager.close()
    print("well")


def more() -> None:
    """Another number of workers, whose shards are others: once for each family anew."""
    job = Job()
    job.manager.restore_latest()
    job.check_backbone()
    shares = [job.save(step) for step in range(12, 15)]
    assert [share > 0.9 for share in shares] == [True, True, False], shares
    job.manager.close()
    print("well")


def differ() -> None:
    """One that is told to send everything does, and the others copy; where that is the chief, nobody copies."""
    for number, sender in enumerate((1, 0)):
        job = Job(reuse_unchanged=worker != sender)
        job.fill()
        job.manager.restore_latest()
        for step in range(20 + 4 * number, 24 + 4 * number):
            share = job.save(step)
        assert (share == 1) is (worker == 1 or sender == 0), share
        job.manager.close()
    print("well")
