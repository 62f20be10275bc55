"""Two workers, of which only the first one makes a manager, and waits for the other in `restore_latest`."""

from __future__ import annotations

import os
import signal
import time

import tensorflow as tf

import ckptflow


def set_handler() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(9))


def main() -> None:
    if os.environ["CASE"] == "a handler from before":
        set_handler()
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        state = {"value": tf.Variable(1.0)}  # all workers together
    if strategy.cluster_resolver.task_id == 1:
        print("waits", flush=True)
        while True:
            time.sleep(1)
    if os.environ["CASE"] == "a handler":
        set_handler()
    manager = ckptflow.CheckpointManager(os.environ["ROOT"], state, strategy=strategy)
    print("waits", flush=True)
    manager.restore_latest()
