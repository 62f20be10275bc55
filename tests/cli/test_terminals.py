"""Every verb at any width, in a pipe, without colours, on a full disk: no table is wider, and no number is broken."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.cli.runner import Runner
from tests.roots import make_root

LAST = 123456789
TABLES = (
    "ls ROOT --all",
    "ls ROOT --best val_loss",
    "ls PREFIX",
    "show ROOT",
    "show ROOT --stats",
    f"diff ROOT --step 1 --other-step {LAST}",
    "prune ROOT --last 1",
    "delete ROOT --step 1",
)
LINES = (
    "verify ROOT --all",
    "verify ROOT --all --sample 5% --seed 1",
    f"watch ROOT --until-step {LAST}",
    "copy ROOT COPY --step 1",
    "pin ROOT --step 1",
    "unpin ROOT --step 1",
    "pin ROOT --step 1 --name release",
)
VERBS = [
    "bench",
    "copy",
    "delete",
    "diff",
    "doctor",
    "export",
    "import",
    "ls",
    "pin",
    "prune",
    "report",
    "show",
    "verify",
    "watch",
]
NUMBER = re.compile(r"(?<![\w/.:-])\d+\.\d+(?![\w.])|\b\d{9}\b(?!-)")  # of sizes, metrics and steps; not of paths


@pytest.fixture
def wide_root(tmp_path: Path) -> str:
    make_root(root := str(tmp_path / "run"), (1, LAST), world_size=2, metrics={"val_loss": 0.12346})
    return root


def words_of(line: str, root: str, copy: object = "copy") -> list[str]:
    return line.replace("ROOT", root).replace("COPY", f"{root}-{copy}").replace("PREFIX", f"{root}/..").split()


@pytest.mark.parametrize("line", [*TABLES, *LINES])
def test_a_verb_at_any_width(runner: Runner, wide_root: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    piped = runner(*words_of(line, wide_root))
    for columns in (40, 60, 80, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        shown = runner(*words_of(line, wide_root, columns))
        assert (shown.code, shown.err) == (piped.code, "")
        assert piped.code == line.startswith("diff")
        assert "\x1b" not in shown.out
        if line in TABLES:
            assert max(map(len, shown.out.splitlines())) <= columns
            assert set(NUMBER.findall(piped.out)) <= set(NUMBER.findall(shown.out))


@pytest.mark.parametrize("line", [*TABLES, *LINES, *(f"{line} --json" for line in (*TABLES, *LINES))])
def test_a_verb_on_a_full_disk(runner: Runner, wide_root: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        ran = runner(*words_of(line, wide_root))
        monkeypatch.undo()
    assert (ran.code, ran.err) == (74, "ckptflow: standard output cannot be written: No space left on device\n")


@pytest.mark.parametrize("verb", VERBS)
def test_help_speaks_no_parser(runner: Runner, verb: str) -> None:
    ran = runner(verb, "--help")
    assert not re.search(r"[{}]|<\w+( range)?>|x[<>]=|<=x", ran.out)
    assert re.match(rf"Usage: ckptflow {verb} \[OPTIONS\] (URL|SOURCE)\b", ran.out)
