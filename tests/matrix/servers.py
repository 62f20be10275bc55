"""What the processes of `test_servers` run."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from ckptflow import CheckpointManager, PeerError, PreemptionWatcher, UnsupportedStateError, UsageError, open_checkpoint
from tests.waiting import HANG_S, until

KILLED = Path(os.environ.get("KILLED", "."))


def lose_one() -> None:
    """The chief saves; then a server is killed, and the next save says which."""
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if resolver.task_type != "chief":
        tf.distribute.Server(resolver.cluster_spec(), job_name=resolver.task_type, task_index=resolver.task_id).join()
    partitioner = tf.distribute.experimental.partitioners.FixedShardsPartitioner(3)
    strategy = tf.distribute.ParameterServerStrategy(resolver, variable_partitioner=partitioner)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    _leave_while_steps_run(strategy, coordinator)
    _what_is_no_tensor_of_parts(strategy)
    with strategy.scope():
        variable = tf.Variable(tf.range(3_000_000, dtype=tf.float32))
    # Less memory than one part takes: it is fetched in pieces.
    manager = CheckpointManager(
        os.environ["ROOT"], {"v": variable}, strategy=strategy, shard_bytes=2**20, memory_budget_bytes=2**21
    )
    with manager:
        manager.save(1).result()
        for part in variable.variables:
            part.assign_add(tf.ones_like(part))
        manager.save(2).result()
        assert manager.rollback(1).step == 1
        np.testing.assert_array_equal(tf.convert_to_tensor(variable).numpy(), np.arange(3_000_000, dtype=np.float32))
        print("ready to lose one", flush=True)
        while not KILLED.exists():
            time.sleep(0.05)
        for call in (manager.save, manager.restore):
            try:
                call(3 if call == manager.save else 1)
                raise SystemExit("nothing was raised")
            except PeerError as error:
                print("raised", error, flush=True)


def _leave_while_steps_run(strategy: Any, coordinator: Any) -> None:
    """Steps are scheduled and not waited for: what is saved is of one step all the same, of the one that it says."""
    with strategy.scope():
        parts, count = tf.Variable(tf.zeros([6, 2])), tf.Variable(0, dtype=tf.int64)

    @tf.function
    def step() -> None:
        def on_worker() -> None:
            for part in parts.variables:
                part.assign_add(tf.ones_like(part))
            slow = tf.random.normal([500, 500])
            for _ in tf.range(20):
                slow = tf.matmul(slow, slow) / 500.0
            count.assign_add(1 + tf.cast(0 * slow[0, 0], tf.int64))

        strategy.run(on_worker)

    root = os.environ["ROOT"] + "-left"
    manager = CheckpointManager(root, {"parts": parts, "count": count}, strategy=strategy)
    watcher = PreemptionWatcher(manager)
    left_at = 0
    with contextlib.suppress(SystemExit), manager, watcher:
        for left_at in range(1, 200):
            coordinator.schedule(step)
            if left_at == 10:
                os.kill(os.getpid(), signal.SIGTERM)
                until(lambda: watcher.is_preempted, HANG_S)
            watcher.check(left_at)
    assert 10 <= left_at < 20, left_at
    with open_checkpoint(root) as checkpoint:
        assert checkpoint.checkpoint.step == left_at
        assert checkpoint["count"] == left_at
        assert set(np.unique(checkpoint["parts"])) == {left_at}


def _what_is_no_tensor_of_parts(strategy: Any) -> None:
    """Factored slots are tensors of their own; strings in parts, and another strategy, are refused by name."""
    import tf_keras

    with strategy.scope():
        kernel, words = tf.Variable(tf.ones([6, 4]), name="k"), tf.Variable(["a", "b", "c", "d"])
        optimizer = tf_keras.optimizers.Adafactor()
        optimizer.build(kernel.variables)
    root = os.environ["ROOT"] + "-parts"
    with CheckpointManager(root, {"k": kernel, "o": optimizer}, strategy=strategy) as manager:
        manager.save(1)
    with open_checkpoint(root) as checkpoint:
        assert checkpoint["k"].shape == (6, 4)
        assert {name for name in checkpoint if name.startswith("o/r/k")} == {f"o/r/k/{number}" for number in range(3)}
    for state, under, kind in (
        ({"words": words}, strategy, UnsupportedStateError),
        ({"kernel": kernel}, tf.distribute.MirroredStrategy(["CPU:0"]), UsageError),
        ({"kernel": kernel}, None, UsageError),
    ):
        try:
            CheckpointManager(root + "-refused", state, strategy=under)
            raise SystemExit("nothing was raised")
        except kind as error:
            if not str(error).startswith(next(iter(state))):
                raise
