"""Training jobs that are killed and started again, as `tests.processes` runs them: each of these is one process's life.

A model records in its own state which elements it was trained on at each batch: what a killed run did in vain is rolled
back with the rest, so the record at the end is what the weights were made of.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

import ckptflow

ELEMENTS, BATCH, EPOCHS = 41, 4, 3
BATCHES = -(-ELEMENTS // BATCH)
ROOT = Path(os.environ.get("ROOT", "."))


@dataclass(frozen=True)
class Job:
    """One run of `fit`: which Keras, how the data come, when it saves, and the arguments of compile and fit."""

    name: str
    old: bool = False  # tf_keras
    replicas: int = 1  # of MirroredStrategy
    data: Callable[[], Any] = field(default=lambda: dataset().shuffle(16, seed=3).batch(BATCH).prefetch(2))
    every: dict[str, Any] = field(default_factory=lambda: {"every_steps": 3})
    compile: dict[str, Callable[[Any], Any]] = field(default_factory=dict)  # of the Keras
    fit: dict[str, Any] = field(default_factory=dict)
    callbacks: Callable[[Any], list[Any]] = field(default=lambda keras: [])
    between_epochs: bool = False  # where to be killed

    @property
    def execution(self) -> int:
        """Batches in one."""
        return int(self.compile["steps_per_execution"](None)) if "steps_per_execution" in self.compile else 1


def dataset() -> Any:
    """Rows of which the first column tells which it is."""
    options = tf.data.Options()
    options.autotune.enabled = False  # else the end of an iterator may wait for the autotuner's next turn, up to 60 s
    return tf.data.Dataset.from_tensor_slices(arrays()).with_options(options)


def arrays() -> tuple[Any, Any]:
    rng = np.random.default_rng(5)
    features = rng.standard_normal((ELEMENTS, 4)).astype(np.float32)
    labels = (features.sum(axis=1, keepdims=True) + rng.standard_normal((ELEMENTS, 1)) / 2).astype(np.float32)
    return np.concatenate([np.arange(ELEMENTS, dtype=np.float32)[:, None], features], axis=1), labels


def keras_of(old: bool) -> Any:
    if old:
        import tf_keras

        return tf_keras
    import keras

    return keras


def make_model(keras: Any, compile_arguments: dict[str, Any]) -> Any:
    rows = EPOCHS * (BATCHES + 3)
    summed = tf.VariableAggregation.SUM if keras.__name__ == "tf_keras" else "sum"
    first = tf.VariableAggregation.ONLY_FIRST_REPLICA if keras.__name__ == "tf_keras" else "only_first_replica"

    class Recorder(keras.layers.Layer):  # type: ignore[misc]
        """Takes the first column off; counts, for each batch that was trained, each element that was in it."""

        def build(self, shape: Any) -> None:
            how = {"initializer": "zeros", "trainable": False, "dtype": "float32"}
            self.seen = self.add_weight(name="seen", shape=(rows, ELEMENTS), aggregation=summed, **how)
            self.batch = self.add_weight(name="batch", shape=(), aggregation=first, **how)

        def call(self, inputs: Any, training: bool = False) -> Any:
            if training:
                row = tf.one_hot(tf.cast(tf.convert_to_tensor(self.batch), tf.int32), rows)
                elements = tf.reduce_sum(tf.one_hot(tf.cast(inputs[:, 0], tf.int32), ELEMENTS), axis=0)
                self.seen.assign_add(row[:, None] * elements[None, :])
                self.batch.assign_add(1.0)
            return inputs[:, 1:]

    model = keras.Sequential([keras.Input((5,)), Recorder(name="recorder"), keras.layers.Dense(1)])
    arguments = {"optimizer": keras.optimizers.Adam(0.02), "loss": "mse", "metrics": ["mae"], "jit_compile": False}
    model.compile(**arguments | {name: make(keras) for name, make in compile_arguments.items()})
    return model


class Killer:
    """Ends it once a checkpoint is committed and `batches` executions have ended."""

    def __init__(
        self, manager: ckptflow.CheckpointManager, batches: int, between_epochs: bool, die: Callable[[], None]
    ) -> None:
        self._manager, self._to_go, self._between, self._die = manager, batches, between_epochs, die

    def after_batch(self) -> None:
        self._to_go -= 1
        if not self._between:
            self._kill_if_due()

    def after_epoch(self) -> None:
        if self._between:
            self._kill_if_due()

    def _kill_if_due(self) -> None:
        if self._to_go <= 0 and self._manager.latest() is not None:
            self._die()


def kill_myself() -> None:
    """Without a word."""
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def run(job: Job, root: Path, kill_after: int | None) -> dict[str, Any]:
    """Runs the job to its end, or to where it is killed; returns all that a run leaves behind."""
    strategy = tf.distribute.get_strategy()
    if job.replicas > 1:
        strategy = tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(job.replicas)])
    return run_under(strategy, job, root, kill_after)


def run_under(
    strategy: Any, job: Job, root: Path, kill_after: int | None, die: Callable[[], None] = kill_myself
) -> dict[str, Any]:
    keras = keras_of(job.old)
    keras.utils.set_random_seed(11)
    with strategy.scope():
        model = make_model(keras, job.compile)
    hooks: list[tuple[str, int]] = []
    with ckptflow.CheckpointManager(root, {"model": model}, strategy=strategy) as manager:
        killer = Killer(manager, kill_after or 0, job.between_epochs, die)

        def after_batch(batch: int, logs: Any) -> None:
            hooks.append(("batch", batch))
            if kill_after is not None:
                killer.after_batch()

        def after_epoch(epoch: int, logs: Any) -> None:
            hooks.append(("epoch", epoch))
            if kill_after is not None:
                killer.after_epoch()

        others = job.callbacks(keras)
        callback = ckptflow.CheckpointCallback(manager, **job.every)
        spy = keras.callbacks.LambdaCallback(on_train_batch_end=after_batch, on_epoch_end=after_epoch)
        data = job.data()
        arguments: dict[str, Any] = {"epochs": EPOCHS, "verbose": 0, **job.fit}
        if isinstance(data, tuple):
            history = model.fit(*data, batch_size=BATCH, callbacks=[callback, *others, spy], **arguments)
        else:
            history = model.fit(data, callbacks=[callback, *others, spy], **arguments)
    return {
        "values": [_value(v).tolist() for v in [*model.weights, *_variables(model.optimizer)]],
        "seen": _value(model.layers[0].seen).astype(int).tolist(),
        "history": {name: [float(value) for value in values] for name, values in history.history.items()},
        "epochs": list(history.epoch),
        "hooks": hooks,
        "others": [_attributes(other) for other in others],
    }


def _variables(optimizer: Any) -> list[Any]:
    variables = optimizer.variables
    return list(variables() if callable(variables) else variables)


def _value(variable: Any) -> Any:
    return np.asarray(variable.numpy())


def _attributes(callback: Any) -> dict[str, Any]:
    names = ("wait", "best", "best_epoch", "stopped_epoch", "cooldown_counter")
    return {name: float(getattr(callback, name)) for name in names if getattr(callback, name, None) is not None}


# Lives


def load() -> None:
    """Imports, before the forks, all that takes long to import."""
    for old in (False, True):
        keras_of(old)
    for name in ckptflow.__all__:
        getattr(ckptflow, name)


def in_a_child(live: Callable[[], None]) -> int:
    """Forks a process that lives and ends; returns its exit code, negative where a signal ended it.

    TensorFlow must have been imported, which takes seconds, and not been used, which starts its threads.
    """
    if context._context is not None and context._context._context_handle is not None:
        raise RuntimeError("TensorFlow is at work: its threads would be missing in a child")
    child = os.fork()
    if child == 0:
        try:
            live()
            sys.stdout.flush()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
