"""Strategies whose workers meet in other ways than MultiWorkerMirrored's: real signals, two lives each."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

import ckptflow
from tests.ports import free_ports
from tests.processes import Worker, start_workers
from tests.waiting import HANG_S


def tell_twice(programs: list[Worker], told: tuple[int, int], root: Path) -> None:
    for life, index in enumerate(told):
        for program in programs:
            program.wait_for_output(f"life {life}: tell me", HANG_S)
        programs[index].send(signal.SIGTERM)
    assert [program.wait(HANG_S) for program in programs] == [75] * len(programs)
    for program in programs:
        begun = re.findall(r"begins after step (\d+)", program.output())
        left = re.findall(r"left at step (\d+)", program.output())
        assert begun == ["0", left[0]], program.output()
        assert [str(c.step) for c in ckptflow.list_checkpoints(root)] == left, program.output()


def test_the_chief_of_parameter_servers_decides(tmp_path: Path) -> None:
    tasks = ("chief", "worker", "ps")
    program = "tests.preemption.strategies:parameter_server"
    with start_workers(program, len(tasks), env={"ROOT": str(tmp_path)}, tasks=tasks) as workers:
        tell_twice(workers[:1], (0, 0), tmp_path)


@pytest.mark.chaos
def test_two_dtensor_clients(tmp_path: Path) -> None:
    environment = {
        "ROOT": str(tmp_path),
        "TF_CONFIG": "{}",
        "DTENSOR_JOB_NAME": "worker",
        "DTENSOR_NUM_CLIENTS": "2",
        "DTENSOR_JOBS": ",".join(f"127.0.0.1:{port}" for port in free_ports(2)),
    }
    numbers = [{"DTENSOR_CLIENT_ID": str(client)} for client in range(2)]
    program = "tests.preemption.strategies:dtensor_client"
    with start_workers(program, 2, env=environment, per_worker_env=numbers) as workers:
        tell_twice(workers, (1, 0), tmp_path)
