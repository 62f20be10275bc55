"""The holes that simpler rules have, by their numbers in `docs/design`: each staged here, or proved elsewhere.

`ELSEWHERE` names the tests that cover the others, and is checked; `NOT_STAGED` says why a hole has no test.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from ckptflow.commit.catalog import Summaries
from ckptflow.commit.finding import find_folder, list_counting
from ckptflow.commit.prune import CLAIMS_KEPT
from ckptflow.commit.retention import KeepLast
from ckptflow.errors import (
    CommitUnknownError,
    CorruptCheckpointError,
    FencedError,
    StorageAccessError,
    StorageUnavailableError,
)
from ckptflow.format.layout import Folder, claim_key, pin_key
from ckptflow.testing import FaultyStore, MemoryStore
from tests.commit.roots import Job, folders, job, shard_key

ONE = [KeepLast(1)]
TESTS = Path(__file__).parents[1]

ELSEWHERE: dict[int, str] = {
    1: "protocol/test_mutations.py::test_turns_red",  # "acknowledgement after it"
    4: "protocol/test_mutations.py::test_a_folder_for_each_call_holds",
    5: "commit/test_resume.py::test_a_storage_that_does_not_answer_is_no_damage",
    9: "storage/test_local.py::test_a_folder_that_another_worker_made_is_made_durable_too",
    11: "transfer/test_writer.py::test_no_more_shards_are_under_way_than_buffers_and_threads",
    12: "commit/test_resume.py::test_a_reader_writes_nothing_and_falls_back_as_well",
    13: "commit/test_resume.py::test_a_state_that_does_not_fit_costs_no_claim",
    14: "peers/test_team.py::test_one_workers_error_reaches_all",
    15: "commit/test_together.py::test_whatever_one_worker_raises_stops_all",
    16: "manager/test_bad_input.py::test_two_jobs_on_one_root",
    18: "protocol/test_mutations.py::test_turns_red",  # "refusal of a prune by hand during a start"
    19: "commit/test_prune.py::test_a_full_storage_is_swept_of_dead_leftovers_before_the_first_commit",
    20: "commit/test_coordinator.py::test_a_failure_receipt_ends_the_wait",
    22: "commit/test_prune.py::test_equal_steps_count_once",
    23: "manager/test_bad_input.py::test_a_step_that_goes_back",
    24: "commit/test_prune.py::test_outside_what_counts",
    30: "commit/test_coordinator.py::test_an_outcome_that_stays_unknown_is_said_to_be_and_its_folder_is_left",
    31: "storage/test_local.py::test_without_hard_links_create_is_exclusive_by_a_lock",
    32: "commit/test_prune.py::test_a_prune_that_fails_is_logged_and_tried_again",
    35: "commit/test_claims.py::test_a_root_that_is_emptied_and_used_by_another_job_is_left_alone",
    36: "commit/test_claims.py::test_two_that_held_one_number_in_one_run",
    37: "commit/test_claims.py::test_a_listing_that_is_none_acknowledges_nothing_and_deletes_nothing",
    38: "commit/test_claims.py::test_a_server_that_replaces_on_create_is_warned_of",
    39: "commit/test_prune.py::test_by_hand_nothing_goes_in_favour_of_what_cannot_be_read",
    40: "manager/test_wrong_once.py::test_the_newest_is_restored",
    41: "manager/test_half_restored.py::test_a_warm_start_leaves_nothing_of_what_was_damaged",
    42: "manager/test_half_restored.py::test_no_save_after_a_restore_that_failed_in_the_middle",
    43: "commit/test_claims.py::test_what_fails_after_the_manifest_is_unknown",
    45: "commit/test_claims.py::test_a_higher_number_whose_claim_was_deleted_does_not_decide",
    46: "commit/test_prune_in_doubt.py::test_a_sweep_deletes_no_checkpoint_whose_manifest_a_listing_lacks",
    47: "commit/test_claims.py::test_a_manifest_whose_name_was_not_made_durable_is_not_acknowledged",
    48: "commit/test_coordinator.py::test_a_lost_reply_and_then_a_refusal_is_unknown_and_its_folder_is_left",
    49: "commit/test_prune_in_doubt.py::test_nothing_pinned_goes_by_one_listing_that_lacks_its_pin",
    50: "commit/test_prune_in_doubt.py::test_by_hand_nothing_goes_once_a_job_has_started_meanwhile",
    51: "commit/test_resume.py::test_another_runs_checkpoint_is_not_taken_in_place_of_a_damaged_one",
    52: "commit/test_lineage.py::test_a_job_in_an_emptied_root_is_not_ended_by_one_of_before_with_a_higher_number",
    53: "commit/test_catalog.py::test_a_verdict_of_damage_is_no_older_than_the_listing_that_it_is_used_with",
    54: "manager/test_what_is_known.py::test_a_full_storage_does_not_hide_that_another_holds_the_root",
    55: "manager/test_what_is_known.py::test_after_a_rollback_that_failed_while_it_claimed_the_program_restores_again",
    56: (
        "manager/test_what_is_known.py::test_a_worker_whose_receipt_was_not_answered_does_not_say_that_nothing_was_saved"
    ),
    57: "commit/test_lineage.py::test_one_wrong_answer_at_the_read_back_makes_nobody_anothers",
    58: "protocol/test_mutations.py::test_turns_red",  # "a copy of the version that is known"
    59: "commit/test_reuse.py::test_two_that_stay_never_share_all_and_the_source_is_there",
    60: "commit/test_reuse.py::test_after_a_fallback_nothing_is_copied_that_was_not_read_since",
    61: "commit/test_reuse.py::test_a_fallback_is_remembered_once_all_of_its_life_is_pruned",
    62: "commit/test_reuse.py::test_one_of_ours_that_landed_without_a_reply_is_chosen_by",
    63: "manager/test_only_read.py::test_it_changes_nothing_that_is_there",
    64: "protocol/test_mutations.py::test_turns_red",  # "the newest checkpoint is the one that was seen"
    65: "protocol/test_mutations.py::test_turns_red",  # "the newest claim is the one that was seen"
    66: "protocol/test_mutations.py::test_turns_red",  # "also after a save that could not take up"
    34: "commit/test_retention.py::test_keep_every_seconds_survives_clocks_that_go_astray",
}

NOT_STAGED: dict[int, str] = {
    10: "needs a real NFS mount whose client caches directories",
    29: "is the user's order of calls under ParameterServerStrategy",
}


def test_every_hole_is_staged_or_says_where_it_is_proved() -> None:
    here = {int(n) for n in re.findall(r"^def test_hole_(\d+)_", Path(__file__).read_text(), re.MULTILINE)}
    design = (TESTS.parent / "docs" / "design" / "0000-the-commit-protocol.md").read_text()
    holes = design.partition("## Holes")[2]
    numbers = {int(n) for n in re.findall(r"(?:^|\. )(\d{1,2})\. (?=[*A-Z`\d])", holes, re.MULTILINE)}
    assert numbers >= set(range(1, 40))
    assert here | set(ELSEWHERE) | set(NOT_STAGED) == numbers
    for where in ELSEWHERE.values():
        file, _, name = where.partition("::")
        assert f"def {name}(" in (TESTS / file).read_text(), where


def test_hole_2_a_crash_between_a_claim_and_its_listing_decides_nothing() -> None:
    objects: dict[str, bytes] = {}
    first = job(MemoryStore(objects), ONE)
    first.save(1000)

    class Crash(BaseException):
        pass

    def commits_meanwhile_and_dies(verb: str, key: str) -> None:
        if verb == "create" and key == claim_key(2) and key not in objects:
            first.save(1500)  # acknowledged: no newer claim is there yet; 1000 is pruned
        if verb == "list" and key == "lineage/":
            raise Crash

    with pytest.raises(Crash):
        Job(MemoryStore(objects, hook=commits_meanwhile_and_dies)).resume()
    assert claim_key(2) in objects
    assert Job(MemoryStore(objects)).resume() == 1500


def test_hole_3_a_zombies_planned_delete_meets_a_rollback() -> None:
    """A has planned to delete 500; B rolls back to 500 and dies before its first commit; then A deletes."""
    objects: dict[str, bytes] = {}
    rolled_back: list[int | None] = []

    def rolls_back(verb: str, key: str) -> None:
        if verb == "delete" and not rolled_back:
            rolled_back.append(Job(MemoryStore(objects)).resume(500))

    first = job(MemoryStore(objects, hook=rolls_back), ONE)
    first.save(500)
    first.save(1500)
    assert rolled_back == [500]
    assert "000000000500-i0001/manifest.json" not in objects
    after = Job(MemoryStore(objects))
    assert after.resume() == 500
    assert after.value == ("000000000500-i0001",)


def test_hole_6_a_number_is_not_used_again_where_claims_were_lost() -> None:
    """A folder copied by hand into an empty root, or `lineage/` expired."""
    store = MemoryStore()
    job(store).save(500)
    copied = {key: data for key, data in store.objects.items() if key.startswith("000000000500")}
    life = job(MemoryStore(dict(copied)))
    assert life.start.held is not None
    assert life.start.held.number == 2
    life.save(500)
    assert isinstance(life.store, MemoryStore)
    assert {key: life.store.objects[key] for key in copied if key in life.store.objects} in ({}, copied)
    assert folders(life.store)[-1] == "000000000500-i0002"


@pytest.mark.parametrize("lands", [True, False])
def test_hole_7_a_late_manifest_finds_its_shards(lands: bool) -> None:
    """The create times out, reading back says absent, the save is given up; then it lands, or never does."""
    inner = MemoryStore()
    store = FaultyStore(inner)
    life = job(store, ONE)
    life.save(1)
    late: list[tuple[str, bytes]] = []
    coordinator = life.coordinator
    assert coordinator is not None
    create = store.create

    def under_way(key: str, data: memoryview) -> None:
        if key.startswith("000000000002"):
            late[:] = [(key, bytes(data))]
            raise StorageUnavailableError("timed out")
        create(key, data)

    store.create = under_way  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        now = [0.0]
        patch.setattr("ckptflow.stops.ticking.awake_s", lambda: now[0])
        pause = SimpleNamespace(sleep=lambda _: now.__setitem__(0, now[0] + 5.0))
        patch.setattr("ckptflow.commit.lineage.time", pause)
        with pytest.raises(CommitUnknownError):
            life.save(2)
    life.save(3)
    assert shard_key(inner, Folder(2, 1)) in inner.objects  # a partial whose manifest was sent is left alone
    if lands:
        inner.objects |= dict(late)
    assert Job(inner).resume() == 3
    later = job(inner, ONE)
    later.save(4)
    assert {key.partition("/")[0] for key in inner.objects if key[0] == "0"} == {str(Folder(4, 3))}


def test_hole_8_a_rollback_in_a_running_process_lasts() -> None:
    store = MemoryStore()
    life = job(store)
    for step in (500, 1000, 1500):
        life.save(step)
    life.resume(500)
    assert folders(store)[0:2] == ["000000000500-i0001", "000000000500-i0002"]
    life.save(1000)
    after = Job(store)
    assert after.resume() == 1000
    assert after.value == ("000000000500-i0001", "000000001000-i0002")


def test_hole_17_two_copies_on_one_root_are_told_not_to_go_on() -> None:
    store = MemoryStore()
    first, second = job(store), job(store)
    with pytest.raises(FencedError, match=r"another copy holds this root: incarnation 2 \(.*, process \d+, since 20"):
        first.save(1)
    second.save(1)


def test_hole_21_what_lacks_its_shards_is_not_kept_in_place_of_a_good_one() -> None:
    store = MemoryStore()
    life = job(store, [KeepLast(2)])
    life.save(1)
    life.save(2)
    del store.objects[shard_key(store, Folder(2, 1))]
    life.save(3)
    assert folders(store) == ["000000000001-i0001", "000000000003-i0001"]
    assert Job(store).resume() == 3


def test_hole_25_ten_thousand_restarts() -> None:
    """Numbers with five digits are numbers; the oldest claims go; a lineage names only what is there."""
    store = MemoryStore()
    job(store, ONE).save(1)
    claim = store.objects[claim_key(1)]
    store.objects |= {claim_key(number): claim for number in range(2, 10_001)}
    life = job(store, ONE)
    assert life.start.held is not None
    assert life.start.held.number == 10_001
    life.save(2)
    claims = sorted(key for key in store.objects if key.startswith("lineage/"))
    assert len(claims) == CLAIMS_KEPT
    assert claims[-1] == claim_key(10_001)
    after = job(store, ONE)
    assert after.start.lineage == {Folder(2, 10_001)}


def test_hole_26_a_name_that_is_gone_when_it_is_read_is_looked_for_again() -> None:
    """The pages of a list are no snapshot: the explorer's scenarios "in pages" have all orders; here is the name."""
    objects: dict[str, bytes] = {}
    first = job(MemoryStore(objects), ONE)
    first.save(1)
    seen: list[str] = []

    def commits_meanwhile(verb: str, key: str) -> None:
        if verb == "get" and key == f"{Folder(1, 1)}/manifest.json" and not seen:
            seen.append(key)
            first.save(2)

    assert Job(MemoryStore(objects, hook=commits_meanwhile)).resume() == 2


