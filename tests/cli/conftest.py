"""What the tests of the command share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.runner import Runner
from tests.roots import make_root


@pytest.fixture
def runner(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Runner:
    for name in ("CKPTFLOW_STORAGE_OPTIONS", "CKPTFLOW_TRACEBACK", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    return Runner(capfd)


@pytest.fixture
def root(tmp_path: Path) -> str:
    """Three checkpoints by two workers, all of which count."""
    make_root(str(tmp_path / "run"), (100, 200, 300), world_size=2, metrics={"loss": 0.5})
    return str(tmp_path / "run")
