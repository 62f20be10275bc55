"""One checkpoint whose manifest holds what nobody expects: every verb shows the others, and what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import crc32c
import pytest
import tensorflow as tf

from ckptflow import CheckpointManager, list_checkpoints, open_checkpoint
from ckptflow.errors import StorageAccessError, StorageError, StorageUnavailableError
from ckptflow.format.layout import claim_key
from ckptflow.storage.local import LocalStore
from tests.cli.runner import Runner
from tests.roots import make_root

BAD = "000000000200-i0001"
HUGE = {"$int": "0x" + "f" * 20_000}
DOUBT = "it is not certain which checkpoints are current"
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


REFUSALS = {
    "refused": (StorageAccessError, 3),
    "in an archive": (StorageError, 3),
    "on a bad sector": (StorageUnavailableError, 4),
}


def refuse(patch: pytest.MonkeyPatch, error: type[StorageError], *names: str) -> None:
    """The disk lists these files and does not give them."""
    get = LocalStore.get

    def refusing(self: LocalStore, key: str, into: memoryview, start: int = 0) -> int:
        if key in names:
            raise error(f"{self.url}/{key}: cannot read: so it is")
        return get(self, key, into, start)

    patch.setattr(LocalStore, "get", refusing)


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("step", [200, 300])
def test_a_manifest_that_the_storage_does_not_give(
    name: str, step: int, runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are shown and verified; nothing is decided by what could not be read."""
    error, code = REFUSALS[name]
    root, bad = str(tmp_path / "run"), f"{step:012d}-i0001"
    make_root(root, (100, 200, 300), metrics={"loss": 0.5})
    refuse(monkeypatch, error, f"{bad}/manifest.json")
    ran = runner("ls", root, "--json")
    assert ran.code == code
    problems = {row["step"]: row["problem"] for row in ran.json["checkpoints"]}
    assert problems.keys() == {100, 200, 300}
    assert problems[step].startswith("cannot be read: ")
    assert [problem for problem in problems.values() if problem is None] == [None, None]
    assert ran.json["resumes_from"] == (None if step == 300 else "000000000300-i0001")
    assert runner("ls", root).code == code
    ran = runner("watch", root, "--json", "--until-step", "100")
    assert ran.code == (code if step == 300 else 0)  # 300 decides what counts
    told = [json.loads(line) for line in ran.out.splitlines()]
    assert [each["step"] for each in told if each["what"] == "unread"] == ([None, 300] if step == 300 else [200])
    assert {each["step"] for each in told if each["what"] == "committed"} == {100, 200, 300} - {step}
    ran = runner("report", root, "--json")
    assert ran.code == code
    assert [each["step"] for each in ran.json["checkpoints"]] == [100, 200, 300]
    ran = runner("verify", root, "--all", "--json")
    assert ran.code == code
    assert not ran.json["ok"]
    states = {each["step"]: each["state"] for each in ran.json["checkpoints"]}
    assert states == {**dict.fromkeys((100, 200, 300), "whole"), step: "unread"}
    assert "1 of 3 not read" in runner("verify", root, "--all").out
    ran = runner("prune", root, "--last", "1", "--json")
    assert ran.code == code
    assert ran.json["refused"].startswith("it is not certain which checkpoints are current")
    assert {each["step"]: each["keep"] for each in ran.json["folders"]}[step]
    before = sorted(Path(root).rglob("*"))
    assert runner("prune", root, "--last", "1", "--yes").code == code
    assert sorted(Path(root).rglob("*")) == before


