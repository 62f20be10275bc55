"""`ckptflow ls` above several runs: which there are, what is said of each, and in how many requests."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ckptflow.cli import runs as runs_module
from ckptflow.cli.runs import refused_runs, runs_in
from ckptflow.errors import StorageError
from ckptflow.storage.opening import open_store
from ckptflow.storage.store import Entry
from ckptflow.testing import CountingStore
from tests import servers
from tests.cli.runner import Runner, run_alone
from tests.roots import Life, make_root


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    make_root(f"{tmp_path}/a", (1, 2, 3))
    make_root(f"{tmp_path}/b/one", (10,), world_size=2)
    make_root(f"{tmp_path}/b/two", (20,))
    make_root(f"{tmp_path}/c/too/deep", (30,))
    Path(tmp_path, "notes.txt").write_text("nothing of ours")
    Path(tmp_path, "b", "000000000001-i1").mkdir()
    Life(open_store(f"{tmp_path}/started")).store.close()  # has claimed, and saved nothing
    return str(tmp_path)


def test_the_runs_are_listed(runner: Runner, prefix: str) -> None:
    ran = runner("ls", prefix)
    assert (ran.code, ran.err) == (0, "")
    head, *lines = [line.split() for line in ran.out.splitlines()]
    assert head == ["run", "newest", "created", "checkpoints", "stored", "state"]
    assert [(line[0], line[1]) for line in lines] == [("a", "3"), ("b/one", "10"), ("b/two", "20"), ("started", "-")]
    assert [line[-1] for line in lines] == ["ok", "ok", "ok", "current"]
    assert lines[0][-4] == "3"


@pytest.mark.parametrize("verb", ["show", "verify", "verify --all", "prune --last 1 --yes", "report", "export"])
def test_the_other_verbs_name_the_runs(runner: Runner, prefix: str, tmp_path: Path, verb: str) -> None:
    name, *rest = verb.split()
    ran = runner(name, prefix, *([f"{tmp_path}/out.keras"] if name == "export" else []), *rest)
    assert (ran.code, ran.out) == (1, "")
    assert f"{prefix}: this is no run, and has runs below it: a, b/one, b/two, started. Give the URL of one" in ran.err


def test_as_json(runner: Runner, prefix: str) -> None:
    told = runner("ls", prefix, "--json").json
    assert (told["url"], told["left_out"]) == (prefix, 0)
    first = told["runs"][0]
    one = runner("ls", f"{prefix}/a", "--json").json
    newest = one["checkpoints"][-1]
    assert first == {
        "name": "a",
        "url": one["url"],
        "run_id": one["run_id"],
        "incarnation": 1,
        "newest": newest["folder"],
        "newest_step": 3,
        "created_at": newest["created_at"],
        "checkpoints": 3,
        "stored_bytes": one["stored_bytes"],
        "problem": None,
        "doubt": None,
    }


def test_what_is_wrong_with_a_run_is_said_as_ls_of_it_says_it(runner: Runner, prefix: str) -> None:
    min(Path(prefix, "a", "000000000003-i0001").glob("shard-*")).unlink()
    Path(prefix, "b", "one", "000000000010-i0001", "manifest.json").write_text("{}")
    told = {run["name"]: run["problem"] for run in runner("ls", prefix, "--json").json["runs"]}
    for name in ("a", "b/one"):
        assert told[name] is not None
        assert told[name] == runner("ls", f"{prefix}/{name}", "--json").json["checkpoints"][-1]["problem"]
    assert "shards missing: 1 of " in runner("ls", prefix).out


def test_a_run_is_listed_as_ever_whatever_lies_below_it(runner: Runner, prefix: str) -> None:
    make_root(f"{prefix}/a/inner", (7,))
    assert [row["step"] for row in runner("ls", f"{prefix}/a", "--json").json["checkpoints"]] == [1, 2, 3]
    assert {run["name"] for run in runner("ls", prefix, "--json").json["runs"]} >= {"a", "a/inner"}


def test_a_link_to_a_run_is_named(runner: Runner, prefix: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = str(tmp_path_factory.mktemp("disk"))
    make_root(f"{elsewhere}/big", (9,))
    Path(prefix, "big").symlink_to(f"{elsewhere}/big")
    assert "Not followed: links to folders, big." in runner("ls", prefix).out
    assert runner("ls", prefix, "--json").json["links"] == ["big"]
    alone = tmp_path_factory.mktemp("links")
    Path(alone, "big").symlink_to(f"{elsewhere}/big")
    assert "Not followed: links to folders, big." in runner("ls", str(alone)).out


LINKED = ["000000000003-i0001", "lineage", "pins"]


@pytest.mark.parametrize("name", LINKED)
@pytest.mark.parametrize("run", ["a", "b/one"])
def test_a_link_in_a_run_is_said_as_ls_of_it_says_it(
    runner: Runner, prefix: str, tmp_path_factory: pytest.TempPathFactory, run: str, name: str
) -> None:
    """An older step is not shown as if nothing were wrong."""
    elsewhere = tmp_path_factory.mktemp("disk") / name
    if (place := Path(prefix, run, name)).exists():
        place.rename(elsewhere)
    else:
        elsewhere.mkdir()
    place.symlink_to(elsewhere)
    alone, ran = runner("ls", f"{prefix}/{run}"), runner("ls", prefix, "--json")
    assert (alone.code, ran.code) == (3, 3)
    told = {each["name"]: each["doubt"] for each in ran.json["runs"]}
    assert f"ckptflow: {told.pop(run)}\n" == alone.err
    assert set(told.values()) == {None}
    assert "it is a symbolic link" in runner("ls", prefix).out


def test_a_link_to_a_run_beside_others_is_named(
    runner: Runner, prefix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("disk")
    for name in ("b/three", "a/inside", "b/one/inside"):
        Path(prefix, name).symlink_to(elsewhere)
    Path(prefix, "b", "notes.txt").symlink_to(Path(prefix, "notes.txt"))
    assert runner("ls", prefix, "--json").json["links"] == ["b/three"]  # in a run there are none that matter


AS_ANOTHER_USER = """
import os, sys
from ckptflow.cli import main
output = os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
try:
    main()  # loads what that user may not read
