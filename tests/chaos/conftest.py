"""The trust campaign's figures: each part notes what it tried and how often, and the run ends with one table."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Note = Callable[[str, int, str], None]
_FIGURES = pytest.StashKey[list[tuple[str, int, str]]]()


@pytest.fixture(scope="session")
def note(pytestconfig: pytest.Config) -> Note:
    """note("kill -9, local disk", 500, "0 lost"): what was tried, how often, and what came of it."""
    figures = pytestconfig.stash.setdefault(_FIGURES, [])
    return lambda what, count, result: figures.append((what, count, result))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    figures = config.stash.get(_FIGURES, [])
    if figures:
        terminalreporter.section("what was tried")
        width = max(len(what) for what, _, _ in figures)
        for what, count, result in figures:
            terminalreporter.write_line(f"{what:<{width}}  {count:>8,}  {result}")