@pytest.mark.parametrize("name", REFUSALS)
def test_a_claim_that_the_storage_does_not_give(
    name: str, runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart goes by it, so nobody vouches for what counts, and everything is shown nevertheless."""
    error, code = REFUSALS[name]
    root = str(tmp_path / "run")
    make_root(root, (100, 200, 300), metrics={"loss": 0.5})
    with monkeypatch.context() as patch:
        refuse(patch, error, claim_key(1))
        with pytest.raises(error), CheckpointManager(root, {"x": tf.Variable(0.0)}) as manager:
            manager.restore_latest()
        verbs = "ls", "verify --all", "show", "show --step 200", "report", "prune --last 1"
        for verb in map(str.split, verbs):
            ran = runner(verb[0], root, *verb[1:], "--json")
            assert ran.code == code, verb
            assert DOUBT in (ran.json.get("doubt") or ran.json["refused"]), verb
            output = ["--output", str(tmp_path / "page.html")] if verb == ["report"] else []
            ran = runner(verb[0], root, *verb[1:], *output)
            assert ran.code == code, verb
            told = (tmp_path / "page.html").read_text() if output else ran.out
            assert DOUBT in told.lower(), verb
        told = runner("ls", root, "--json").json
        assert told["resumes_from"] is None
        assert [row["problem"] for row in told["checkpoints"]] == [None] * 3
        told = runner("verify", root, "--all", "--json").json
        assert not told["ok"]
        assert [each["state"] for each in told["checkpoints"]] == ["whole"] * 3
        told = runner("report", root, "--json").json
        assert told["resumes_from"] is None
        assert told["incarnations"][0]["claim_problem"].startswith("cannot be read: ")
        assert runner("show", root, "--step", "200", "--json").json["step"] == 200
        copy = tmp_path / "copy"
        ran = runner("copy", root, str(copy), "--all", "--json")
        assert ran.code == code
        assert DOUBT in ran.json["doubt"]
        assert [each["step"] for each in ran.json["checkpoints"]] == [100, 200, 300]
    overview = runner("ls", root, "--json").json
    assert (overview["doubt"], overview["resumes_from"]) == (None, "000000000300-i0001")


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("kind", ["manifest.json", "shard-*"])
def test_copy_and_show_where_the_storage_does_not_give_a_file(
    name: str, kind: str, runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --all the others are copied; one alone is refused, and nothing counts where it was to go."""
    error, code = REFUSALS[name]
    root, copy = str(tmp_path / "run"), tmp_path / "copy"
    make_root(root, (100, 200, 300))
    file = next(Path(root, BAD).glob(kind))
    refuse(monkeypatch, error, f"{BAD}/{file.name}")
    ran = runner("copy", root, str(copy), "--step", "200")
    assert ran.code == code
    assert "cannot read: so it is" in ran.err
    assert not list(copy.glob("*/manifest.json"))
    ran = runner("copy", root, str(copy), "--all", "--json")
    assert ran.code == code
    assert [each["step"] for each in ran.json["checkpoints"]] == [100, 300]
    assert [each["folder"] for each in ran.json["unread"]] == [BAD]
    assert sorted(path.parent.name for path in copy.glob("*/manifest.json")) == [
        "000000000100-i0001",
        "000000000300-i0001",
    ]
    assert f"{BAD}  not copied, cannot be read: " in runner("copy", root, str(copy), "--all").out
    ran = runner("show", root, "--json")
    assert (ran.code, ran.json["step"]) == (0, 300)
    refuse(monkeypatch, error, "000000000300-i0001/manifest.json")
    ran = runner("show", root, "--json")
    assert ran.code == code
    assert ran.json["step"] < 300
    assert DOUBT in ran.json["doubt"]


def test_copy_ends_where_the_destination_refuses(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, copy = str(tmp_path / "run"), tmp_path / "copy"
    make_root(root, (100, 200, 300))

    def refusing(self: LocalStore, key: str, data: memoryview) -> None:
        raise StorageAccessError(f"{self.url}/{key}: no")

    monkeypatch.setattr(LocalStore, "put", refusing)
    ran = runner("copy", root, str(copy), "--all")
    assert (ran.code, ran.out) == (3, "")


def test_a_shard_that_the_storage_does_not_give(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(tmp_path / "run")
    make_root(root, (100, 200, 300))
    shard = next(Path(root, BAD).glob("shard-*"))
    refuse(monkeypatch, StorageUnavailableError, f"{BAD}/{shard.name}")
    ran = runner("verify", root, "--all", "--json")
    assert ran.code == 4
    assert [each["state"] for each in ran.json["checkpoints"]] == ["whole", "unread", "whole"]
    assert runner("verify", root, "--step", "200").code == 4
    newest = next(Path(root, "000000000300-i0001").glob("shard-*"))
    newest.write_bytes(newest.read_bytes()[:-1])
    assert runner("verify", root, "--all").code == 1  # damage says more


def test_a_storage_that_does_not_answer_is_not_asked_for_each(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(tmp_path / "run")
    make_root(root, range(100))
    refuse(monkeypatch, StorageUnavailableError, *(f"{step:012d}-i0001/manifest.json" for step in range(100)))
    for verb in (["ls"], ["verify", "--all"], ["report", "--json"]):
        ran = runner(verb[0], root, *verb[1:])
        assert ran.code == 4
        assert "cannot read: so it is" in ran.err
    monkeypatch.undo()
    shards = [f"{path.parent.name}/{path.name}" for path in Path(root).glob("0*/shard-*")]
    refuse(monkeypatch, StorageUnavailableError, *shards)
    ran = runner("verify", root, "--all")
    assert ran.code == 4
    assert not ran.out


def test_what_decides_raises(runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(tmp_path / "run")
    make_root(root, (100, 200, 300))
    refuse(monkeypatch, StorageAccessError, "000000000300-i0001/manifest.json")
    with pytest.raises(StorageAccessError):
        open_checkpoint(root)
    with pytest.raises(StorageAccessError):
        list_checkpoints(root)
    with pytest.raises(StorageAccessError), CheckpointManager(root, {"x": tf.Variable(0.0)}) as manager:
        manager.restore_latest()
    assert runner("verify", root).code == 3


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