def test_hole_27_a_root_that_was_copied_in_the_middle_of_a_save() -> None:
    """A manifest without all its shards: the one before is taken, and saved again."""
    store = MemoryStore()
    life = job(store)
    life.save(1)
    life.save(2)
    del store.objects[shard_key(store, Folder(2, 1))]
    assert Job(store).resume() == 1
    assert folders(store) == ["000000000001-i0001", "000000000001-i0002", "000000000002-i0001"]


def test_hole_28_a_pinned_one_is_there_for_its_reader() -> None:
    store = MemoryStore()
    life = job(store, ONE)
    life.save(1)
    store.objects[pin_key(Folder(1, 1))] = b"pinned\n"
    for step in (2, 3):
        life.save(step)
    assert folders(store) == ["000000000001-i0001", "000000000003-i0001"]
    del store.objects[pin_key(Folder(1, 1))]
    life.save(4)
    assert folders(store) == ["000000000004-i0001"]


def test_hole_33_nothing_here_is_said_and_a_refusal_is_not_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ckptflow"):
        assert Job(MemoryStore(url="s3://bucket/typo")).resume() is None
    assert "s3://bucket/typo: no checkpoint is here, starting anew" in caplog.text
    store = FaultyStore(MemoryStore())
    store.fail("list", StorageAccessError("403"))
    with pytest.raises(StorageAccessError):
        Job(store).resume()


