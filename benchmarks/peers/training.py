"""A training loop that saves every fifteen steps: what its steps take, with each way of saving and without."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.peers.base import Peer, Point

STEPS = 15
_WIDTH = 1024


class Training(Peer):
    """A dense network whose step takes a tenth of a second or so, beside a state of the size asked for.

    The state is Adam's: every variable changes in every step, so whatever is held by a save is copied by TensorFlow.
    A round is the save and the fifteen steps after it; where the save has not ended by then, the rest of it as well.
    """

    note = "saves nothing: what the others are compared with"

    def __init__(self, point: Point) -> None:
        import tensorflow as tf

        threads = point.settings["threads"]
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
        self.point = point
        count = point.variable_count // 2
        length = point.size_bytes // 4 // 2 // count  # the weights, and a momentum of each
        rows = max(1, length // _WIDTH)
        self.module = tf.Module()
        self.module.weights = [tf.Variable(tf.random.normal((rows, _WIDTH)) * 0.01) for _ in range(count)]
        self.module.momenta = [tf.Variable(tf.zeros((rows, _WIDTH))) for _ in range(count)]
        inputs = tf.random.normal((point.settings["batch"], _WIDTH))
        module = self.module

        @tf.function(jit_compile=False)
        def step() -> Any:
            total = tf.constant(0.0)
            for weights, momentum in zip(module.weights, module.momenta, strict=True):
                outputs = tf.matmul(inputs, weights, transpose_b=True)
                gradient = tf.matmul(outputs, inputs, transpose_a=True) * 1e-6
                momentum.assign(momentum * 0.9 + gradient)
                weights.assign_sub(momentum * 0.01)
                total += tf.reduce_mean(outputs)
            return total

        self._step = step
        self._step().numpy()

    def measure(self, number: int) -> dict[str, float]:
        """One stretch of training."""
        self.settle()
        start = time.perf_counter()
        self.save(number)
        blocked_s = time.perf_counter() - start
        for _ in range(STEPS):
            self._step().numpy()
        self.settle()
        return {"step_s": (time.perf_counter() - start) / STEPS, "blocked_s": blocked_s}

    def save(self, round_number: int) -> None:
        """Nothing."""

    def settle(self) -> None:
        """Waits for the save under way, if there is one."""


class TrainingWithAsyncCheckpoint(Training):
    """TensorFlow's asynchronous checkpoint, as it is: it does not make its files durable."""

    note = "experimental_enable_async_checkpoint; nothing is fsynced"

    def __init__(self, point: Point) -> None:
        import tensorflow as tf

        super().__init__(point)
        self._checkpoint = tf.train.Checkpoint(module=self.module)
        self._options = tf.train.CheckpointOptions(experimental_enable_async_checkpoint=True)

    def save(self, round_number: int) -> None:
        self._checkpoint.write(f"{self.point.url}/tf", options=self._options)

    def settle(self) -> None:
        self._checkpoint.sync()


class TrainingWithCkptflow(Training):
    """A CheckpointManager with its defaults, keeping one checkpoint."""

    note = "durable and checksummed"

    def __init__(self, point: Point) -> None:
        import ckptflow

        super().__init__(point)
        self._manager = ckptflow.CheckpointManager(f"{point.url}/run", {"m": self.module}, keep=ckptflow.KeepLast(1))
        self._manager.restore_latest()

    def save(self, round_number: int) -> None:
        self._manager.save(round_number)

    def settle(self) -> None:
        self._manager.wait()

    def close(self) -> None:
        self._manager.close()
