"""Mirrored and MultiWorkerMirrored, with real devices and real processes, and the arithmetic of the one collective."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from ckptflow.errors import UnsupportedStateError, UsageError
from ckptflow.state.assign import match
from ckptflow.state.cluster import LIMIT, Cluster, find_cluster
from ckptflow.state.tree import walk
from tests.processes import run_workers, was_killed
from tests.state import distributed, roundtrip
from tests.waiting import raised_in_a_thread


def test_mirrored() -> None:
    run_workers("tests.state.distributed:mirrored", 1)


def test_two_workers(tmp_path: Path) -> None:
    results = run_workers("tests.state.distributed:workers", 2, env={"FOLDER": str(tmp_path)})
    assert all("done" in result.output for result in results)
    # What they held restores in one process without a strategy, too.
    stacked = distributed.stack([roundtrip.read(tmp_path / f"worker-{worker}") for worker in range(2)])
    module = tf.Module()
    module.held = {f"{how} {dtype}": tf.Variable(tf.zeros([3], dtype)) for how, dtype in distributed.KINDS}
    module.mirrored = tf.Variable([0.0, 0.0])
    roundtrip.fill(match(walk({"module": module}), stacked.manifest(components=True)), stacked)
    assert module.held["sum int64"].numpy().tolist() == [4] * 3
    assert module.held["mean float16"].numpy().astype(float).tolist() == [2.0] * 3
    assert module.held["first float32"].numpy().tolist() == [1.0] * 3
    assert module.mirrored.numpy().tolist() == [1.0, 2.0]


def test_a_dying_peer_is_told() -> None:
    results = run_workers("tests.state.distributed:dying_peer", 2, chief=True, timeout_s=240, check=False)
    assert was_killed(results[1])
    assert "told: worker 0 of 2" in results[0].output, results[0].output
    assert results[0].exit_code == 0


class _RecordedError(Exception):
    """Carries what a worker would have put into the sum."""


class _Recording:
    def reduce(self, operation: str, matrix: Any, axis: None) -> Any:
        assert (operation, axis) == ("SUM", None)
        raise _RecordedError(matrix.numpy())


class _Summing:
    """Stands for a strategy with several replicas on each worker: its sum counts every worker so many times."""

    def __init__(self, total: Any) -> None:
        self._total = total

    def reduce(self, operation: str, matrix: Any, axis: None) -> Any:
        return tf.constant(self._total)


number = st.integers(-LIMIT + 1, LIMIT - 1)


@given(st.lists(st.tuples(number, number), min_size=2, max_size=4), st.integers(1, 8))
def test_exchange_is_exact_with_any_number_of_replicas(rows: list[tuple[int, int]], replicas: int) -> None:
    total: Any = 0
    for worker, row in enumerate(rows):
        with pytest.raises(_RecordedError) as recorded:
            Cluster(worker, len(rows), _Recording()).exchange(row)
        total = total + recorded.value.args[0] * replicas
    assert Cluster(0, len(rows), _Summing(total)).exchange(rows[0]) == rows


def test_exchange_refuses_what_it_cannot_carry() -> None:
    with pytest.raises(ValueError, match="between"):
        Cluster(0, 1).exchange([LIMIT])
    raised = raised_in_a_thread(lambda: Cluster(0, 2).exchange([1]), UsageError)
    assert "main thread" in str(raised[0])


def test_strategies_without_support_are_refused() -> None:
    assert find_cluster() == Cluster(0, 1, tf.distribute.get_strategy())
    with pytest.raises(UnsupportedStateError, match="CentralStorage"):
        find_cluster(tf.distribute.experimental.CentralStorageStrategy(["CPU:0"]))
    one = tf.distribute.OneDeviceStrategy("CPU:0")
    with one.scope():
        assert find_cluster().strategy is one
        assert find_cluster(None).exchange([7]) == [(7,)]
