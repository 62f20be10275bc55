"""`ckptflow prune`, `pin` and `unpin`: the plan with its reasons, nothing without --yes, and what stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptflow.cli import prune as verb
from ckptflow.commit.retention import KeepBest, KeepEvery, KeepLast
from ckptflow.storage.opening import open_store
from tests.cli.runner import Runner
from tests.roots import Life


def steps(runner: Runner, root: str) -> list[int]:
    return [row["step"] for row in runner("ls", root, "--json").json["checkpoints"]]


def test_the_plan_is_shown_with_reasons_and_nothing_is_deleted(runner: Runner, root: str) -> None:
    ran = runner("prune", root, "--last", "1")
    assert (ran.code, ran.err) == (0, "")
    what = {line.split()[0]: line for line in ran.out.splitlines()[1:4]}
    assert [" delete " in what[step] for step in ("100", "200", "300")] == [True, True, False]
    assert "no policy retains it" in ran.out
    assert "the newest" in ran.out
    assert "2 of 3 would be deleted" in ran.out
    assert "Add --yes" in ran.out
    assert steps(runner, root) == [100, 200, 300]


def test_with_yes_it_is_done_and_told(runner: Runner, root: str) -> None:
    sizes = [row["size_bytes"] for row in runner("ls", root, "--json").json["checkpoints"]]
    before = sum(path.stat().st_size for path in Path(root).rglob("*") if path.is_file())
    ran = runner("prune", root, "--last", "1", "--yes", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert set(ran.json) == {"url", "deleted", "frees_bytes", "refused", "folders"}
    assert (ran.json["deleted"], ran.json["refused"]) == (True, None)
    assert [(row["step"], row["keep"]) for row in ran.json["folders"]] == [(100, False), (200, False), (300, True)]
    assert set(ran.json["folders"][0]) == {
        "folder",
        "step",
        "incarnation",
        "size_bytes",
        "frees_bytes",
        "keep",
        "reason",
    }
    assert [row["frees_bytes"] > row["size_bytes"] for row in ran.json["folders"]] == [True, True, False]
    assert [row["size_bytes"] for row in ran.json["folders"]] == sizes
    after = sum(path.stat().st_size for path in Path(root).rglob("*") if path.is_file())
    assert before - after == ran.json["frees_bytes"] > 0
    assert steps(runner, root) == [300]


def test_what_is_pinned_stays_until_it_is_unpinned(runner: Runner, root: str) -> None:
    ran = runner("pin", root, "--step", "100", "--json")
    assert (ran.code, ran.json) == (
        0,
        {"url": root, "step": 100, "pinned": True, "name": None, "moved_from": []},
    )
    assert runner("prune", root, "--last", "1", "--yes").code == 0
    assert steps(runner, root) == [100, 300]
    ran = runner("unpin", root, "--step", "100")
    assert (ran.code, ran.out) == (0, f"{root}: unpinned step 100\n")
    assert runner("unpin", root, "--step", "100").code == 0
    assert runner("prune", root, "--last", "1", "--yes").code == 0
    assert steps(runner, root) == [300]


def test_where_no_run_is_nothing_can_be_unpinned(runner: Runner, root: str) -> None:
    for which in (("--step", "100"), ("--name", "release")):
        ran = runner("unpin", f"{root}-mistyped", *which)
        assert (ran.code, ran.out) == (1, "")
        assert ran.err == f"ckptflow: {root}-mistyped: there is no such directory\n"
        ran = runner("unpin", f"memory://mistyped{root}", *which)
        assert (ran.code, ran.out) == (1, "")
        assert "no checkpoint is here" in ran.err
    ran = runner("unpin", str(Path(root).parent), "--step", "100")
    assert (ran.code, ran.out) == (1, "")
    assert "has runs below it: run" in ran.err


def test_what_was_not_pinned_is_said(runner: Runner, root: str) -> None:
    ran = runner("unpin", root, "--step", "100")
    assert (ran.code, ran.out) == (0, f"{root}: step 100 was not pinned\n")
    assert runner("unpin", root, "--step", "100", "--json").json["steps"] == []


def test_a_step_that_is_not_there_cannot_be_pinned(runner: Runner, root: str) -> None:
    ran = runner("pin", root, "--step", "150")
    assert ran.code == 1
    assert "no checkpoint of step 150 is here; there are steps 100, 200, 300" in ran.err
    assert not list(Path(root).glob("pins/*"))


def test_while_a_job_may_be_resuming_nothing_goes(runner: Runner, root: str) -> None:
    Life(open_store(root))  # has claimed, and committed nothing
    ran = runner("prune", root, "--last", "1")
    assert ran.code == 0
    assert "Now it would be refused: incarnation 2 has started" in ran.out
    ran = runner("prune", root, "--last", "1", "--yes")
    assert ran.code == 2
    assert "nothing was deleted" in ran.err
    assert "if no job is starting or running on this root, with --even-if-starting" in ran.err
    assert steps(runner, root) == [100, 200, 300]


def test_after_a_start_that_saved_nothing_a_person_may_say_that_no_job_is_there(runner: Runner, root: str) -> None:
    Life(open_store(root))
    args = ("prune", root, "--last", "1", "--even-if-starting")
    assert "would be refused" not in runner(*args).out
    ran = runner(*args, "--yes", "--json")
    assert (ran.code, ran.json["deleted"], ran.json["refused"]) == (0, True, None)
    assert steps(runner, root) == [300]


@pytest.mark.parametrize("name", ["manifest.json", "shard-*"])
@pytest.mark.parametrize("by", ["flip", "cut off", "delete"])
def test_nothing_goes_in_favour_of_a_newest_that_is_damaged(runner: Runner, root: str, name: str, by: str) -> None:
    """It is the only one of a second job: were it sound, all before would be superseded."""
    life = Life(open_store(root), step=300)
    folder = life.save(400, metrics={"loss": 0.1})
    life.store.close()
    path = min((Path(root) / str(folder)).glob(name))
    data = path.read_bytes()
    flipped = data[:-10] + bytes([data[-10] ^ 1]) + data[-9:]
    path.unlink()
    if by != "delete":
        path.write_bytes(flipped if by == "flip" else data[: len(data) // 2])
    there = sorted(file for file in Path(root).rglob("*") if file.is_file())
    is_no_checkpoint = name == "manifest.json" and by == "delete"  # nothing says that it ever was one
    ran = runner("prune", root, "--last", "1", "--yes")
    assert ran.code == 2
    assert "nothing was deleted" in ran.err
    assert is_no_checkpoint or "Start the job: it restores the newest valid checkpoint" in ran.err
    assert sorted(file for file in Path(root).rglob("*") if file.is_file()) == there
    if name == "manifest.json":
        assert "Now it would be refused" in runner("prune", root, "--last", "1").out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "say what to retain"),
        (("--best", "loss:lowest"), "is not of the form"),
        (("--best", ":max"), "is not of the form"),
        (("--best", "los:min"), "no checkpoint here has the metric 'los'; there is loss"),
    ],
)
def test_what_makes_no_sense_is_refused(runner: Runner, root: str, args: tuple[str, ...], words: str) -> None:
    ran = runner("prune", root, *args, "--yes")
    assert ran.code == 2
    assert words in ran.err
    assert steps(runner, root) == [100, 200, 300]


def test_policies_of_the_command_line() -> None:
    found = verb.read_policies(3, ["loss", "accuracy:max", "loss:2", "accuracy:max:4"], 1000, 3600)
    assert found == [
        KeepLast(3),
        KeepBest("loss"),
        KeepBest("accuracy", mode="max"),
        KeepBest("loss", 2),
        KeepBest("accuracy", 4, "max"),
        KeepEvery(steps=1000),
        KeepEvery(seconds=3600),
    ]


def test_a_folder_that_is_not_there(runner: Runner, tmp_path: Path) -> None:
    ran = runner("prune", str(tmp_path / "runn"), "--last", "1", "--yes")
    assert ran.code == 1
    assert "there is no such directory" in ran.err


def test_an_empty_root(runner: Runner, tmp_path: Path) -> None:
    ran = runner("prune", str(tmp_path), "--last", "1", "--yes")
    assert (ran.code, ran.out) == (0, f"{tmp_path}: nothing is here\n")
