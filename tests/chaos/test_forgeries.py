"""Forged roots, by the thousand: no raw error, no hang, no memory beyond a bound, and no sound checkpoint hidden."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.conftest import Note
from tests.processes import run_python

SHORT_COUNT, LONG_COUNT = 60, 20_000
BATCH = 2000  # roots that one process sees
BATCH_S = 3600  # generous, since a shared machine may be busy


def forge(folder: Path, first: int, count: int) -> list[dict[str, Any]]:
    """So many forged roots, in a process under its limits; those that broke a promise."""
    folder.mkdir(parents=True)
    args = ["-m", "tests.chaos.forgeries", str(folder), str(first), str(count)]
    done = run_python(*args, fresh=True, timeout_s=BATCH_S)
    assert done.returncode == 0, f"the process ended with {done.returncode} among {first}…\n{done.stderr[-2000:]}"
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_some_forgeries(tmp_path: Path) -> None:
    broken = forge(tmp_path / "forged", 0, SHORT_COUNT)
    assert not broken, json.dumps(broken, indent=1)[:8000]


@pytest.mark.chaos
@pytest.mark.timeout(4 * 3600)
def test_many_forgeries(tmp_path: Path, note: Note) -> None:
    start = int(os.environ.get("CKPTFLOW_CHAOS_SEED", 1)) * 1_000_000
    broken = [
        each for first in range(start, start + LONG_COUNT, BATCH) for each in forge(tmp_path / str(first), first, BATCH)
    ]
    note("forged roots", LONG_COUNT, f"{len(broken)} with a broken promise")
    assert not broken, json.dumps(broken, indent=1)[:8000]
