"""Parameter servers: tensors larger than the memory of the chief, and a server that dies."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

import ckptflow
from tests.processes import start_workers
from tests.waiting import HANG_S

TASKS = ("chief", "worker", "ps", "ps")


def test_a_server_that_dies_is_named_and_nothing_saved_is_lost(tmp_path: Path) -> None:
    root, killed = tmp_path / "root", tmp_path / "killed"
    env = {"ROOT": str(root), "KILLED": str(killed)}
    with start_workers("tests.matrix.servers:lose_one", 4, tasks=TASKS, env=env, folder=tmp_path / "logs") as workers:
        workers[0].wait_for_output("ready to lose one", HANG_S)
        workers[3].kill()
        killed.touch()
        assert workers[0].wait(HANG_S) == 0, workers[0].output()
        output = workers[0].output()
    assert "raised the state cannot be read, and nothing was saved now: /job:ps/replica:0/task:1 that" in output
    assert re.search(r"raised v cannot be restored: (a parameter server|/job:ps/replica:0/task:1) that holds", output)
    assert {checkpoint.step for checkpoint in ckptflow.list_checkpoints(root)} == {1}  # twice: by the rollback
    with ckptflow.open_checkpoint(root) as checkpoint:
        np.testing.assert_array_equal(checkpoint["v"], np.arange(3_000_000, dtype=np.float32))