except SystemExit:
    os.dup2(output, 1)
if child := os.fork():  # who has no other threads, whose user would have to change as well
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os.setgid(65534)
os.setuid(65534)
main()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_a_folder_that_may_not_be_read_is_one_row(runner: Runner, open_folder: Path) -> None:
    for name in ("a", "b/one", "b/secret", "c/two", "mine"):
        make_root(f"{open_folder}/{name}", (1, 2))
    Path(open_folder, "data", "deep", "cellar").mkdir(parents=True)
    closed = ["mine", "b/secret", "a/000000000002-i0001", "c/two/lineage", "data/deep/cellar"]
    for name in closed:
        Path(open_folder, name).chmod(0o700)
    ran = run_alone("ls", str(open_folder), "--json", script=AS_ANOTHER_USER)
    told = {each["name"]: (each["newest_step"], each["doubt"]) for each in ran.json["runs"]}
    why = "cannot list: Permission denied; check the credentials"
    assert (ran.code, ran.err) == (3, "")
    assert {name: step for name, (step, _) in told.items()} == {
        "a": 1,
        "b/one": 2,
        "b/secret": None,
        "c/two": 2,
        "mine": None,
    }
    for name, (_, doubt) in told.items():
        place = next((each for each in closed if each.startswith(name)), None)
        assert (doubt is None) == (place is None), name
        assert doubt is None or doubt.startswith(f"{open_folder}/{place}/: {why}"), name
    ran = run_alone("ls", str(open_folder), script=AS_ANOTHER_USER)
    assert (ran.code, ran.out.count(why)) == (3, 4)
    for name in ("a", "mine", "c/two"):  # one run is listed whole, or not at all
        ran = run_alone("ls", f"{open_folder}/{name}", script=AS_ANOTHER_USER)
        assert (ran.code, ran.out) == (3, "")
        assert why in ran.err


