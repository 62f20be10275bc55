"""DTensor clients with blocks that are large enough to be saved in slices."""

from __future__ import annotations

from pathlib import Path

from ckptflow import open_checkpoint
from tests.ports import free_ports
from tests.processes import start_workers
from tests.waiting import HANG_S


def test_large_blocks_are_read_in_part_under_another_mesh(tmp_path: Path) -> None:
    addresses = ",".join(f"127.0.0.1:{port}" for port in free_ports(2))
    env = {"DTENSOR_JOBS": addresses, "DTENSOR_NUM_CLIENTS": "2", "ROOT": str(tmp_path / "run"), "TF_CONFIG": ""}
    ids = [{"DTENSOR_CLIENT_ID": str(client)} for client in range(2)]
    with start_workers("tests.edge.blocks:blocks", 2, env=env, per_worker_env=ids) as clients:
        for client in clients:
            assert client.wait(HANG_S) == 0, client.output()
            assert "well" in client.output()
    with open_checkpoint(tmp_path / "run") as opened:
        assert len(opened.spec("v").slices) > 16  # more than one for each of the four blocks
        assert opened.verify() == []