@pytest.mark.parametrize("strange", ["the newest claim", "a folder"])
def test_hole_44_what_was_copied_from_another_run_does_not_undo_a_rollback(
    strange: str, caplog: pytest.LogCaptureFixture
) -> None:
    store, other = MemoryStore(), MemoryStore()
    job(store).save(1)
    job(store).save(5)
    job(store, step=1).save(3)
    for step in (7, 8, 9):
        job(other).save(step)
    if strange == "a folder":
        store.objects |= {key: data for key, data in other.objects.items() if key.startswith(str(Folder(9, 3)))}
    else:
        store.objects[claim_key(3)] = other.objects[claim_key(3)]
    summaries = Summaries(store)
    with caplog.at_level(logging.WARNING, "ckptflow"):
        newest = find_folder(store, summaries, None)
        assert newest == Folder(3, 3)
        assert Job(store).resume() == 3
    assert "another run" in caplog.text


@pytest.fixture
def taken_place() -> MemoryStore:
    """Steps 1 and 2, and 3 by the next run attempt; another run's step 2 is in the place of ours."""
    store, other = MemoryStore(), MemoryStore()
    for each in (store, other):
        life = job(each)
        life.save(1)
        life.save(2)
    job(store).save(3)
    key = f"{Folder(2, 1)}/"
    for name in [name for name in store.objects if name.startswith(key)]:
        del store.objects[name]
    store.objects |= {name: data for name, data in other.objects.items() if name.startswith(key)}
    return store


def test_hole_44_another_runs_folder_in_the_place_of_ours_is_not_restored(taken_place: MemoryStore) -> None:
    taken_place.objects[shard_key(taken_place, "000000000003-i0002")] = b"damaged"
    assert Job(taken_place).resume() == 1


def test_hole_44_another_runs_folder_in_the_place_of_ours_is_not_listed_nor_deleted(taken_place: MemoryStore) -> None:
    summaries = Summaries(taken_place)
    assert [found.step for found in list_counting(taken_place, summaries)] == [1, 3]
    with pytest.raises(CorruptCheckpointError, match="another run"):
        find_folder(taken_place, summaries, 2)
    job(taken_place, ONE).save(4)
    assert folders(taken_place) == ["000000000002-i0001", "000000000004-i0003"]


def test_hole_44_what_is_outside_is_restored_by_a_reader_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    store, other = MemoryStore(), MemoryStore()
    job(store).save(5)
    job(other)
    store.objects[claim_key(1)] = other.objects[claim_key(1)]
    with caplog.at_level(logging.WARNING, "ckptflow"):
        assert Job(store, read_only=True).resume() == 5
    assert "is superseded; no current checkpoint" in caplog.text
