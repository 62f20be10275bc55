"""What the process of `test_steady` runs: a job that trains and saves many times, and then restores many times."""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import tracemalloc
from collections import Counter
from typing import Any

import tensorflow as tf

import ckptflow
from ckptflow import CheckpointManager, KeepLast

URL, OPTIONS = os.environ.get("URL", ""), json.loads(os.environ.get("STORAGE_OPTIONS", "{}"))
SAVES, RESTORES = int(os.environ.get("SAVES", "200")), int(os.environ.get("RESTORES", "30"))
WARM_SAVES, WARM_RESTORES = SAVES // 5, RESTORES // 3  # TensorFlow's and clients' own pools fill in these
_OURS = os.path.dirname(ckptflow.__file__)


def run() -> None:
    """Prints what grew, as JSON: between the end of the warm-up and the end, of the saves and of the restores."""
    import keras

    model = keras.Sequential([keras.Input([32]), keras.layers.Dense(512, "relu"), keras.layers.Dense(1)])
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    inputs, targets = tf.random.normal([16, 32]), tf.random.normal([16, 1])

    @tf.function
    def train_step() -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(inputs, training=True) - targets))
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    state = {"model": model, "optimizer": optimizer}
    found: dict[str, Any] = {}
    with CheckpointManager(URL, state, storage_options=OPTIONS, keep=KeepLast(2)) as manager:

        def save(step: int) -> None:
            train_step()
            manager.save(step, metrics={"step": step})

        found["saves"] = _growth(save, SAVES, WARM_SAVES, manager.wait)

    def restore(number: int) -> None:
        with CheckpointManager(URL, state, storage_options=OPTIONS, keep=KeepLast(2)) as manager:
            restored = manager.restore_latest()
        if restored is None or restored.step != SAVES:
            raise SystemExit(f"restored {restored}")

    found["restores"] = _growth(restore, RESTORES, WARM_RESTORES, lambda: None)
    sys.stdout.write(json.dumps(found) + "\n")


def _growth(do: Any, count: int, warm_count: int, settle: Any) -> dict[str, Any]:
    """What grows while `do(number)` is called for `warm_count` < number <= `count`."""
    for number in range(1, warm_count + 1):
        do(number)
    settle()
    tracemalloc.start(1)
    try:
        do(warm_count + 1)  # what is made and replaced each time is then traced
        settle()
        before = _look()
        for number in range(warm_count + 2, count + 1):
            do(number)
        settle()
        after = _look()
    finally:
        tracemalloc.stop()
    lines, objects = after.pop("our_lines"), after.pop("objects")
    lines.subtract(before.pop("our_lines"))
    objects.subtract(before.pop("objects"))
    calls = count - warm_count - 1
    return {
        **{what: after[what] - before[what] for what in after},
        "calls": calls,
        "our_bytes": sum(lines.values()),
        "our_lines": dict(lines.most_common(5)),
        "objects": {kind: number for kind, number in objects.most_common(8) if number > calls // 4},
    }


def _look() -> dict[str, Any]:
    gc.collect()
    with open("/proc/self/statm") as file:
        resident_bytes = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {
        "resident_mib": resident_bytes / 2**20,
        "threads": threading.active_count(),
        "tasks": len(os.listdir("/proc/self/task")),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "objects": Counter(_kind(type(each)) for each in gc.get_objects()),
        "our_lines": _our_lines(),
    }


def _our_lines() -> Counter[str]:
    """The bytes that lines of ckptflow have allocated and that are still there."""
    snapshot = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, f"{_OURS}/*")])
    return Counter({str(found.traceback): found.size for found in snapshot.statistics("lineno")})


def _kind(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"  # either may be anything at all
