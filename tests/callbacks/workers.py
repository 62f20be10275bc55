"""The job of two workers under MultiWorkerMirroredStrategy: both are killed at once, inside an epoch."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import tensorflow as tf

from tests.callbacks.jobs import ROOT, Job, in_a_child, load, run_under


def stopper(keras: Any) -> list[Any]:
    return [keras.callbacks.EarlyStopping(monitor="loss", patience=50, restore_best_weights=True)]


def logger_of_the_chief(keras: Any) -> list[Any]:
    """A callback that only one worker has, as TensorBoard is: it has an `on_train_end`."""
    is_chief = tf.distribute.get_strategy().cluster_resolver.task_id == 0
    return [keras.callbacks.CSVLogger(str(ROOT / "log.csv"))] if is_chief else []


JOB = Job("workers", old=True, callbacks=stopper)
UNLIKE = Job("unlike", old=True, callbacks=logger_of_the_chief, every={"every_epochs": 1}, fit={"epochs": 1})


def live(kill_after: int | None) -> None:
    """One worker's life; the last one does the job uninterrupted, too."""
    tf.config.experimental.enable_op_determinism()
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    found = [run_under(strategy, JOB, ROOT / "run", kill_after)]
    found.append(run_under(strategy, JOB, ROOT / "reference", None))
    with strategy.scope():
        run_under(strategy, UNLIKE, ROOT / "unlike", None)
    (ROOT / f"{strategy.cluster_resolver.task_id}.json").write_text(json.dumps(found))


def main() -> None:
    """Both workers die after KILL_AFTER batches, and live again under the other TF_CONFIG."""
    load()
    if in_a_child(lambda: live(int(os.environ["KILL_AFTER"]))) != -signal.SIGKILL:
        sys.exit("it was not killed")
    config = json.loads(os.environ["TF_CONFIG"])
    config["cluster"] = {"worker": [f"127.0.0.1:{port}" for port in os.environ["PORTS"].split(",")]}
    os.environ["TF_CONFIG"] = json.dumps(config)
    sys.exit(in_a_child(lambda: live(None)))
