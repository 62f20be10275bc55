"""A worker that waits for one that never comes: SIGTERM ends it, though TensorFlow has a handler of its own."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.processes import start_workers
from tests.waiting import HANG_S


@pytest.mark.parametrize(
    ("case", "code"), [("no handler", -signal.SIGTERM), ("a handler", 9), ("a handler from before", 9)]
)
def test_a_worker_that_waits_can_be_ended(tmp_path: Path, case: str, code: int) -> None:
    env = {"ROOT": str(tmp_path / "run"), "CASE": case}
    with start_workers("tests.peers.waiting_workers:main", 2, env=env) as workers:
        for worker in workers:
            worker.wait_for_output("waits", HANG_S)
        workers[0].send(signal.SIGTERM)
        assert workers[0].wait(HANG_S) == code, workers[0].output()
