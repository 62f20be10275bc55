"""What the processes of `test_servers` run."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import tensorflow as tf

from ckptflow import CheckpointManager, PeerError

KILLED = Path(os.environ.get("KILLED", "."))


def lose_one() -> None:
    """The chief saves; then a server is killed, and the next save says which."""
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if resolver.task_type != "chief":
        tf.distribute.Server(resolver.cluster_spec(), job_name=resolver.task_type, task_index=resolver.task_id).join()
    partitioner = tf.distribute.experimental.partitioners.FixedShardsPartitioner(3)
    strategy = tf.distribute.ParameterServerStrategy(resolver, variable_partitioner=partitioner)
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
        assert manager.restore(1).step == 1
        np.testing.assert_array_equal(tf.convert_to_tensor(variable).numpy(), np.arange(3_000_000, dtype=np.float32))
        print("saved", flush=True)
        while not KILLED.exists():
            time.sleep(0.05)
        try:
            manager.save(3)
            raise SystemExit("nothing was raised")
        except PeerError as error:
            print("raised", error, flush=True)
