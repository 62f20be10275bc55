"""Host memory: a save takes the pool and no second model; once warm, nothing grows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.waiting import HANG_S

_PROGRAM = """
import gc, json, os, sys, threading, time
import tensorflow as tf
import ckptflow

MIB = 2**20

def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

class Peak:
    def __enter__(self):
        gc.collect()
        self.before = self.peak = rss()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self
    def watch(self):
        while not self.stop.wait(0.001):
            self.peak = max(self.peak, rss())
    def __exit__(self, *args):
        self.stop.set()
        self.thread.join()
        self.extra_mib = (self.peak - self.before) / MIB

# Made on this thread: memory that another thread's arena has freed stays with that arena (glibc), which no checkpoint
# code can help and which would be counted here.
variables = [tf.Variable(tf.zeros([4 * MIB])) for _ in range(16)]   # 16 x 16 MiB
state = {f"v{i}": v for i, v in enumerate(variables)}
options = dict(shard_bytes=16 * MIB, memory_budget_bytes=32 * MIB, keep=[ckptflow.KeepLast(1)])
found = {}
with ckptflow.CheckpointManager(sys.argv[1], state, **options) as manager:
    with Peak() as first:
        manager.save(1).result()
    for step in range(2, 6):
        manager.save(step).result()
    manager.wait()  # the prune after the last one as well
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with Peak() as warm:
        for step in range(6, 14):
            manager.save(step).result()
        manager.wait()
    found["threads"] = threading.active_count() - threads
    found["descriptors"] = len(os.listdir("/proc/self/fd")) - descriptors
with ckptflow.CheckpointManager(sys.argv[1], state, **options) as manager:
    with Peak() as restore:
        manager.restore_latest()
found.update(first=first.extra_mib, warm=warm.extra_mib, restore=restore.extra_mib)
print(json.dumps(found))
"""


def measure(root: Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", _PROGRAM, str(root)], capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_the_pool_is_all_that_a_save_takes(tmp_path: Path) -> None:
    """256 MiB of state, a pool of 32 MiB: a second model would show eight times over."""
    found = measure(tmp_path)
    slack_mib = 16  # threads' stacks, arenas, JSON
    assert found["first"] < 32 + slack_mib, found
    assert found["warm"] < slack_mib, found
    assert found["threads"] <= 0, found
    assert found["descriptors"] <= 0, found
    # a restore holds, beside the pool and the model, those tensors (16 MiB) of which a part has come: each lies in two
    # shards here, and two are read at once
    assert found["restore"] < 32 + 3 * 16 + slack_mib, found
