"""`ckptflow ls`: every state that a folder can be in, what is hidden, and what it costs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckptflow.cli import ls
from ckptflow.commit.catalog import Summaries
from ckptflow.commit.finding import list_counting
from ckptflow.commit.pins import pin_checkpoint
from ckptflow.errors import FencedError
from ckptflow.format.layout import Folder, pin_key
from ckptflow.format.words import size_text
from ckptflow.storage.opening import open_store
from ckptflow.testing import CountingStore
from tests.cli.runner import Runner
from tests.roots import Life, make_linked_root, make_root, sample_arrays

ROW = {"folder", "url", "step", "incarnation", "state", "why", "problem", "pinned", "created_at", "size_bytes"}
ROW |= {"copied_bytes", "shards", "workers", "metrics", "metadata", "rank", "pin_names"}


def states(runner: Runner, url: str, *args: str) -> dict[str, tuple[str, str | None, str | None]]:
    """Folder -> (state, why, problem), as `--json` tells."""
    ran = runner("ls", url, "--json", *args)
    assert ran.code == 0, ran.err
    return {row["folder"]: (row["state"], row["why"], row["problem"]) for row in ran.json["checkpoints"]}


def test_a_healthy_root(runner: Runner, root: str) -> None:
    ran = runner("ls", root)
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[0].split() == ["step", "inc", "created", "size", "shards", "workers", "metrics", "state"]
    assert [line.split()[0] for line in lines[1:]] == ["100", "200", "300"]
    states_of = {"100": "current", "200": "current", "300": "newest"}
    for line in lines[1:]:
        assert line.split()[-4:] == ["3", "2", "loss=0.5", states_of[line.split()[0]]]


def test_what_was_copied_has_a_column_where_anything_was(runner: Runner, root: str) -> None:
    size_bytes = make_linked_root(linked := f"{root}-linked")
    head, first, _, last, in_all = runner("ls", linked).out.splitlines()
    assert head.split()[:6] == ["step", "inc", "created", "size", "copied", "shards"]
    assert f" {size_text(size_bytes)} " in last
    assert " - " in first
    told = runner("ls", linked, "--json").json
    assert [row["copied_bytes"] for row in told["checkpoints"]] == [0, 0, size_bytes]
    files = {path.stat().st_ino: path.stat().st_size for path in Path(linked).glob("*-i0001/*")}
    assert told["stored_bytes"] == sum(files.values())
    assert f"the root takes {size_text(told['stored_bytes'])}" in in_all
    assert f", {size_text(size_bytes)} copied  loss=0.5" in runner("watch", linked, "--until-step", "300").out


def test_json_has_the_documented_members(runner: Runner, root: str) -> None:
    told = runner("ls", root, "--json").json
    members = {"url", "run_id", "incarnation", "resumes_from", "doubt", "stored_bytes", "hidden", "checkpoints"}
    assert set(told) == members
    assert told["resumes_from"] == "000000000300-i0001"
    assert told["hidden"] == {"outside": 0, "partial": 0}
    assert all(set(row) == ROW for row in told["checkpoints"])
    newest = told["checkpoints"][-1]
    store = open_store(root)
    (checkpoint,) = list_counting(store, Summaries(store))[-1:]
    assert (newest["size_bytes"], newest["url"]) == (checkpoint.size_bytes, checkpoint.url)
    assert (newest["state"], newest["workers"], newest["metrics"]) == ("newest", 2, {"loss": 0.5})


def test_an_empty_root_says_so(runner: Runner, tmp_path: Path) -> None:
    ran = runner("ls", str(tmp_path))
    assert (ran.code, ran.out) == (0, f"{tmp_path}: no checkpoint is here yet\n")
    assert runner("ls", str(tmp_path), "--json").json["checkpoints"] == []


def test_a_folder_that_is_not_there_is_nothing_found(runner: Runner, tmp_path: Path) -> None:
    ran = runner("ls", str(tmp_path / "runn"))
    assert (ran.code, ran.out) == (1, "")
    assert "there is no such directory" in ran.err


def test_a_rollback_leaves_outside_and_a_crash_partial(runner: Runner, root: str) -> None:
    life = Life(open_store(root), step=100)
    life.save(100)
    life.save(150, commit=False)
    told = states(runner, root, "--all")
    assert told["000000000100-i0001"][0] == "counts"
    assert told["000000000100-i0002"][0] == "newest"
    assert told["000000000300-i0001"] == ("outside", "rolled back", None)
    assert told["000000000150-i0002"] == ("partial", "not committed yet", None)
    shown = runner("ls", root)
    assert "superseded:" not in shown.out
    assert "Not shown: 2 superseded and 1 incomplete. See --all." in shown.out
    Life(open_store(root))
    assert states(runner, root, "--all")["000000000150-i0002"][1] == "never committed"


def test_a_fresh_start_leaves_what_was_outside(runner: Runner, root: str) -> None:
    Life(open_store(root), fresh=True).save(50)
    told = states(runner, root, "--all")
    assert told["000000000050-i0002"][0] == "newest"
    assert told["000000000300-i0001"] == ("outside", "from before a fresh start", None)


def test_another_runs_checkpoint_is_outside(runner: Runner, root: str, tmp_path: Path) -> None:
    """A folder was copied into a root where it does not belong, by hand."""
    for _ in range(2):
        make_root(str(tmp_path / "other"), (400,))
    os.rename(tmp_path / "other" / "000000000400-i0002", Path(root) / "000000000400-i0002")
    told = states(runner, root, "--all")
    assert told["000000000400-i0002"] == ("outside", "of another run", None)
    assert told["000000000300-i0001"][0] == "newest"


def test_a_late_save_of_a_dead_incarnation_is_outside(runner: Runner, root: str) -> None:
    late = Life(open_store(root))
    Life(open_store(root)).save(400)
    with pytest.raises(FencedError):
        late.save(350)
    why = "not what incarnation 3 started from"
    assert states(runner, root, "--all")["000000000350-i0002"] == ("outside", why, None)


def test_pinned(runner: Runner, root: str) -> None:
    store = open_store(root)
    pin_checkpoint(store, Summaries(store), 200)
    assert [row["pinned"] for row in runner("ls", root, "--json").json["checkpoints"]] == [False, True, False]
    assert "current, pinned" in runner("ls", root).out


def test_damage_that_can_be_seen(runner: Runner, root: str) -> None:
    newest, middle, oldest = (Path(root) / f"{step:012d}-i0001" for step in (300, 200, 100))
    os.truncate(newest / "manifest.json", 200)
    min(middle.glob("shard-*")).unlink()
    shard = min(oldest.glob("shard-*"))
    shard.write_bytes(shard.read_bytes() + b"x")
    told = states(runner, root)
    assert told[newest.name][0] == "newest"
    assert str(told[newest.name][2]).startswith("damaged manifest: its bytes do not match the checksum")
    assert told[middle.name][2] == "shards missing: 1 of 3"
    assert f"{shard.name} has" in str(told[oldest.name][2])
    assert runner("ls", root, "--json").json["resumes_from"] is None
    ran = runner("ls", root)
    assert ran.code == 0
    assert "The newest is damaged; a restart would begin nowhere" in ran.out


def test_where_a_restart_begins(runner: Runner, root: str) -> None:
    os.truncate(Path(root) / "000000000300-i0001" / "manifest.json", 200)
    assert runner("ls", root, "--json").json["resumes_from"] == "000000000200-i0001"
    assert "a restart would begin at step 200" in runner("ls", root).out


def test_one_checkpoints_folder_is_no_root(runner: Runner, root: str) -> None:
    ran = runner("ls", f"{root}/000000000300-i0001/")
    assert ran.code == 2
    assert "ckptflow show" in ran.err


def test_names_from_storage_cannot_steer_the_terminal(runner: Runner, tmp_path: Path) -> None:
    make_root(str(tmp_path), (1,), metrics={"\x1b[31mloss\n[bold]": 1.0}, metadata={"é": [float("nan"), (1,)]})
    ran = runner("ls", str(tmp_path))
    assert "\\x1b[31mloss\\n[bold]=1" in ran.out
    assert "\x1b" not in ran.out
    assert runner("ls", str(tmp_path), "--json").json["checkpoints"][0]["metrics"] == {"\x1b[31mloss\n[bold]": 1.0}


@pytest.mark.parametrize("count", [2, 300])
def test_one_listing_one_claim_and_a_manifest_for_each_line(count: int) -> None:
    store = open_store(f"memory://ls-{count}")
    life = Life(store)
    for step in range(count):
        life.save(step, {"bias": sample_arrays(0)["model/dense/bias"]})
    life.save(count, commit=False)
    counting = CountingStore(store)
    overview = ls.look(counting, Summaries(counting), show_all=False)
    assert [row.folder.step for row in overview.rows] == list(range(count))
    assert counting.counts == {"list": 1, "get": 1 + count}
    assert sum(key.endswith("/manifest.json") for key in counting.keys("get")) == count
    assert overview.hidden == {"outside": 0, "partial": 1}


def test_a_pin_of_nothing_does_not_matter(runner: Runner, root: str) -> None:
    open_store(root).put(pin_key(Folder(7, 7)), memoryview(b"pinned\n"))
    assert len(states(runner, root, "--all")) == 3
