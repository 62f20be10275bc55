"""One checkpoint whose manifest holds what nobody expects: every verb shows the others, and what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import crc32c
import pytest

from ckptflow import list_checkpoints
from tests.cli.runner import Runner
from tests.roots import make_root

BAD = "000000000200-i0001"
HUGE = {"$int": "0x" + "f" * 20_000}
RAW = "raw:"  # such a text stands in the JSON as it is
MEMBERS: dict[str, dict[str, Any]] = {
    "a newer version": {"version": 2},
    "a version of 20,000 digits": {"version": RAW + "9" * 20_000},
    "year 0": {"created_at": "0000-01-01T00:00:00+00:00"},
    "year 10000": {"created_at": "10000-01-01T00:00:00+00:00"},
    "the first hours, in the east": {"created_at": "0001-01-01T00:00:00+14:00", "began_at": "0001-01-01T00:00:00"},
    "the last hours, in the west": {"created_at": "9999-12-31T23:59:59.999999-14:00"},
    "a start that is no time": {"began_at": "yesterday"},
    "metadata of 20,000 digits": {"metadata": HUGE},
    "a key of 20,000 digits": {"metadata": {"$dict": [[HUGE, HUGE]]}},
    "a number of 20,000 digits": {"metadata": RAW + "9" * 20_000},
    "a metric beyond all numbers": {"metrics": {"loss": RAW + "1e400"}},
    "a metric of 20,000 digits": {"metrics": {"loss": RAW + "9" * 20_000}},
    "names that a terminal would obey": {"metrics": {"\x1b[31m\u009b\u202e": 1.0}, "software": {"\n": "\x07"}},
    "depth": {"python_state": {"a": RAW + "[" * 5000 + "]" * 5000}},
}


def forge(path: Path, members: dict[str, Any]) -> None:
    record = json.loads(path.read_bytes())
    del record["crc32c"]
    body = json.dumps(record | members, separators=(",", ":"))
    head, *rest = body.split(f'"{RAW}')
    body = head + "".join("".join(part.partition('"')[::2]) for part in rest)
    data = body.encode()[:-1]
    path.write_bytes(data + b',"crc32c":"%08x"}' % crc32c.crc32c(data))


@pytest.mark.parametrize("name", MEMBERS)
def test_the_others_are_shown(runner: Runner, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    root = str(tmp_path / "run")
    make_root(root, (100, 200, 300), metrics={"loss": 0.5})
    forge(Path(root, BAD, "manifest.json"), MEMBERS[name])
    told = runner("ls", root, "--json").json["checkpoints"]
    assert [row["step"] for row in told] == [100, 200, 300]
    assert [row["problem"] for row in told if row["step"] != 200] == [None, None]
    for args in (["ls", root], ["watch", root, "--until-step", "300"]):
        assert runner(*args).code == 0
    assert [each["step"] for each in runner("report", root, "--json").json["checkpoints"]] == [100, 200, 300]
    plan = runner("prune", root, "--last", "3", "--json").json["folders"]
    assert [each["step"] for each in plan] == [100, 200, 300]
    assert {each.step for each in list_checkpoints(root)} >= {100, 300}
    assert runner("show", f"{root}/{BAD}").code in (0, 1, 5)


def test_what_a_newer_version_wrote_is_never_deleted(runner: Runner, tmp_path: Path) -> None:
    root = str(tmp_path / "run")
    make_root(root, (100, 200, 300))
    forge(Path(root, BAD, "manifest.json"), {"version": 2})
    told = {
        each["step"]: each["keep"] for each in runner("prune", root, "--last", "1", "--yes", "--json").json["folders"]
    }
    assert told == {100: False, 200: True, 300: True}
    assert Path(root, BAD, "manifest.json").is_file()
    assert not Path(root, "000000000100-i0001").exists()