def test_whose_a_folder_is_that_cannot_be_listed() -> None:
    why = StorageError("so it is")

    def found(runs: list[str], *paths: str) -> list[str]:
        return sorted(refused_runs(runs, dict.fromkeys(paths, why)))

    assert found(["a"], "a/x", "b", "c/d", "c/e/f") == ["a", "b", "c/d"]
    assert found([], "000000000001-i0001", "a/lineage", "b/c/000000000001-i0001", "e/f/g/lineage") == ["", "a", "b/c"]
    assert found(["", "a", "a/b"], "a/b/c") == ["", "a", "a/b"]
    assert found(["a"], "ab") == ["ab"]


def test_what_is_for_one_run(runner: Runner, prefix: str) -> None:
    ran = runner("ls", prefix, "--best", "loss")
    assert ran.code == 2
    assert "holds 4 runs: --best is for one of them" in ran.err


def test_no_run_is_an_empty_root(runner: Runner, tmp_path: Path) -> None:
    Path(tmp_path, "x").mkdir()
    Path(tmp_path, "x", "y.txt").write_text("z")
    assert runner("ls", str(tmp_path)).out == f"{tmp_path}: no checkpoint is here yet\n"


def test_there_is_a_limit(runner: Runner, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module, "MAX_RUNS", 2)
    told = runner("ls", prefix, "--json").json
    assert ([run["name"] for run in told["runs"]], told["left_out"]) == (["a", "b/one"], 2)
    assert "Not shown: 2 more runs" in runner("ls", prefix).out


def test_names_below_a_prefix() -> None:
    keys = [
        "r/lineage/000001.json",
        "r/pins/x",
        "e/s/000000000001-i0001/manifest.json",
        "x",
        "q/y",
        "d/e/f/lineage/000001.json",
    ]
    found = runs_in([Entry(key, 1) for key in keys])
    assert {name: [entry.key for entry in entries] for name, entries in found.items()} == {
        "e/s": ["000000000001-i0001/manifest.json"],
        "r": ["lineage/000001.json", "pins/x"],
    }
    assert list(runs_in([Entry("lineage/000001.json", 1), Entry("r/lineage/000001.json", 1)])) == ["", "r"]


def test_it_takes_one_listing_and_two_reads_for_each_run(
    runner: Runner, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ckptflow.storage import opening

    opened: list[CountingStore] = []

    def counted(url: str, options: dict[str, object]) -> CountingStore:
        opened.append(CountingStore(open_store(url, options)))
        return opened[-1]

    monkeypatch.setattr(opening, "open_store", counted)
    assert runner("ls", prefix).code == 0
    verbs = [{verb: count for verb, count in store.counts.items() if count} for store in opened]
    assert verbs[0] == {"list": 1}
    assert sorted(map(str, verbs[1:])) == ["{'get': 1}", "{'get': 2}", "{'get': 2}", "{'get': 2}"]


def test_on_an_object_store(runner: Runner, moto: servers.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    moto.make_bucket("runs-bucket")
    for name in ("all/first", "all/second"):
        store = open_store(f"s3://runs-bucket/{name}", moto.storage_options)
        make_root(store, (1, 2))
        store.close()
    monkeypatch.setenv("CKPTFLOW_STORAGE_OPTIONS", json.dumps(moto.storage_options))
    for url, names in (
        ("s3://runs-bucket/all/", ["first", "second"]),
        ("s3://runs-bucket", ["all/first", "all/second"]),
    ):
        told = runner("ls", url, "--json").json
        assert [(run["name"], run["newest_step"]) for run in told["runs"]] == [(name, 2) for name in names]
        assert runner("ls", told["runs"][0]["url"], "--json").json["resumes_from"] == "000000000002-i0001"
