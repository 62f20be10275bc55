"""What each real process of the calibration runs: it saves and restores, and prints how long that took."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import sys
import time
from typing import Any

import tensorflow as tf

from ckptflow import CheckpointManager, KeepLast

ROUNDS = 3


def save_and_restore() -> None:
    """As one of the workers of TF_CONFIG: the seconds of each save and of each restore, as JSON, on the last line."""
    given = json.loads(os.environ["CALIBRATION"])
    strategy = tf.distribute.MultiWorkerMirroredStrategy() if given["workers"] > 1 else None
    module = tf.Module()
    with strategy.scope() if strategy is not None else contextlib.nullcontext():
        module.weights = [tf.Variable(tf.ones(shape)) for shape in given["shapes"]]
    options: dict[str, Any] = {
        "strategy": strategy,
        "keep": KeepLast(100),
        "shard_bytes": given["shard_bytes"],
        "memory_budget_bytes": (given["streams"] + 1) * given["shard_bytes"],
        "concurrency": given["streams"],
        "storage_options": given["storage_options"],
    }
    if "restore_from" in inspect.signature(CheckpointManager).parameters:
        options["restore_from"] = "storage"  # what is compared is that each reads all
    saves, restores = [], []
    with CheckpointManager(given["url"], {"m": module}, **options) as manager:
        manager.restore_latest()
        for step in range(1 + ROUNDS):
            manager.wait()
            began_s = time.monotonic()
            pending = manager.save(step)
            if manager.session.cluster.is_chief:
                pending.result()
            saves.append(time.monotonic() - began_s)
    for _ in range(ROUNDS):
        with CheckpointManager(given["url"], {"m": module}, **options) as manager:
            manager.wait()
            began_s = time.monotonic()
            manager.restore_latest()
            restores.append(time.monotonic() - began_s)
    sys.stdout.write(json.dumps({"saves_s": saves[1:], "restores_s": restores}) + "\n")
