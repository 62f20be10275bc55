"""What the processes of test_strategies.py run: two lives under a strategy whose workers meet in other ways."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable
from typing import Any

import tensorflow as tf

import ckptflow

logging.basicConfig(level=logging.WARNING)


def _live(strategy: Any, variable: Any, train_step: Callable[[], None], value_of: Callable[[], float]) -> None:
    """Trains until told to leave, restores what was saved into the same process, and so once more."""
    for life in (0, 1):
        with (
            ckptflow.CheckpointManager(os.environ["ROOT"], {"v": variable}, strategy=strategy) as manager,
            ckptflow.PreemptionWatcher(manager) as watcher,
        ):
            restored = manager.restore_latest()
            start = restored.step if restored else 0
            assert value_of() == start
            print(f"life {life}: begins after step {start}", flush=True)
            try:
                for step in itertools.count(start + 1):
                    train_step()
                    watcher.check(step)
                    if step == start + 5:
                        print(f"life {life}: tell me", flush=True)
            except SystemExit:
                print(f"life {life}: left at step {value_of():.0f}", flush=True)
                if life == 1:
                    raise
        train_step()  # what the next life must undo


def parameter_server() -> None:
    """The chief runs the program; the others serve."""
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if resolver.task_type != "chief":
        tf.distribute.Server(
            resolver.cluster_spec(), job_name=resolver.task_type, task_index=resolver.task_id, protocol="grpc"
        ).join()
    partitioner = tf.distribute.experimental.partitioners.FixedShardsPartitioner(2)
    strategy = tf.distribute.ParameterServerStrategy(resolver, variable_partitioner=partitioner)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    with strategy.scope():
        kernel = tf.Variable(tf.zeros([8, 2]), name="kernel")

    @tf.function
    def on_worker() -> None:
        def step() -> None:
            for part in kernel.variables:
                part.assign_add(tf.ones(part.shape))

        strategy.run(step)

    def train_step() -> None:
        coordinator.schedule(on_worker)
        coordinator.join()

    _live(strategy, kernel, train_step, lambda: float(kernel.variables[1].numpy()[0, 0]))


def dtensor_client() -> None:
    """Each client holds its own blocks."""
    from tensorflow.experimental import dtensor

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    dtensor.initialize_accelerator_system("CPU")
    layout = dtensor.Layout(["b"], dtensor.create_distributed_mesh([("b", 4)], device_type="CPU"))
    variable = dtensor.DVariable(dtensor.call_with_layout(tf.function(lambda: tf.zeros([8])), layout), name="v")
    one = dtensor.call_with_layout(tf.function(lambda: tf.ones([8])), layout)
    _live(
        None,
        variable,
        lambda: variable.assign_add(one),
        lambda: float(dtensor.unpack(variable.read_value())[0].numpy()[0]),
    )
