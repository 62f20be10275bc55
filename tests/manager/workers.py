"""What the worker processes of test_workers.py run: each function is one program, the same on every worker."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import tensorflow as tf

import ckptflow
from ckptflow import CheckpointManager, PeerError, SaveFailedError
from ckptflow.events import Claimed, Committed, Event, SaveBegan, SaveFailed, ShardsWritten
from tests.waiting import HANG_S, until

ROOT = Path(os.environ.get("ROOT", "."))
# Before anything else touches TensorFlow.
strategy = tf.distribute.MultiWorkerMirroredStrategy()
worker = strategy.cluster_resolver.task_id


def make_variables(lengths: dict[str, int]) -> tf.Module:
    module = tf.Module()
    with strategy.scope():
        for name, length in lengths.items():
            setattr(module, name, tf.Variable(tf.range(length, dtype=tf.float32)))
    return module


def values(module: tf.Module) -> dict[str, Any]:
    return {v.name: v.values[0].numpy() for v in module.variables}


def save_and_restore() -> None:
    """Large tensors are divided, small ones the chief's; every worker gets everything back."""
    module = make_variables({"large": 3_000_000, "wide": 700_000, "small": 10})
    state, told = {"m": module}, list[Event]()
    with CheckpointManager(
        ROOT, state, strategy=strategy, shard_bytes=2**21, memory_budget_bytes=2**23, on_event=told.append
    ) as manager:
        assert manager.restore_latest() is None
        pending = manager.save(1, metrics={"loss": 0.5})
        assert pending.result().step == 1
        for v in module.variables:
            v.assign_add(tf.ones_like(v))
        manager.save(2)
        manager.wait()
        for v in module.variables:
            v.assign(tf.zeros_like(v))
    a_save = [SaveBegan, ShardsWritten, *([Committed] if worker == 0 else [])]  # each worker tells of its own part
    assert [type(event) for event in told] == [Claimed, *a_save, *a_save]
    assert {event.worker for event in told} == {worker}
    with CheckpointManager(ROOT, state, strategy=strategy) as manager:
        restored = manager.restore_latest()
        assert restored is not None
        assert (restored.step, restored.incarnation) == (2, 1)
        for v in module.variables:
            np.testing.assert_array_equal(v.values[0].numpy(), np.arange(v.shape[0], dtype=np.float32) + 1)
        manager.save(3)
    print("well")


def restore_only() -> None:
    """Another number of workers."""
    module = make_variables({"large": 3_000_000, "wide": 700_000, "small": 10})
    with CheckpointManager(ROOT, {"m": module}, strategy=strategy) as manager:
        restored = manager.restore_latest()
        assert restored is not None
        assert restored.step == 3
        for v in module.variables:
            np.testing.assert_array_equal(v.values[0].numpy(), np.arange(v.shape[0], dtype=np.float32) + 1)
        manager.save(4)
    print("well")


def diverged() -> None:
    """Copies that differ: reported by name, the chief's kept whole, and never one tensor of two workers' copies."""
    import keras

    keras.utils.set_random_seed(3)
    with strategy.scope():
        model = keras.Sequential([keras.Input([4]), keras.layers.BatchNormalization(), keras.layers.Dense(2)])
        optimizer = keras.optimizers.SGD(0.1)
        optimizer.build(model.trainable_variables)
        module = tf.Module()
        module.weight = tf.Variable(tf.ones([1_500_000]))  # above 1 MiB: both workers write of it
        module.codebook = tf.Variable(tf.zeros([600_000]), trainable=False)  # as large, and not kept equal by training

    def step(inputs: Any) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(inputs, training=True) ** 2)
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )
        module.codebook.assign(tf.fill([600_000], tf.reduce_mean(inputs)))

    inputs = tf.random.stateless_normal([8, 4], [worker, 5]) + float(worker)
    for _ in range(3):
        strategy.run(step, args=(inputs,))
    state = {"model": model, "optimizer": optimizer, "module": module}
    expected = {v.path.rpartition("/")[2]: v._value.values[0].numpy() for v in model.non_trainable_variables}
    expected["codebook"] = module.codebook.values[0].numpy()
    if worker == 0:
        np.savez(ROOT / "chief.npz", **expected)

    with CheckpointManager(ROOT / "run", state, strategy=strategy, verify_replicas="small") as manager:
        manager.save(1)
    with CheckpointManager(ROOT / "run", state, strategy=strategy, verify_replicas="all") as manager:
        manager.restore_latest()
        manager.save(2).result()
        if worker == 1:  # one bit of one weight, in the part that the chief writes
            flipped = module.weight.values[0].numpy()
            flipped.view(np.uint32)[7] ^= 1 << 3
            module.weight.values[0].assign(flipped)
        manager.save(3)
        try:
            manager.wait()
            raise SystemExit("nothing was raised")
        except (SaveFailedError, PeerError) as error:
            assert "workers hold different values of module/weight" in str(error), error
        manager.restore(2)
        manager.save(4)
    print("well")


