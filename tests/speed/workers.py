"""What the worker processes of `test_workers` run, the same on every worker."""

from __future__ import annotations

import json
import os
import sys
from typing import Any
from unittest import mock

import tensorflow as tf

import ckptflow.job.session
from ckptflow import CheckpointManager, KeepLast
from ckptflow.events import Event, Restored, Tell, tell_nobody
from ckptflow.storage.opening import open_store
from ckptflow.storage.store import Store
from tests.peers.readers import be_patient
from tests.speed.stores import MeasuredStore

# Before anything else touches TensorFlow.
strategy = tf.distribute.MultiWorkerMirroredStrategy()
_stores: list[MeasuredStore] = []


def _open_measured(url: str, storage_options: dict[str, object] | None = None, tell: Tell = tell_nobody) -> Store:
    _stores.append(MeasuredStore(open_store(url, storage_options, tell)))
    return _stores[-1]


def save_and_restore() -> None:
    """Saves twice, restores, and prints what the second save and the restore asked of storage, as JSON."""
    with mock.patch.object(ckptflow.job.session, "open_store", _open_measured):
        sys.stdout.write(json.dumps(_measure()) + "\n")


def _measure() -> dict[str, Any]:
    module = tf.Module()
    with strategy.scope():
        module.large = [tf.Variable(tf.ones([length])) for length in (3_000_001, 1_000_000, 700_003, 700_003)]
        module.matrix = tf.Variable(tf.ones([1000, 1031]))
        module.small = [tf.Variable(tf.ones([1_000])) for _ in range(20)]
    options: dict[str, Any] = {"strategy": strategy, "keep": KeepLast(10), "shard_bytes": 2**20}
    found: dict[str, Any] = {}
    with CheckpointManager(os.environ["ROOT"], {"m": module}, **options) as manager:
        manager.save(1)
        manager.wait()
        _stores[0].forget()
        manager.wait()  # nobody is ahead
        manager.save(2)
        manager.wait()
        found["save"] = _stores[0].calls.copy()
        manager.wait()
    be_patient()
    told = list[Event]()
    with CheckpointManager(os.environ["ROOT"], {"m": module}, on_event=told.append, **options) as manager:
        manager.restore_latest()
    found["read_bytes"] = _stores[1].shard_bytes_read()
    (restored,) = (event for event in told if isinstance(event, Restored))
    assert restored.storage_bytes == found["read_bytes"]
    found["peer_bytes"] = restored.peer_bytes
    return found
