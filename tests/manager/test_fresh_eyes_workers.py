"""What one of several workers does alone: it must reach all of them, and nobody may wait for the dead or take one
call's numbers for another's."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

import ckptflow
from ckptflow.errors import PeerError, SaveFailedError, StorageUnavailableError, UsageError
from tests.processes import run_workers


def test_calls_that_differ_raise_on_all(tmp_path: Path) -> None:
    for result in run_workers("tests.manager.test_fresh_eyes_workers:differ", 2, env={"ROOT": str(tmp_path)}):
        assert "well" in result.output, result.output


def test_a_worker_that_cannot_read_is_not_lost_in_anothers_building(tmp_path: Path) -> None:
    """And one that dies before its receipt is noticed, long before `commit_timeout_s`."""
    program = "tests.manager.test_fresh_eyes_workers:unreadable_then_dead"
    results = run_workers(program, 2, env={"ROOT": str(tmp_path)}, check=False)
    assert "well" in results[0].output, results[0].output
    assert results[1].exit_code == 9, results[1].output


# What the worker processes run


def differ() -> None:
    import tensorflow as tf

    from tests.manager.workers import ROOT, make_variables, strategy, worker

    state = {"m": make_variables({"v": 10})}
    with ckptflow.CheckpointManager(ROOT, state, strategy=strategy) as manager:
        manager.save(1)
        manager.save(2)
        with pytest.raises(UsageError, match="same calls"):
            manager.restore(1 + worker)
        with pytest.raises(UsageError, match="same calls"):
            manager.restore(2) if worker else manager.restore_latest()
        with pytest.raises(UsageError, match="same calls"):
            manager.restore(2) if worker else manager.rollback(2)
        with pytest.raises(UsageError, match="same calls"):
            manager.wait() if worker else manager.save(3)
    for odd in ({"fresh": worker == 1}, {"read_only": worker == 1}):
        with ckptflow.CheckpointManager(ROOT, state, strategy=strategy, **odd) as manager:
            with pytest.raises(UsageError, match="same calls"):
                manager.restore_latest()
    other = {"renamed": state["m"]}
    renames: list[tuple[Any, Any]] = [({"m": "renamed"}, {"m/v": "renamed/x"}), ({"m": "renamed"}, lambda name: name)]
    for rename in renames:
        for variable in state["m"].variables:
            variable.assign(tf.zeros_like(variable))
        with ckptflow.CheckpointManager(ROOT, other, strategy=strategy) as manager:
            with pytest.raises(UsageError, match="would not take the same tensors"):
                manager.restore_latest(partial=True, rename=rename[worker])
        assert all(float(tf.reduce_sum(variable.values[0])) == 0 for variable in state["m"].variables)
    with ckptflow.CheckpointManager(ROOT, state, strategy=strategy) as manager:
        restored = manager.restore_latest(partial=worker == 0)
        assert restored is not None
        assert (restored.step, restored.incarnation) == (2, 1)
    print("well")


def unreadable_then_dead() -> None:
    import keras

    from tests.manager.workers import ROOT, strategy, worker

    def make(*, is_built: bool) -> ckptflow.CheckpointManager:
        with strategy.scope():
            model = keras.Sequential([keras.Input([4]), keras.layers.Dense(2)])
            optimizer = keras.optimizers.Adam()
            if is_built:
                optimizer.build(model.trainable_variables)
        return ckptflow.CheckpointManager(ROOT, {"model": model, "optimizer": optimizer}, strategy=strategy)

    with make(is_built=True) as manager:
        manager.save(1)
    manager = make(is_built=False)  # its optimizer is built by restoring: variables are made, and that is a collective
    real_get = manager.session.store.get
    if worker == 1:

        def fail(key: str, into: memoryview, start: int = 0) -> int:
            raise StorageUnavailableError("503 from the test")

        manager.session.store.get = fail  # type: ignore[method-assign]
    with pytest.raises((StorageUnavailableError, PeerError), match="503 from the test"):
        manager.restore_latest()
    manager.session.store.get = real_get  # type: ignore[method-assign]
    restored = manager.restore_latest()
    assert restored is not None
    assert restored.step == 1

    if worker == 1:
        manager.session.store.put = lambda key, data: os._exit(9)  # type: ignore[method-assign]
    pending = manager.save(2)
    with pytest.raises((PeerError, SaveFailedError)):
        manager.wait()
    assert re.search(r"worker 1 has ended \(127.*\) and did not report", str(pending.exception()))
    print("well", flush=True)
    os._exit(0)
