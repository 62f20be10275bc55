"""What the worker processes of test_once.py run: restores of all kinds, and what each took from where."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tensorflow as tf

from ckptflow import CheckpointManager, PerWorker, StorageError, UsageError
from ckptflow.errors import CorruptCheckpointError, PeerError
from ckptflow.events import Event, Restored
from ckptflow.format.layout import Folder
from tests.edge.programs import hook_stores
from tests.peers.readers import be_patient

ROOT = Path(os.environ.get("ROOT", "."))
LENGTHS = (300_000, 200_000, 200_000, 50_000, 3)


def restores() -> None:
    """Prints, for each kind of restore, the bytes that came from storage and from the others."""
    be_patient()
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    worker = strategy.cluster_resolver.task_id
    module, own = tf.Module(), tf.Variable(tf.zeros([100_000]))
    with strategy.scope():
        module.v = [tf.Variable(tf.zeros([length])) for length in LENGTHS]
        table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, tf.zeros([16]))
    state = {"m": module, "own": PerWorker(own), "table": table}
    job = _Job(strategy, worker, state)

    def fill(step: float) -> None:
        for number, variable in enumerate(module.v):
            variable.assign(tf.range(LENGTHS[number], dtype=tf.float32) + step)
        own.assign(tf.fill([100_000], float(step + worker)))
        keys = tf.range(20_000, dtype=tf.int64)
        table.insert(keys, tf.fill([20_000, 16], float(step)) if step else -tf.ones([20_000, 16]))

    def assert_filled(step: float) -> None:
        for number, variable in enumerate(module.v):
            np.testing.assert_array_equal(
                variable.values[0].numpy(), np.arange(LENGTHS[number], dtype=np.float32) + np.float32(step)
            )
        assert set(np.unique(own.numpy())) == {step + worker}
        assert float(table.lookup(tf.constant([7], tf.int64))[0, 0]) == step

    with job.manager() as manager:
        for step in (1.0, 2.0):
            fill(step)
            manager.save(int(step))
        manager.wait()
    listening = _listening()
    job.restore("latest", lambda manager: manager.restore_latest(), fill, lambda: assert_filled(2))
    job.restore("step", lambda manager: manager.restore(1), fill, lambda: assert_filled(1))
    job.restore("partial", lambda manager: manager.restore_latest(partial=True), fill, lambda: assert_filled(2))
    renamed = {"m": "m", "own": "own", "table": "table"}
    job.restore("rename", lambda manager: manager.restore_latest(rename=renamed), fill, lambda: assert_filled(2))
    job.restore(
        "storage", lambda manager: manager.restore_latest(), fill, lambda: assert_filled(2), restore_from="storage"
    )
    with job.manager() as manager:
        manager.restore_latest()
        fill(0.0)
        manager.session.restore_again()
        assert_filled(2)
        fill(0.0)
        shard = max((ROOT / str(Folder(2, 1))).glob("shard-*"))
        size_bytes = shard.stat().st_size
        if worker == 0:  # which alone lists
            os.truncate(shard, size_bytes + 1)
        with pytest.raises(CorruptCheckpointError, match="the manifest says"):
            manager.session.restore_again()
        for number, variable in enumerate(module.v):  # nothing is assigned on any
            np.testing.assert_array_equal(variable.values[0].numpy(), np.arange(LENGTHS[number], dtype=np.float32))
        if worker == 0:
            os.truncate(shard, size_bytes)
    assert job.most_listening == {"storage": len(listening)} | dict.fromkeys(
        ("latest", "step", "partial", "rename"), len(listening) + 1
    )
    if worker == 0:
        shard = max((ROOT / str(Folder(2, 1))).glob("shard-*"))
        data = bytearray(shard.read_bytes())
        data[-9] ^= 1
        shard.write_bytes(data)
    job.restore("damaged", lambda manager: manager.restore_latest(), fill, lambda: assert_filled(1))
    _ends_by_an_error(job, worker)
    assert _listening() == listening
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ckptflow-peers")]
    with (
        job.manager(restore_from="auto" if worker else "storage") as manager,
        pytest.raises(UsageError, match=r"restore with different arguments.* restore_from='storage'"),
    ):
        manager.restore_latest()
    print("well", flush=True)


def alone() -> None:
    """The only worker of its job: nobody can come to it."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        variable = tf.Variable(tf.zeros([LENGTHS[0]]))
    job = _Job(strategy, 0, {"v": variable})
    with job.manager() as manager:
        manager.save(1)
        manager.wait()
    listening = _listening()
    job.restore("latest", lambda manager: manager.restore_latest(), lambda step: None, lambda: None)
    assert job.most_listening == {"latest": len(listening)}
    print("well", flush=True)


def _ends_by_an_error(job: _Job, worker: int) -> None:
    """One worker's storage fails in the middle: nothing is left of it on any."""

    def refuse(verb: str, key: str) -> None:
        if worker == 1 and verb == "get" and "shard" in key:
            raise StorageError("from the test")

    hook_stores(refuse)
    with (
        pytest.raises((StorageError, PeerError), match="from the test"),
        job.manager(read_only=True) as manager,
    ):
        manager.restore(1)
    hook_stores(lambda verb, key: None)


class _Job:
    def __init__(self, strategy: Any, worker: int, state: dict[str, Any]) -> None:
        self._strategy, self._worker, self._state = strategy, worker, state
        self.most_listening: dict[str, int] = {}

    def manager(self, **options: Any) -> CheckpointManager:
        return CheckpointManager(
            ROOT, self._state, strategy=self._strategy, shard_bytes=2**18, memory_budget_bytes=2**20, **options
        )

    def restore(
        self,
        kind: str,
        restore: Callable[[CheckpointManager], object],
        fill: Callable[[float], None],
        check: Callable[[], None],
        **options: Any,
    ) -> None:
        fill(0.0)
        told: list[Event] = []
        most = [0]

        def hook(verb: str, key: str) -> None:
            if "shard" in key:
                most.append(len(_listening()))

        hook_stores(hook)
        with self.manager(read_only=True, on_event=told.append, **options) as manager:
            restore(manager)
        hook_stores(lambda verb, key: None)
        check()
        (restored,) = (event for event in told if isinstance(event, Restored))
        self.most_listening[kind] = max(most)
        print(json.dumps({kind: [restored.storage_bytes, restored.peer_bytes]}), flush=True)


def _listening() -> set[int]:
    return {each.laddr.port for each in psutil.Process().net_connections("tcp") if each.status == psutil.CONN_LISTEN}
