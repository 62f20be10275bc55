"""`check_finite=True`: NaN and Inf in what is saved are told, per worker, and the save goes on."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

import ckptflow
from ckptflow import telemetry
from ckptflow.events import Committed, Event, NotFinite, ShardsWritten
from ckptflow.format.layout import Folder
from ckptflow.format.spec import TensorSpec
from ckptflow.job.finite import MAX_NAMED, FiniteCheck
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.plan import plan_shards
from ckptflow.transfer.writer import write_shards
from tests.transfer.helpers import ArraySource, DictStore


def saved(root: Path, state: dict[str, Any], steps: int = 1, **how: Any) -> list[Event]:
    told: list[Event] = []
    with ckptflow.CheckpointManager(root, state, on_event=told.append, **how) as manager:
        for step in range(1, steps + 1):
            manager.save(step)
            manager.wait()
    return told


STATE: dict[str, Any] = {
    "a": [1.0, math.nan, math.inf],
    "half": np.asarray([math.nan, 1], ml_dtypes.bfloat16),
    "z": np.asarray([complex(1, math.inf), 0], np.complex64),
    "fine": [1.0, 2.0],
    "whole": [1, 2],
    "words": ["nan", "inf"],
}


def variables(values: dict[str, Any]) -> dict[str, tf.Variable]:
    return {name: tf.Variable(value) for name, value in values.items()}


def test_tensors_are_named_with_their_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told = saved(tmp_path / "run", variables(STATE), check_finite=True)
    (event,) = (event for event in told if isinstance(event, NotFinite))
    assert (event.step, event.folder, event.worker) == (1, "000000000001-i0001", 0)
    assert event.tensors == {"a": 2, "half": 1, "z": 1}
    assert (event.value_count, event.tensor_count) == (4, 3)
    (line,) = (record for record in caplog.records if "NaN or Inf" in record.getMessage())
    assert line.levelno == logging.WARNING
    assert "step 1: 4 value(s) that this worker saves are NaN or Inf, in 3 tensor(s): a, half, z" in line.getMessage()
    assert any(isinstance(event, Committed) for event in told)  # it was saved all the same
    assert (telemetry.NOT_FINITE, 1) in telemetry.measure(event)


@pytest.mark.parametrize(("values", "how"), [(STATE, {}), ({"fine": [1.0]}, {"check_finite": True})])
def test_nothing_is_told_where_that_is_not_asked_for_or_all_is_finite(
    tmp_path: Path, values: dict[str, Any], how: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert not [event for event in saved(tmp_path / "run", variables(values), **how) if isinstance(event, NotFinite)]
    assert "NaN" not in caplog.text


def test_what_is_copied_as_unchanged_is_not_looked_at_again(tmp_path: Path) -> None:
    frozen = tf.Variable(np.full(2**20, np.nan, np.float32), trainable=False)
    trained = tf.Variable(np.zeros(2**20, np.float32))
    told: list[Event] = []
    state = {"frozen": frozen, "trained": trained}
    with ckptflow.CheckpointManager(tmp_path / "run", state, check_finite=True, on_event=told.append) as manager:
        for step in range(1, 9):
            trained.assign_add(tf.ones_like(trained))
            manager.save(step)
            manager.wait()
    written = {event.step: event for event in told if isinstance(event, ShardsWritten)}
    found = {event.step: event.tensors for event in told if isinstance(event, NotFinite)}
    copied = [step for step, event in written.items() if event.copied_bytes >= frozen.shape[0] * 4]
    assert copied  # by the last ones at least
    assert found[1] == {"frozen": 2**20}
    assert not set(copied) & set(found)


def test_each_worker_tells_of_its_own_slices() -> None:
    specs = [TensorSpec("t", "float32", (2**20,))]
    values = np.zeros(2**20, np.float32)
    values[-3:] = np.nan
    counts = []
    for worker in (0, 1):
        plan = plan_shards(specs, worker=worker, world_size=2, shard_bytes=2**18)
        check = FiniteCheck(specs)
        write_shards(
            DictStore(), Folder(1, 1), plan, ArraySource(specs, [values]), BufferPool(2**20, 2**18), look=check.look
        )
        event = check.event(Folder(1, 1))
        counts.append(event.value_count if event is not None else 0)
    assert sorted(counts) == [0, 3]


def test_many_tensors_are_capped() -> None:
    specs = [TensorSpec(f"t{i:03d}", "float32", (1,)) for i in range(3 * MAX_NAMED)]
    check = FiniteCheck(specs)
    plan = plan_shards(specs, worker=0, world_size=1, shard_bytes=2**18)
    arrays = [np.asarray([np.inf], np.float32)] * len(specs)
    write_shards(DictStore(), Folder(1, 1), plan, ArraySource(specs, arrays), BufferPool(2**18, 2**18), look=check.look)
    event = check.event(Folder(1, 1))
    assert event is not None
    assert (event.tensor_count, event.value_count, len(event.tensors)) == (3 * MAX_NAMED, 3 * MAX_NAMED, MAX_NAMED)
    assert next(iter(event.tensors)) == "t000"
