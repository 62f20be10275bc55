"""`ckptflow watch`: every change of a run once, in the order in which it happened."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from ckptflow.cli.ls import look
from ckptflow.cli.render import utc_text
from ckptflow.cli.watch import changes, has_reached
from ckptflow.commit.catalog import Summaries
from ckptflow.storage import opening
from ckptflow.storage.opening import open_store
from ckptflow.storage.wrappers import CountingStore
from tests.cli.runner import Runner
from tests.roots import Life, make_root
from tests.waiting import HANG_S, until


def told(root: str, before: object, *, show: bool = True) -> tuple[list[tuple[str, int | None]], object]:
    store = open_store(root)
    now = look(store, Summaries(store), show_all=show)
    return [(change.what, change.step) for change in changes(before, now)], now  # type: ignore[arg-type]


def test_what_happens_in_a_run(tmp_path: Path) -> None:
    root = str(tmp_path / "run")
    life = Life(open_store(root))
    found, now = told(root, None)
    assert found == [("started", None)]
    life.save(10, commit=False)
    found, now = told(root, now)
    assert found == [("writing", 10)]
    folder = life.save(20)
    found, now = told(root, now)
    assert ("committed", 20) in found
    found, now = told(root, now)
    assert found == []
    (shard, *_) = sorted(Path(root, str(folder)).glob("shard-*"))
    shard.unlink()
    found, now = told(root, now)
    assert found == [("damaged", 20)]
    store = open_store(root)
    store.delete([entry.key for entry in store.list(f"{folder}/")])
    found, now = told(root, now)
    assert found == [("pruned", 20)]
    Life(open_store(root))
    found, now = told(root, now)
    assert found == [("started", None)]


def test_a_doubt_about_what_counts_is_told_once(root: str) -> None:
    store = open_store(root)
    sure = look(store, Summaries(store), show_all=True)
    doubted = replace(sure, doubt="it is not certain which checkpoints are current")
    assert [(change.what, change.step) for change in changes(sure, doubted)] == [("unread", None)]
    assert not list(changes(doubted, doubted))


def test_until_a_step_that_is_there(runner: Runner, root: str) -> None:
    ran = runner("watch", root, "--until-step", "300", "--json")
    assert (ran.code, ran.err) == (0, "")
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert [(line["what"], line["step"]) for line in lines] == [
        ("started", None),
        ("committed", 100),
        ("committed", 200),
        ("committed", 300),
    ]
    members = {"seen_at", "what", "folder", "step", "incarnation", "detail", "size_bytes", "copied_bytes", "created_at"}
    assert set(lines[0]) == members
    assert "3 shards by 2 workers  loss=0.5" in runner("watch", root, "--until-step", "300").out


def test_a_commit_has_its_own_time_and_counts_are_words(runner: Runner, tmp_path: Path) -> None:
    make_root(root := str(tmp_path / "old"), (1,))
    store = open_store(root)
    (row,) = look(store, Summaries(store), show_all=True).rows
    assert row.checkpoint is not None
    ran = runner("watch", root, "--until-step", "1", "--json")
    assert json.loads(ran.out.splitlines()[-1])["created_at"] == utc_text(row.checkpoint.created_at)
    long_ago = replace(row.checkpoint, created_at=datetime(2001, 2, 3, tzinfo=UTC))
    now = replace(look(store, Summaries(store), show_all=True), rows=(replace(row, checkpoint=long_ago),))
    (change,) = (change for change in changes(None, now) if change.what == "committed")
    assert change.created_at == "2001-02-03T00:00:00+00:00"
    assert change.detail == "2 shards by 1 worker"


def test_it_sees_what_another_process_saves(tmp_path: Path) -> None:
    root = str(tmp_path / "run")
    life = Life(open_store(root))
    command = [sys.executable, "-u", "-c", "from ckptflow.cli import main; main()", "watch", root, "--every", "0.2"]
    out = tmp_path / "out"
    with out.open("wb") as file:
        process = subprocess.Popen([*command, "--until-step", "2"], stdout=file)
        try:
            until(lambda: b"started" in out.read_bytes(), HANG_S)
            life.save(1)
            until(lambda: b"step 1 " in out.read_bytes(), HANG_S)
            life.save(2)
            assert process.wait(timeout=HANG_S) == 0
        finally:
            process.kill()
            process.wait()
    assert b"step 2 " in out.read_bytes()


def test_a_manifest_is_read_once_in_a_whole_watch(runner: Runner, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, looks = CountingStore(open_store(root)), list[float]()
    monkeypatch.setattr(opening, "open_store", lambda *_: store)

    def at_the_third_look(every_s: float) -> None:
        looks.append(every_s)
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("ckptflow.cli.watch.time", SimpleNamespace(sleep=at_the_third_look))
    assert runner("watch", root).code == 130
    manifests = [key for key in store.keys("get") if key.endswith("/manifest.json")]
    assert len(manifests) == len(set(manifests)) == 3


def test_a_step_that_was_rolled_back_is_not_reached(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "run"))
    life = Life(store)
    for step in (10, 20, 30):
        life.save(step)
    assert has_reached(look(store, Summaries(store), show_all=True), 30)
    back = Life(store, step=10)
    back.save(10)
    now = look(store, Summaries(store), show_all=True)
    assert {row.folder.step for row in now.rows} >= {20, 30}
    assert has_reached(now, 10)
    assert not has_reached(now, 20)
    back.save(30)
    assert has_reached(look(store, Summaries(store), show_all=True), 20)