class Number:
    """Python state."""

    def __init__(self, value: int) -> None:
        self.value = value

    def get_state(self) -> Any:
        return self.value

    def set_state(self, state: Any) -> None:
        self.value = state


def kept_apart() -> None:
    """What differs between workers without being wrong, what is each one's own, and what must be equal."""
    on_read, first = tf.VariableSynchronization.ON_READ, tf.VariableAggregation.ONLY_FIRST_REPLICA
    with strategy.scope():
        averages = tf.Variable(tf.zeros([300, 300]), trainable=False)  # cut into several shards below
        memory = tf.Variable(tf.zeros([1024, 1024]), aggregation=first)  # "trainable", and yet not kept equal
        seen = tf.Variable(0.0, synchronization=on_read, aggregation=tf.VariableAggregation.SUM, trainable=False)
        weight = tf.Variable(tf.zeros([100]))
    mine = float(worker + 1)
    for variable in (averages, memory):
        variable.values[0].assign(tf.fill(variable.shape, mine))
    seen.values[0].assign(mine)
    module, counter = tf.Module(), tf.Variable(mine)
    module.counter = counter  # a second way to what is each worker's own
    number = Number(worker)
    state = {"averages": averages, "memory": memory, "module": module, "number": number, "weight": weight}
    state |= {"counter": ckptflow.PerWorker(counter), "seen": ckptflow.PerWorker(seen)}
    with CheckpointManager(
        ROOT / "run", state, strategy=strategy, shard_bytes=2**17, memory_budget_bytes=2**20
    ) as manager:
        manager.save(1)
    counter.assign(0.0)
    seen.values[0].assign(0.0)
    with CheckpointManager(ROOT / "run", state, strategy=strategy, verify_replicas="all") as manager:
        manager.restore_latest()
        assert (counter.numpy(), seen.values[0].numpy(), number.value) == (mine, mine, 0)
        if worker == 1:
            weight.values[0].assign(tf.ones([100]))
        manager.save(2)
        try:
            manager.wait()
            raise SystemExit("nothing was raised")
        except (SaveFailedError, PeerError) as error:
            assert "workers hold different values of weight" in str(error), error
    with strategy.scope():
        other = tf.Variable(tf.zeros([600_000]), trainable=worker == 0)
    try:
        CheckpointManager(ROOT / "other", {"v": other}, strategy=strategy).save(1)
        raise SystemExit("nothing was raised")
    except ckptflow.UsageError as error:
        assert "the workers hold different states" in str(error), error
        assert "v: float32 (600000,)" in str(error), error
    print("well")


def one_worker_fails() -> None:
    """Worker 1 cannot write: it says so, the chief hears it at once, both raise, and the next save goes well."""
    module = make_variables({"large": 1_000_000})
    manager = CheckpointManager(ROOT, {"m": module}, strategy=strategy)
    manager.save(1).result()
    if worker == 1:
        from ckptflow.errors import StorageUnavailableError

        real = manager.session.store.put

        def fail_shards(key: str, data: memoryview) -> None:
            if "shard" in key:
                raise StorageUnavailableError("503 from the test")
            real(key, data)

        manager.session.store.put = fail_shards  # type: ignore[method-assign]
    manager.save(2)
    try:
        manager.wait()
        raise SystemExit("nothing was raised")
    except (SaveFailedError, PeerError) as error:
        assert "503 from the test" in str(error), error
    if worker == 1:
        manager.session.store.put = real  # type: ignore[method-assign]
    manager.save(3)
    manager.close()
    print("well")


def a_worker_never_reports() -> None:
    """Worker 1's background hangs: the deadline passes, and the message says who is missing."""
    module = make_variables({"large": 1_000_000})
    manager = CheckpointManager(ROOT, {"m": module}, strategy=strategy)
    manager.save(1).result()
    incarnation = manager.session._footing.incarnation
    assert incarnation is not None
    incarnation._commit_timeout_s = 1  # not for the first save, which a busy machine may take longer for
    if incarnation._saver.coordinator is not None:
        incarnation._saver.coordinator._commit_timeout_s = 1
    if worker == 1:
        manager.session.store.put = lambda key, data: time.sleep(2)  # type: ignore[method-assign]
    manager.save(2)
    try:
        manager.wait()
        raise SystemExit("nothing was raised")
    except (ckptflow.CommitTimeoutError, PeerError) as error:
        assert "worker 1 of 2 did not report" in str(error), error
    print("well")
    os._exit(0)


