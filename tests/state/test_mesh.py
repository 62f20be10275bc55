"""DTensor variables, where only blocks can go wrong; the matrix has the rest."""

from __future__ import annotations

from tests.processes import run_workers


def test_blocks() -> None:
    (result,) = run_workers("tests.state.mesh:blocks", 1)
    assert "well" in result.output
