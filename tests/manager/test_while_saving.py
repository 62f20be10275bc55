"""What the program does while a save is under way: it must not reach into that save."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import ckptflow
from ckptflow.job.saver import Saver
from tests.waiting import HANG_S


def test_what_is_attached_meanwhile_moves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit that begins attaches its state: the save under way is written by the plan of what it holds.

    Tensors without a fixed shape sort behind it; a plan of the newer tree would write each under another's name.
    """
    module = tf.Module()
    module.blocks = [tf.Variable(tf.fill([16], float(i))) for i in range(6)]
    table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, -1)
    table.insert(tf.range(64, dtype=tf.int64), tf.range(64, dtype=tf.int64))
    attached, draft = threading.Event(), Saver._draft

    def late(self: Saver, job: object) -> object:
        assert attached.wait(HANG_S)
        return draft(self, job)  # type: ignore[arg-type]

    monkeypatch.setattr(Saver, "_draft", late)
    with ckptflow.CheckpointManager(tmp_path, {"net": module, "words": table}) as manager:
        manager.restore_latest()
        pending = manager.save(0)
        words = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, -1)
        manager.session.live.attach("ckptflow.fit", words)
        attached.set()
        pending.result()
    with ckptflow.open_checkpoint(tmp_path) as saved:
        assert not [name for name in saved if name.startswith("ckptflow.fit")]
        for i in range(6):
            np.testing.assert_array_equal(saved[f"net/blocks/{i}"], np.full(16, i, np.float32))
        assert saved.verify() == []


_LEFT_BEHIND = """
import sys, threading, time
from concurrent.futures import thread as futures
from ckptflow.job.background import Background
from ckptflow.commit.assembly import Draft
from ckptflow.commit.catalog import Summaries
from ckptflow.commit.coordinator import Coordinator
from ckptflow.commit.lineage import Held
from ckptflow.commit.resume import Start
from ckptflow.format.layout import Folder, claim_key, receipt_name
from ckptflow.format.manifest import Claim, Receipt, encode
from ckptflow.storage.opening import open_store

store, count = open_store(sys.argv[1]), int(sys.argv[2])
held, folder = Held(1, "0" * 32, "1" * 32), Folder(1, 1)
claim = Claim(number=1, run_id=held.run_id, writer_id=held.writer_id, reason="start", host="", pid=1, created_at="")
store.create(claim_key(1), memoryview(encode(claim)))
coordinator = Coordinator(store, Start(held), Summaries(store), (), commit_timeout_s=30)

def receipt(worker):
    return Receipt(folder=str(folder), writer_id=held.writer_id, worker=worker, world_size=count)

def others():
    while not futures._shutdown:  # until the program has ended, but for what is under way
        time.sleep(0.01)
    for worker in range(1, count):
        store.put(folder.key(receipt_name(worker, count, held.tag)), memoryview(encode(receipt(worker))))

def save(acknowledge):
    coordinator.commit(Draft(folder=folder, world_size=count, tensors=()), receipt(0), prune=False)
    acknowledge(None)

threading.Thread(target=others).start()
Background().submit(save)
"""


@pytest.mark.parametrize("worker_count", [4, 64])
def test_a_save_that_is_left_behind_is_committed(tmp_path: Path, worker_count: int) -> None:
    """A script ends without closing its manager, and the other workers report after that."""
    command = [sys.executable, "-c", _LEFT_BEHIND, str(tmp_path), str(worker_count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [checkpoint.step for checkpoint in ckptflow.list_checkpoints(tmp_path)] == [1]
