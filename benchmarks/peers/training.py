"""A training loop that saves every fifteen steps: what its steps take, and what they take without."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.peers.base import Digests, Peer, Places, Point

STEPS = 15
_WIDTH = 1024


class Training(Peer):
    """A dense network whose step takes a tenth of a second or so, beside a state of the size asked for.

    The state is weights and a momentum of each: every variable changes in every step, so whatever is held by a save is
    copied by TensorFlow. A round is fifteen steps with a save at their beginning (and the rest of the save, where it
    has not ended by then), and fifteen without, one right after the other in the same process: which comes first
    changes from round to round.
    """

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
        """Training with a save and without."""
        blocked: list[float] = []

        def save() -> None:
            start = time.perf_counter()
            self.save(number)
            blocked.append(time.perf_counter() - start)

        if number % 2:
            with_s, without_s = self._step_s(save), self._step_s(lambda: None)
        else:
            without_s, with_s = self._step_s(lambda: None), self._step_s(save)
        self.tidy()
        found = {"step_s": with_s, "plain_step_s": without_s, "slowdown": with_s / without_s - 1}
        return {**found, "blocked_s": blocked[0]}

    def prove(self) -> None:
        """A save with training on its heels, restored: it must hold the values of the moment in which it was called."""
        digests = Digests(lambda: [*self.module.weights, *self.module.momenta])
        digests.remember()
        self._step_s(lambda: self.save(10**6))
        self.restore()
        digests.compare()

    def settle(self) -> None:
        """Waits for the save under way, if there is one."""
        raise NotImplementedError

    def _step_s(self, begin: Callable[[], None]) -> float:
        start = time.perf_counter()
        begin()
        for _ in range(STEPS):
            self._step().numpy()
        self.settle()
        return (time.perf_counter() - start) / STEPS


class TrainingWithAsyncCheckpoint(Training):
    """TensorFlow's asynchronous checkpoint, as it is: it does not make its files durable."""

    note = "experimental_enable_async_checkpoint; nothing is fsynced"

    def __init__(self, point: Point) -> None:
        import tensorflow as tf

        super().__init__(point)
        self._checkpoint = tf.train.Checkpoint(module=self.module)
        self._options = tf.train.CheckpointOptions(experimental_enable_async_checkpoint=True)
        self._places = Places(point.url)

    def save(self, round_number: int) -> None:
        self._checkpoint.write(self._places.next(), options=self._options)

    def settle(self) -> None:
        self._checkpoint.sync()

    def tidy(self) -> None:
        self._places.remove_old()

    def restore(self) -> None:
        self._checkpoint.read(self._places.now).assert_consumed()


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

    def restore(self) -> None:
        self._manager.restore_latest()

    def close(self) -> None:
        self._manager.close()
