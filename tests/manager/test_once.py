"""Three real workers read storage once, in each kind of restore; and nothing is left listening."""

from __future__ import annotations

import json
from pathlib import Path

import ckptflow
from tests.processes import run_workers

WORKERS = 3
OWN_BYTES = 400_000


def test_storage_is_read_once(tmp_path: Path) -> None:
    results = run_workers("tests.manager.once:restores", WORKERS, env={"ROOT": str(tmp_path)})
    found: dict[str, list[list[int]]] = {}
    for result in results:
        assert "well" in result.output, result.output
        for line in result.output.splitlines():
            if line.startswith("{"):
                for kind, moved in json.loads(line).items():
                    found.setdefault(kind, []).append(moved)
    with ckptflow.open_checkpoint(tmp_path, step=1) as checkpoint:
        size_bytes = sum(checkpoint.spec(name).size_bytes for name in checkpoint)
        early_bytes = sum(checkpoint.spec(name).size_bytes for name in checkpoint if name.startswith("table"))
    for kind, times in {"latest": 1.0, "step": 1.0, "rename": 1.0, "partial": 2.0, "storage": WORKERS}.items():
        expected = times * size_bytes
        if kind == "partial":  # tables are verified by being read
            expected -= early_bytes
        if kind == "storage":  # each its own
            expected -= (WORKERS - 1) * WORKERS * OWN_BYTES
        read_bytes = sum(storage for storage, _ in found[kind])
        assert expected <= read_bytes <= 1.05 * expected, (kind, read_bytes, expected)
        assert all(bool(peers) == (kind != "storage") for _, peers in found[kind]), kind


def test_in_a_job_of_one_worker_nothing_listens(tmp_path: Path) -> None:
    (result,) = run_workers("tests.manager.once:alone", 1, env={"ROOT": str(tmp_path)})
    assert "well" in result.output, result.output
