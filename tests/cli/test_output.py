"""Output that cannot be written is neither damage nor a bug; and numbers of seconds that are none are refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.runner import Runner

MAIN = "from ckptflow.cli import main; main()"


def shell(line: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of bash in which "$@" is the command."""
    command = ["bash", "-c", line, "bash", sys.executable, "-c", MAIN, *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_nobody_who_reads(root: str, closed: str) -> None:
    assert shell(f'"$@" {closed}', "prune", root, "--last", "2", "--yes").returncode == 0
    assert shell(f'"$@" {closed}', "ls", root, "--json").returncode == 0
    assert shell(f'"$@" {closed}', "ls", root + "-none").returncode == 1


@pytest.mark.parametrize("how", [[], ["--json"]])
def test_a_full_disk_is_said(root: str, how: list[str]) -> None:
    for verb in (["ls", root], ["prune", root, "--last", "9", "--yes"], ["verify", root, "--all"]):
        ran = shell('"$@" > /dev/full', *verb, *how)
        assert (ran.returncode, ran.stderr) == (
            74,
            "ckptflow: standard output cannot be written: No space left on device\n",
        )


@pytest.mark.parametrize("how", [[], ["--json"]])
def test_a_reader_who_has_gone_is_no_damage(root: str, how: list[str]) -> None:
    line = 'exec 3> >(exec true); wait $!; "$@" >&3; echo $? >&2'
    ran = shell(line, "verify", root, "--all", *how)
    assert ran.stderr == "141\n"


@pytest.mark.parametrize("line", ['"$@" > /dev/full', 'exec 3> >(exec true); wait $!; "$@" >&3'])
def test_an_error_that_cannot_be_written_as_json_keeps_its_code(root: str, line: str) -> None:
    for verb, code in ((["show", f"{root}-none"], 1), (["ls", "foo://bucket/run"], 2), (["ls", root, "--bogus"], 2)):
        ran = shell(line, *verb, "--json")
        assert ran.returncode == code, ran
        assert "Traceback" not in ran.stderr
        assert "Exception ignored" not in ran.stderr
        assert ran.stderr


@pytest.mark.parametrize("number", ["inf", "nan", "1e300", "-inf"])
def test_seconds_are_a_number_that_ends(runner: Runner, root: str, number: str) -> None:
    for line in (
        ["bench", root, f"--seconds={number}"],
        ["watch", root, f"--every={number}"],
        ["prune", root, f"--every-seconds={number}"],
        ["report", root, f"--every-seconds={number}"],
    ):
        ran = runner(*line)
        assert (ran.code, ran.out) == (2, ""), line
