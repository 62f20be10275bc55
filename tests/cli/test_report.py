"""`ckptflow report`: the page where it belongs, whole or not at all; the data as JSON; what it says where it cannot."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from ckptflow.cli.exits import EXITS
from ckptflow.storage.opening import open_store
from tests import servers
from tests.cli.runner import Runner, run_alone
from tests.report import runs
from tests.roots import make_root

DOCS = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
WITHOUT_JINJA = """
import sys
sys.modules["jinja2"] = None  # as if it were not installed
from ckptflow.cli import main
main()
"""


@pytest.fixture
def eventful(tmp_path: Path) -> str:
    runs.eventful(tmp_path / "run-7")
    return str(tmp_path / "run-7")


def test_the_page_is_written_into_the_current_folder_and_renewed(
    runner: Runner, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = runner("report", root, "--last", "2")
    assert (ran.code, ran.err) == (0, "")
    assert re.fullmatch(r"run-report\.html: \d+\.\d KiB\n", ran.out)
    first = (tmp_path / "run-report.html").read_text()
    assert "2 of the last 2" in first
    make_root(root, (400,))
    assert runner("report", root).code == 0
    second = (tmp_path / "run-report.html").read_text()
    assert "step 400" in second
    assert "step 400" not in first
    assert sorted(os.listdir(tmp_path)) == ["run", "run-report.html"]


def test_a_file_that_is_no_page_is_left_alone(runner: Runner, root: str, tmp_path: Path) -> None:
    (tmp_path / "notes.html").write_text("<h1>mine</h1>")
    ran = runner("report", root, "--output", str(tmp_path / "notes.html"))
    assert (ran.code, ran.out) == (2, "")
    assert "exists and is not a report; name another file with --output" in ran.err
    assert (tmp_path / "notes.html").read_text() == "<h1>mine</h1>"


def test_what_cannot_be_written_is_said_before_anything_is_read(runner: Runner, root: str, tmp_path: Path) -> None:
    ran = runner("report", root, "--output", str(tmp_path / "no-such" / "page.html"))
    assert ran.code == 2
    assert f"{tmp_path}/no-such/page.html: there is no such directory" in ran.err
    ran = runner("report", root, "--output", str(tmp_path))
    assert ran.code == 2
    assert "Is a directory" in ran.err
    os.mkfifo(tmp_path / "pipe")
    ran = runner("report", root, "--output", str(tmp_path / "pipe"))
    assert ran.code == 2
    assert "pipe is neither a file nor a folder" in ran.err


def test_half_a_page_is_never_there(runner: Runner, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.html"
    assert runner("report", root, "--output", str(page)).code == 0
    before = page.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    ran = runner("report", root, "--output", str(page))
    assert ran.code == 2
    assert "page.html: cannot write: No space left on device" in ran.err
    assert page.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["page.html", "run"]


def test_a_page_is_written_through_no_link(runner: Runner, root: str, tmp_path: Path) -> None:
    """Whatever names are there, and wherever they lead: only the page is new, and it is a file."""
    (tmp_path / "elsewhere").write_bytes(b"")
    for name in ("page.html", *(f"page.html.{number}.part" for number in range(os.getpid() - 3, os.getpid() + 4))):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    assert runner("report", root, "--output", str(tmp_path / "page.html")).code == 0
    assert (tmp_path / "elsewhere").read_bytes() == b""
    assert not (tmp_path / "page.html").is_symlink()


def test_json_has_the_documented_shape(runner: Runner, eventful: str) -> None:
    ran = runner("report", eventful, "--json", "--last", "2")
    assert (ran.code, ran.err) == (0, "")
    section = DOCS.read_text().partition("\n## report")[2].partition("\n## ")[0]
    documented = json.loads(section.partition("```json\n")[2].partition("```")[0])
    assert _shape(ran.json) == _shape(documented)
    assert [life["given_up_steps"] for life in ran.json["incarnations"]] == [None, None, 100, None, 0, 280]
    assert ran.json["incarnations"][0]["claimed_at"] == "2026-10-01T08:00:00+00:00"
    assert [each["folder"] for each in ran.json["checkpoints"] if each["problem"]] == [
        "000000000100-i0001",
        "000000000500-i0002",
    ]


def test_json_needs_no_extra_and_the_page_says_what_to_install(root: str, tmp_path: Path) -> None:
    ran = run_alone("report", root, "--output", str(tmp_path / "page.html"), script=WITHOUT_JINJA)
    assert (ran.code, ran.out) == (2, "")
    assert "pip install 'ckptflow[report]'" in ran.err
    assert "Traceback" not in ran.err
    assert "a package that it needs is not installed" in EXITS[2]
    assert not (tmp_path / "page.html").exists()
    ran = run_alone("report", root, "--json", script=WITHOUT_JINJA)
    assert (ran.code, ran.json["resumes_from"]) == (0, "000000000300-i0001")


def test_a_metric_that_no_checkpoint_has_is_a_mistake(runner: Runner, root: str, tmp_path: Path) -> None:
    ran = runner("report", root, "--best", "val_loss", "--output", str(tmp_path / "page.html"))
    assert ran.code == 2
    assert "no checkpoint here has the metric 'val_loss'; there is loss" in ran.err
    assert not (tmp_path / "page.html").exists()


def test_a_folder_of_one_checkpoint_and_a_root_that_is_not_there(runner: Runner, root: str, tmp_path: Path) -> None:
    ran = runner("report", f"{root}/000000000100-i0001")
    assert ran.code == 2
    assert "use `ckptflow show`" in ran.err
    assert runner("report", str(tmp_path / "nothing")).code == 1


def test_on_s3(runner: Runner, moto: servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moto.make_bucket("report-bucket")
    store = open_store("s3://report-bucket/runs/run-9", moto.storage_options)
    make_root(store, (1, 2))
    store.close()
    monkeypatch.setenv("CKPTFLOW_STORAGE_OPTIONS", json.dumps(moto.storage_options))
    monkeypatch.chdir(tmp_path)
    assert runner("report", "s3://report-bucket/runs/run-9").code == 0
    page = (tmp_path / "run-9-report.html").read_text()
    assert "s3://report-bucket/runs/run-9" in page
    assert servers.S3_SECRET not in page


def _shape(value: object) -> object:
    """The members at every place: of a list those of its first item."""
    if isinstance(value, dict):
        return {key: _shape(each) for key, each in value.items() if key != "metrics"}
    return [_shape(each) for each in value[:1] if isinstance(each, dict)] if isinstance(value, list) else None
