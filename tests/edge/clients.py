"""What several DTensor clients run: there is no strategy, and who they are is in their environment."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import tensorflow as tf

from ckptflow import CheckpointManager, PeerError, UsageError
from ckptflow.events import Event, Restored
from ckptflow.peers.cluster import find_cluster
from tests.peers.readers import be_patient
from tests.waiting import HANG_S, raised_in_a_thread, until


def clients() -> None:
    """Rows, two managers, one made by a single client, and a client that dies."""
    root, dtensor = Path(os.environ["ROOT"]), tf.experimental.dtensor
    with pytest.raises(UsageError, match="initialize_accelerator_system"):
        find_cluster()
    dtensor.initialize_accelerator_system("CPU")
    cluster = find_cluster(arrival_timeout_s=HANG_S)
    me, count = dtensor.client_id(), dtensor.num_clients()
    assert (cluster.worker, cluster.world_size) == (me, count)
    if me == 1:
        time.sleep(0.5)  # late for the first exchange
    for number in range(50):
        assert cluster.exchange(b"[%d, %d]" % (me, number), "a test") == [
            b"[%d, %d]" % (other, number) for other in range(count)
        ]
        if number % 10 == me:
            time.sleep(0.1)
    raised = raised_in_a_thread(lambda: cluster.exchange(b"1", "a test"), UsageError)
    assert "main thread" in str(raised[0])
    assert cluster.begin_wait()(range(count)) == {}

    large, small = tf.Variable(tf.range(300_000, dtype=tf.float32)), tf.Variable(3, dtype=tf.int64)
    with CheckpointManager(root, {"large": large, "small": small}, shard_bytes=2**18) as manager:
        assert manager.restore_latest() is None
        manager.save(1)
        manager.save(2)
    large.assign(tf.zeros_like(large))
    be_patient()
    told: list[Event] = []
    with CheckpointManager(root, {"large": large, "small": small}, on_event=told.append) as manager:
        restored = manager.restore_latest()
        assert restored is not None
        assert (restored.step, restored.incarnation) == (2, 1)
        assert float(large[-1]) == 299_999
    assert any(isinstance(event, Restored) and event.peer_bytes > 0 for event in told)  # both want all of it
    with CheckpointManager(root, {"odd": tf.Variable(tf.zeros([me + 1]))}) as manager:
        with pytest.raises(UsageError, match=r"Worker 1 has odd: float32 \(2,\)[^()]* \(not on worker 0\)"):
            manager.restore_latest()

    if me == 1:
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    find_lost = cluster.begin_wait()
    with pytest.raises(PeerError, match=r"^worker 0 of 2: worker 1 \(127\.0\.0\.1:\d+\) of 2 has ended, in a test"):
        cluster.exchange(b"1", "a test")
    assert find_lost([1])[1].startswith("has ended (127.0.0.1:")
    with pytest.raises(PeerError, match=r"1 .*has ended.*; another cannot be done without it"):
        cluster.exchange(b"1", "another")
    with pytest.raises(PeerError, match=r"^worker 0 of 2: worker 1 \(127[^)]*\) has ended, in a long part$"):
        until(find_cluster().looking_after("a long part"), HANG_S)
    with pytest.raises(PeerError, match="has not reached a test"):
        find_cluster(arrival_timeout_s=4).exchange(b"1", "a test")
    print("well", flush=True)
    os._exit(0)
