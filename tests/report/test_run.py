"""A run told from storage: every kind of life, what became of checkpoints and why, and what is not known."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from ckptflow.commit.catalog import Summaries
from ckptflow.commit.prune import plan_by_hand
from ckptflow.commit.retention import KeepBest, KeepLast
from ckptflow.format.layout import Folder, claim_key
from ckptflow.report.attempts import RunAttempt
from ckptflow.report.gather import read_run
from ckptflow.report.run import TENSORS_SHOWN, UNDECIDED, Run
from ckptflow.report.words import end_text, kept_text, saves_text, seconds_text, why_text
from ckptflow.storage.opening import open_store
from ckptflow.testing import CountingStore, MemoryStore
from tests.report import runs
from tests.roots import Life, make_linked_root, make_root


@pytest.fixture(scope="module")
def eventful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report") / "run-7"
    runs.eventful(root)
    return root


@pytest.fixture(scope="module")
def run(eventful: Path) -> Run:
    return runs.look(eventful)


def told(run: Run, *names: str) -> dict[int, tuple[object, ...]]:
    return {life.number: tuple(getattr(life, name) for name in names) for life in run.incarnations}


def test_lives_are_told_with_where_they_began_and_why(run: Run) -> None:
    assert told(run, "reason", "restored", "next") == {
        1: ("start", None, 2),
        2: ("resume", None, 3),  # its only manifest is damaged, its claim says what it meant to do
        3: ("damage", "000000000400-i0002", 4),
        4: ("resume", None, 5),
        5: ("resume", "000000000450-i0003", 6),
        6: ("rollback", "000000000200-i0001", None),
    }


def test_what_a_life_threw_away_is_counted_by_what_is_known_of_the_one_before(run: Run) -> None:
    assert told(run, "previous", "previous_step", "given_up_steps") == {
        1: (None, None, None),
        2: (1, 300, None),
        3: (2, 500, 100),
        4: (3, 450, None),
        5: (3, 450, 0),
        6: (5, 480, 280),
    }


def test_lives_have_what_is_there_of_their_saves(run: Run) -> None:
    assert told(run, "pruned_steps")[2] == ((400,),)
    names = ("checkpoints", "first_step", "last_step", "pruned", "partial")
    assert told(run, *names) == {
        1: (6, 50, 300, 0, 0),
        2: (1, 500, 500, 1, 0),  # 400 was saved again by life 3, and pruned
        3: (2, 400, 450, 0, 0),
        4: (0, None, None, 0, 0),
        5: (1, 480, 480, 0, 1),
        6: (1, 200, 200, 0, 1),
    }
    first = run.incarnations[0]
    assert (first.host, first.pid, first.claimed_at) == ("worker-0.example", 42, runs.FIRST)
    assert first.first_saved_at == runs.FIRST + timedelta(minutes=10)
    assert first.last_saved_at == runs.FIRST + timedelta(minutes=60)


def test_checkpoints_count_or_do_not_and_show_what_is_wrong(run: Run) -> None:
    states = {each.folder: (each.state, each.why_outside, each.problem, each.pinned) for each in run.checkpoints}
    damage = states.pop("000000000500-i0002")
    assert damage[:2] == ("outside", "rolled back")
    assert str(damage[2]).startswith("damaged manifest: its bytes do not match the checksum")
    cut_off = ("outside", "rolled back", None, False)
    assert states == {
        "000000000050-i0001": ("counts", None, None, False),
        "000000000100-i0001": ("counts", None, "shards missing: 1 of 2", False),
        "000000000150-i0001": ("counts", None, None, False),
        "000000000200-i0001": ("counts", None, None, False),
        "000000000200-i0006": ("newest", None, None, False),
        "000000000250-i0001": cut_off,
        "000000000300-i0001": (*cut_off[:3], True),
        "000000000400-i0003": cut_off,
        "000000000450-i0003": cut_off,
        "000000000480-i0005": cut_off,
    }
    assert run.resumes_from == "000000000200-i0006"
    assert [each.folder for each in run.damaged] == ["000000000100-i0001", "000000000500-i0002"]


def test_without_policies_nobody_knows_what_they_keep(run: Run) -> None:
    undecided = [each.step for each in run.checkpoints if each.keep is None]
    assert undecided == [50, 150]
    assert {each.reason for each in run.checkpoints if each.keep is None} == {UNDECIDED}
    reasons = {each.folder: each.reason for each in run.checkpoints}
    assert reasons["000000000200-i0006"] == "the newest"
    assert reasons["000000000300-i0001"] == "pinned"
    assert reasons["000000000200-i0001"] == "saved again at the same step: 000000000200-i0006"


def test_with_policies_every_decision_is_that_of_a_prune(eventful: Path) -> None:
    policies = (KeepLast(2), KeepBest("accuracy", mode="max"))
    run = runs.look(eventful, *policies)
    store = open_store(str(eventful))
    plan = plan_by_hand(store, Summaries(store), policies).plan
    store.close()
    decided = {each.folder: (each.keep, each.reason) for each in run.checkpoints}
    assert decided == {str(d.folder): (d.keep, d.reason) for d in plan.decisions if str(d.folder) in decided}
    assert len(plan.decisions) == len(run.checkpoints) + len(run.partial)
    assert {keep for keep, _ in decided.values()} == {True, False}
    assert run.policies == ("KeepLast(n=2)", "KeepBest(metric='accuracy', n=1, mode='max')")


def test_durations_are_those_of_the_slowest_worker_or_not_recorded(run: Run) -> None:
    saved = {each.folder: (each.save_s, each.write_s, each.blocked_s) for each in run.checkpoints}
    assert saved["000000000450-i0003"] == pytest.approx((0.45, 0.225, 0.0045))
    assert saved["000000000050-i0001"] == (None, None, None)
    assert saved["000000000500-i0002"] == (None, None, None)
    assert sum(durations != (None, None, None) for durations in saved.values()) == 4


def test_a_real_save_records_how_long_it_took(tmp_path: Path) -> None:
    tensorflow = pytest.importorskip("tensorflow")
    from ckptflow import CheckpointManager

    with CheckpointManager(str(tmp_path / "run"), {"v": tensorflow.Variable([1.0])}) as manager:
        manager.save(1)
    (saved,) = runs.look(tmp_path / "run").checkpoints
    assert saved.save_s is not None
    assert saved.write_s is not None
    assert saved.blocked_s is not None
    assert saved.blocked_s >= 0
    assert 0 < saved.write_s <= saved.save_s + 1  # two clocks: one that is read twice, one that is told


def test_what_was_never_committed_is_orphaned_where_its_life_is_over(run: Run) -> None:
    assert [(each.folder, each.is_orphaned, each.file_count) for each in run.partial] == [
        ("000000000250-i0006", False, 3),
        ("000000000490-i0005", True, 3),
    ]
    files = [path.stat().st_size for path in Path(run.url).glob("*-i*/*")]
    assert run.size_bytes == run.stored_bytes == sum(files)
    orphan = sum(path.stat().st_size for path in Path(run.url).glob("000000000490-i0005/*"))
    assert run.orphaned[0].size_bytes == orphan > 0


def test_a_file_that_checkpoints_share_is_stored_and_freed_once(tmp_path: Path) -> None:
    copied_bytes = make_linked_root(str(tmp_path))
    run = runs.look(tmp_path, KeepLast(1))
    assert [each.copied_bytes for each in run.checkpoints] == [0, 0, copied_bytes]
    assert run.stored_bytes == run.size_bytes - copied_bytes
    gone = sum(path.stat().st_size for step in (100, 200) for path in tmp_path.glob(f"000000000{step}-i0001/*"))
    assert run.freed_bytes == gone - copied_bytes


def test_tensors_come_by_size_and_those_beyond_the_largest_are_summed(tmp_path: Path, run: Run) -> None:
    assert run.tensors is not None
    assert run.tensors.folder == "000000000200-i0006"
    assert [(t.name, t.dtype, t.shape, t.size_bytes) for t in run.tensors.largest[:2]] == [
        ("model/embedding", "float32", (500, 64), 128_000),
        ("model/dense/kernel", "float32", (64, 10), 2_560),
    ]
    assert (run.tensors.count, run.tensors.other_count, run.tensors.other_bytes) == (5, 0, 0)
    arrays = {f"t{i:03d}": np.zeros(i + 1, np.int8) for i in range(TENSORS_SHOWN + 10)}
    make_root(str(tmp_path / "many"), (1,), arrays=arrays)
    many = runs.look(tmp_path / "many").tensors
    assert many is not None
    assert many.largest[0].name == f"t{TENSORS_SHOWN + 9:03d}"
    assert (many.count, many.other_count, many.other_bytes) == (TENSORS_SHOWN + 10, 10, sum(range(1, 11)))
    assert many.size_bytes == sum(array.nbytes for array in arrays.values())


def test_a_fresh_start_throws_away_all_that_was_there(tmp_path: Path) -> None:
    root = str(tmp_path / "run")
    make_root(root, (100, 200))
    store = open_store(root)
    Life(store, fresh=True).save(10)
    store.close()
    run = runs.look(root)
    life = run.incarnations[-1]
    assert (life.reason, life.restored, life.given_up_steps) == ("fresh", None, 200)
    assert why_text(life) == (
        "Started from scratch with fresh=True: earlier checkpoints are superseded. Incarnation 1 had reached step 200."
    )
    assert [each.why_outside for each in run.checkpoints if each.state == "outside"] == 2 * [
        "from before a fresh start"
    ]


def test_what_a_rollback_cut_off_is_not_known_once_it_has_been_pruned(tmp_path: Path) -> None:
    root = str(tmp_path / "run")
    make_root(root, (100, 200, 300))
    store = open_store(root)
    life = Life(store, step=100)
    for step in (100, 200, 300, 400):
        life.save(step)
    store.close()
    last = runs.look(root).incarnations[-1]
    assert (last.reason, last.restored_step, last.given_up_steps) == ("rollback", 100, None)
    assert "How much that discarded is not known" in why_text(last)


def test_a_claim_that_cannot_be_read_leaves_what_it_told_unknown(tmp_path: Path) -> None:
    root = tmp_path / "run"
    make_root(str(root), (1,))
    make_root(str(root), (2,))
    (root / claim_key(1)).write_bytes(b"torn")
    first, second = runs.look(root).incarnations
    assert (first.reason, first.claimed_at, first.host, first.pid) == ("start", None, None, None)
    assert second.host is not None
    (root / claim_key(2)).write_bytes(b"torn")
    (root / Folder(2, 2).manifest_key).write_bytes(b"torn")
    *_, second = runs.look(root).incarnations
    assert (second.reason, second.restored) == (None, None)
    assert why_text(second) == "Not known: neither its claim nor a manifest of it can be read."


def test_an_empty_root_and_one_that_was_only_claimed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run = runs.look(tmp_path / "empty")
    assert (run.incarnations, run.checkpoints, run.tensors, run.resumes_from) == ((), (), None, None)
    store = open_store(str(tmp_path / "claimed"))
    Life(store)
    store.close()
    run = runs.look(tmp_path / "claimed")
    assert [life.reason for life in run.incarnations] == ["start"]
    assert run.prune_refused is not None


def test_reading_a_run_writes_nothing_and_reads_no_tensor(eventful: Path) -> None:
    before = {path: path.read_bytes() for path in eventful.rglob("*") if path.is_file()}
    store = CountingStore(open_store(str(eventful)))
    files: list[int] = []
    read: list[int] = []
    read_run(store, Summaries(store, is_for_show=True), now=runs.NOW, expect=files.append, advance=read.append)
    store.close()
    assert {path: path.read_bytes() for path in eventful.rglob("*") if path.is_file()} == before
    assert files == [sum(read)] == [len(list(eventful.glob("*/manifest.json"))) + 6]
    assert not any("shard" in key for key in store.keys("get"))


def test_what_is_pruned_while_it_is_read_is_left_out() -> None:
    objects: dict[str, bytes] = {}
    make_root(MemoryStore(objects), (1, 2, 3))

    def prune(verb: str, key: str) -> None:
        if verb == "get" and key == Folder(1, 1).manifest_key:
            objects.pop(key, None)

    store = MemoryStore(objects, prune)
    run = read_run(store, Summaries(store, is_for_show=True), (KeepLast(1),), now=runs.NOW)
    assert [each.step for each in run.checkpoints] == [2, 3]
    assert run.partial == ()
    assert (run.incarnations[0].checkpoints, run.incarnations[0].first_step) == (2, 2)


def test_the_newest_that_is_damaged_and_the_newest_that_is_restored_are_told_apart(tmp_path: Path) -> None:
    root = tmp_path / "run"
    make_root(str(root), (1, 2))
    next(root.glob("*2-i0001/shard-*")).unlink()
    run = runs.look(root)
    assert [(each.keep, each.reason) for each in run.checkpoints] == [(True, "the newest"), (True, "the newest")]
    assert [kept_text(each, run) for each in run.checkpoints] == [
        "retained: the newest that can be restored",
        "retained: the newest",
    ]


def test_words_of_ends(run: Run) -> None:
    lives = {life.number: life for life in run.incarnations}

    def end(number: int) -> str:
        life: RunAttempt = lives[number]
        return end_text(life, lives.get(life.next) if life.next else None)

    assert end(6) == "The newest. Storage does not tell whether it still runs."
    assert end(5) == "Ended: incarnation 6 took over 50 min after its last save."
    assert end(4) == "Ended: incarnation 5 took over on 2026-10-01 12:00:00."
    assert end_text(lives[5], None) == "Ended: incarnation 6 took over at an unknown time."
    assert end_text(lives[6], None) == end(6)
    assert saves_text(lives[2]) == "1 checkpoint stored, step 500. At least 1 more pruned."
    assert saves_text(lives[5]) == "1 checkpoint stored, step 480. 1 save not committed, 129.0 KiB."
    assert why_text(lives[6]) == (
        "Rolled back to step 200. 280 committed steps discarded: incarnation 5 had reached step 480."
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "not recorded"), (0, "0 s"), (0.0004, "0.4 ms"), (0.2, "200 ms"), (3.14159, "3.14 s"), (300, "5 min"),
     (10_000, "2.78 h"), (400_000, "4.63 d")],
)  # fmt: skip
def test_durations_in_words(seconds: float | None, text: str) -> None:
    assert seconds_text(seconds) == text
