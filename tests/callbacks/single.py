"""Jobs of one process, each to be killed once: inside an epoch, or between two.

The plain fit is killed as an example, in `tests/examples/test_fit.py`; one with several batches in one execution
crashes in `test_resume.py`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from typing import Any

import tensorflow as tf

from tests.callbacks.jobs import BATCHES, EPOCHS, ROOT, Job, in_a_child, load, run


def stoppers(keras: Any) -> list[Any]:
    return [
        keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=1, min_delta=1.0, factor=0.3),
        keras.callbacks.EarlyStopping(monitor="loss", patience=2, min_delta=1.5, restore_best_weights=True),
    ]


JOBS = [
    Job("stopped", callbacks=stoppers, every={"every_epochs": 1}, between_epochs=True, fit={"epochs": 9}),
    Job("mirrored", replicas=2),
    Job("old", old=True),
]


def live(to_die: str | None, rng: random.Random) -> None:
    """Does all jobs that are not done yet, up to the one in which to die; the last life does all uninterrupted, too."""
    tf.config.experimental.enable_op_determinism()
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    for job in JOBS:
        kill_after = -(-rng.randint(4, EPOCHS * BATCHES - 8) // job.execution)
        result = ROOT / f"{job.name}.json"
        if not result.exists():
            result.write_text(json.dumps(run(job, ROOT / job.name, kill_after if job.name == to_die else None)))
    for job in () if to_die else JOBS:
        expected = run(job, ROOT / f"{job.name}-reference", None)
        (ROOT / f"{job.name}-reference.json").write_text(json.dumps(expected))


def main() -> None:
    """One process after the other: each but the last dies in another of the jobs, the next one goes on with it."""
    load()
    rng = random.Random(int(os.environ["SEED"]))
    for to_die in [*(job.name for job in JOBS), None]:
        seed = rng.randrange(10**6)
        code = in_a_child(lambda to_die=to_die, seed=seed: live(to_die, random.Random(seed)))  # type: ignore[misc]
        if code != (0 if to_die is None else -signal.SIGKILL):
            sys.exit(f"the life that was to end in {to_die} ended with {code}")