def one_can_start_no_thread() -> None:
    """Worker 1 cannot save in the background: all raise, in the same call, and nobody waits for its report."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("ckptflow-save"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with CheckpointManager(ROOT, {"m": make_variables({"v": 10})}, strategy=strategy) as manager:
        with (
            patch.object(threading.Thread, "start", refuse if worker == 1 else start),
            pytest.raises(SaveFailedError if worker == 1 else PeerError, match="in the background cannot be started"),
        ):
            manager.save(1)
        assert manager.save(2).result().step == 2
        manager.save(3)
    with CheckpointManager(ROOT, {"m": make_variables({"v": 10})}, strategy=strategy) as manager:
        with (
            patch.object(threading.Thread, "start", refuse if worker == 1 else start),
            pytest.raises(SaveFailedError if worker == 1 else PeerError, match="in the background cannot be started"),
        ):
            manager.rollback(2)  # which saves it again
        manager.rollback(2)
    print("well")


def errors_reach_all() -> None:
    """What one worker alone gets wrong raises on all, in the same call, and the next call works."""
    module = make_variables({"v": 10})
    with CheckpointManager(ROOT, {"m": module}, strategy=strategy) as manager:
        try:
            manager.save(1, metrics={"loss": float("nan") if worker == 1 else 0.0})
            raise SystemExit("nothing was raised")
        except (ValueError, PeerError) as error:
            assert "loss" in str(error), error
        try:
            manager.save(2 + worker)
            raise SystemExit("nothing was raised")
        except ckptflow.UsageError as error:
            assert "save with different arguments" in str(error), error
        manager.save(5).result()
        try:
            manager.restore(7)
            raise SystemExit("nothing was raised")
        except ckptflow.CheckpointNotFoundError as error:
            assert "step 7" in str(error), error
        assert manager.restore(5).step == 5
    print("well")


def storage_refuses_a_worker() -> None:
    """Worker 1 may write nothing, not even that it failed: all learn of it, and of the reason, from whatever they ask,
    long before anybody has waited in vain for what it writes."""
    module = make_variables({"large": 1_000_000})
    told = list[Event]()
    manager = CheckpointManager(ROOT, {"m": module}, strategy=strategy, commit_timeout_s=1e6, on_event=told.append)
    manager.save(1).result()
    real = manager.session.store.put
    if worker == 1:
        from ckptflow.errors import StorageAccessError

        def refuse(key: str, data: memoryview) -> None:
            raise StorageAccessError("403 from the test")

        manager.session.store.put = refuse  # type: ignore[method-assign]
    pending = manager.save(2)
    try:
        pending.result()
        raise SystemExit("nothing was raised")
    except SaveFailedError as error:
        assert "was not saved on worker 1" in str(error), error
        assert "403 from the test" in str(error), error
    try:
        manager.wait()
        raise SystemExit("nothing was raised")
    except (SaveFailedError, PeerError) as error:
        assert "was not saved on worker 1" in str(error), error
        assert "403 from the test" in str(error), error
    if worker == 1:
        manager.session.store.put = real  # type: ignore[method-assign]
    manager.save(3).result()
    manager.close()
    assert [event.step for event in told if isinstance(event, SaveFailed)] == ([2] if worker < 2 else [])
    print("well")


def one_leaves_and_all_try_again() -> None:
    """A worker that fails by itself between two calls; all make another manager, as a loop around it does."""
    module = make_variables({"small": 10})
    problems: list[str] = []
    for attempt in range(4):
        try:
            with CheckpointManager(ROOT, {"m": module}, strategy=strategy) as manager:
                manager.restore_latest()
                if attempt < 3 and worker == attempt % 2:
                    raise ValueError("a bad batch")
                manager.save(attempt + 1).result()
        except (ValueError, PeerError) as error:
            problems.append(str(error))
    mine = "a bad batch"
    other = f"worker {1 - worker} of 2 left the end of the manager's block by ValueError"
    assert len(problems) == 3, problems
    for attempt, text in enumerate(problems):
        assert text.startswith(mine if worker == attempt % 2 else other), text
    print("well")


def one_manager_more() -> None:
    """A manager that one worker makes for itself is named, on both, long before any limit."""
    module = make_variables({"small": 10})
    manager = CheckpointManager(ROOT, {"m": module}, strategy=strategy)
    manager.restore_latest()
    other = CheckpointManager(ROOT.with_name("other"), {"m": module}, strategy=strategy)
    with (
        patch("ckptflow.peers.watch._SAY_AFTER_S", tuple(range(1, 600))),
        pytest.raises(PeerError, match="all workers must make the same managers, and the same calls") as raised,
    ):
        _ = other.restore_latest() if worker == 1 else manager.save(1)
    assert re.search("worker [01] .* waits in a call of another CheckpointManager", str(raised.value))
    told = ROOT.with_name("told")  # worker 0 has the messages in its process
    if worker == 1:
        told.touch()
    until(told.exists, HANG_S)
    print("well", flush=True)
    os._exit(0)
