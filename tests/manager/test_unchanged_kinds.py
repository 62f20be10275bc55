"""Every kind of state: what is left alone is copied, and what is copied is what would have been sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes import run_python


@pytest.mark.parametrize("program", ["alone"])
def test_every_kind(tmp_path: Path, program: str) -> None:
    done = run_python(
        "-c", f"from tests.manager.kinds import {program}; {program}()", env={"ROOT": str(tmp_path)}
    )
    assert done.stdout.endswith("well\n"), done.stdout + done.stderr
