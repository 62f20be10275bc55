"""What only several workers can get wrong while all of them live: one is late, missing, or holds something else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ports import free_ports
from tests.processes import Worker, start_workers
from tests.waiting import HANG_S


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Worker]]]:
    """All jobs at once: for most of their time they wait."""
    root = tmp_path_factory.mktemp("together")
    addresses = ",".join(f"127.0.0.1:{port}" for port in free_ports(2))
    env = {"DTENSOR_JOBS": addresses, "DTENSOR_NUM_CLIENTS": "2", "ROOT": str(root / "dtensor"), "TF_CONFIG": ""}
    ids = [{"DTENSOR_CLIENT_ID": str(client)} for client in range(2)]
    with (
        start_workers("tests.edge.programs:together", 2, env={"ROOT": str(root / "run")}) as workers,
        start_workers("tests.edge.clients:clients", 2, env=env, per_worker_env=ids) as clients,
        start_workers("tests.edge.programs:a_result_whose_chief_is_gone", 2, env={"ROOT": str(root / "result")}) as two,
    ):
        yield {"workers": workers, "clients": clients, "result": two}


def test_dtensor_clients(jobs: dict[str, list[Worker]]) -> None:
    survivor, victim = jobs["clients"]
    assert survivor.wait(HANG_S) == 0, survivor.output()
    assert victim.wait(HANG_S) == -9, victim.output()
    assert "well" in survivor.output()


def test_a_result_is_not_waited_for_when_the_chief_is_gone(jobs: dict[str, list[Worker]]) -> None:
    worker = jobs["result"][1]
    assert worker.wait(HANG_S) == 0, worker.output()
    assert "well" in worker.output()


def test_late_missing_and_different_workers(jobs: dict[str, list[Worker]]) -> None:
    """And every exchange of whole save cycles is made on the main thread."""
    for worker in jobs["workers"]:
        assert worker.wait(HANG_S) == 0, worker.output()
        assert "well" in worker.output()
