"""The harness itself: TF_CONFIG, outputs, time-outs, and that nothing is left running."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from tests.processes import run_workers, start_workers, was_killed


def show_task() -> None:
    print(json.loads(os.environ["TF_CONFIG"])["task"]["type"], json.loads(os.environ["TF_CONFIG"])["task"]["index"])


def hang() -> None:
    print("up")
    time.sleep(600)


def fail() -> None:
    raise SystemExit("on purpose")


def test_each_worker_gets_its_task() -> None:
    results = run_workers(f"{__name__}:show_task", 3, chief=True, timeout_s=60)
    assert [result.output.split() for result in results] == [["chief", "0"], ["worker", "0"], ["worker", "1"]]


def test_a_failure_shows_every_output() -> None:
    with pytest.raises(RuntimeError, match="worker 1: exit code 1\non purpose"):
        run_workers(f"{__name__}:fail", 2, timeout_s=60)


def test_a_hang_times_out_and_nothing_is_left_running() -> None:
    with start_workers(f"{__name__}:hang", 2) as workers:
        for worker in workers:
            worker.wait_for_output("up", 60)
        workers[0].kill()
        assert workers[0].process.returncode == -signal.SIGKILL
        with pytest.raises(TimeoutError, match="worker 1 still runs"):
            workers[1].wait(0.1)
    assert workers[1].process.returncode == -signal.SIGKILL
    with pytest.raises(TimeoutError):
        run_workers(f"{__name__}:hang", 1, timeout_s=0.1)


def test_was_killed_tells_sigkill_from_an_exit() -> None:
    result = run_workers(f"{__name__}:fail", 1, timeout_s=60, check=False)[0]
    assert not was_killed(result)
