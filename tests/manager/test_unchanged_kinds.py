"""Every kind of state: what is left alone is copied, and what is copied is what would have been sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes import run_workers, start_workers
from tests.waiting import HANG_S


@pytest.mark.parametrize("program", ["alone", "replicated"])
def test_every_kind(tmp_path: Path, program: str) -> None:
    (result,) = run_workers(f"tests.manager.kinds:{program}", 1, env={"ROOT": str(tmp_path)})
    assert result.output.endswith("well\n"), result.output


def test_parts_on_servers(tmp_path: Path) -> None:
    tasks, env = ("chief", "worker", "ps", "ps"), {"ROOT": str(tmp_path / "run")}
    with start_workers("tests.manager.kinds:servers", 4, tasks=tasks, env=env, folder=tmp_path / "logs") as workers:
        assert workers[0].wait(HANG_S) == 0, workers[0].output()
