"""Mirrored and MultiWorkerMirrored, with real devices and real processes, and the arithmetic of the one collective."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from ckptflow.errors import UnsupportedStateError, UsageError
from ckptflow.peers.cluster import Cluster, find_cluster
from ckptflow.state.assign import match
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
    roundtrip.fill(match(walk({"module": module}), stacked.offer(components=True)), stacked)
    assert module.held["sum int64"].numpy().tolist() == [4] * 3
    assert module.held["mean float16"].numpy().astype(float).tolist() == [2.0] * 3
    assert module.held["first float32"].numpy().tolist() == [1.0] * 3
    assert module.mirrored.numpy().tolist() == [1.0, 2.0]


def test_a_dying_peer_is_told() -> None:
    results = run_workers("tests.state.distributed:dying_peer", 2, chief=True, timeout_s=240, check=False)
    assert was_killed(results[1])
    assert "told: worker 0 of 2" in results[0].output, results[0].output
    assert results[0].exit_code == 0


class _Recording:
    """Stands for a strategy with one replica on each worker, and notes what one of them puts into each sum."""

    def __init__(self, messages: list[bytes]) -> None:
        self.matrices: list[Any] = []
        self._messages = messages

    def reduce(self, operation: str, matrix: Any, axis: None) -> Any:
        assert (operation, axis) == ("SUM", None)
        self.matrices.append(matrix.numpy())
        whole = np.zeros_like(self.matrices[-1])
        whole[:, 0] = 1
        for row, message in zip(whole, self._messages, strict=True):
            if len(self.matrices) == 1:
                row[1] = len(message)
            else:
                row[1 : 1 + len(message)] = np.frombuffer(message, np.uint8)
        return tf.constant(whole)


class _Summing:
    """Stands for a strategy with several replicas on each worker: its sums count every worker so many times."""

    def __init__(self, totals: list[Any]) -> None:
        self._totals = iter(totals)

    def reduce(self, operation: str, matrix: Any, axis: None) -> Any:
        return tf.constant(next(self._totals))


@given(st.lists(st.binary(max_size=300), min_size=2, max_size=4), st.integers(1, 8))
def test_exchange_by_reduction_is_exact_with_any_number_of_replicas(messages: list[bytes], replicas: int) -> None:
    count = len(messages)
    totals: list[Any] = [0, 0]
    for worker, message in enumerate(messages):
        strategy = _Recording(messages)
        assert Cluster(worker, count, strategy).exchange(message, "a test") == messages
        totals = [total + matrix * replicas for total, matrix in zip(totals, strategy.matrices, strict=True)]
    assert Cluster(0, count, _Summing(totals)).exchange(messages[0], "a test") == messages


def test_exchange_is_for_the_main_thread() -> None:
    raised = raised_in_a_thread(lambda: Cluster(0, 2).exchange(b"1", "a test"), UsageError)
    assert "main thread" in str(raised[0])


def test_strategies_without_support_are_refused() -> None:
    assert find_cluster() == Cluster(0, 1, tf.distribute.get_strategy())
    with pytest.raises(UnsupportedStateError, match="CentralStorage"):
        find_cluster(tf.distribute.experimental.CentralStorageStrategy(["CPU:0"]))
    one = tf.distribute.OneDeviceStrategy("CPU:0")
    with one.scope():
        assert find_cluster().strategy is one
        assert find_cluster(None).exchange(b"7", "a test") == [b"7"]
