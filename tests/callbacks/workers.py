"""The job of two workers under MultiWorkerMirroredStrategy: both are killed at once, inside an epoch."""

from __future__ import annotations

import json
import os
from typing import Any

import tensorflow as tf

from tests.callbacks.jobs import ROOT, Job, run_under


def stopper(keras: Any) -> list[Any]:
    return [keras.callbacks.EarlyStopping(monitor="loss", patience=50, restore_best_weights=True)]


JOB = Job("workers", old=True, callbacks=stopper)


def main() -> None:
    """KILL_AFTER: after how many batches to die. Without it, the job goes on to its end, and is run uninterrupted."""
    tf.config.experimental.enable_op_determinism()
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    worker = strategy.cluster_resolver.task_id
    kill_after = os.environ.get("KILL_AFTER")
    found = [run_under(strategy, JOB, ROOT / "run", int(kill_after) if kill_after else None)]
    found.append(run_under(strategy, JOB, ROOT / "reference", None))
    (ROOT / f"{worker}.json").write_text(json.dumps(found))
