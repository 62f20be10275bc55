"""What a life starts from, beyond what the explorer covers: damage of several kinds, barriers, readers, other runs."""

from __future__ import annotations

import logging

import pytest

from ckptflow.commit.catalog import Summaries
from ckptflow.commit.finding import find_folder, list_counting
from ckptflow.commit.retention import KeepBest, KeepLast
from ckptflow.errors import (
    CheckpointGoneError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    StorageUnavailableError,
    UsageError,
)
from ckptflow.format.layout import Folder
from ckptflow.format.manifest import Manifest
from ckptflow.testing import FaultyStore, MemoryStore
from tests.commit.roots import Job, damage, folders, job, shard_key


def test_an_empty_root_starts_anew_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    life = Job(store)
    with caplog.at_level(logging.INFO, "ckptflow"):
        assert life.resume() is None
    assert [each.levelname for each in caplog.records if "no checkpoint is here" in each.message] == ["INFO"]
    assert list(store.objects) == ["lineage/000001.json"]


def test_the_next_life_goes_on_from_the_newest() -> None:
    store = MemoryStore()
    first = job(store)
    first.save(1)
    first.save(2)
    second = Job(store)
    assert second.resume() == 2
    assert second.value == ("000000000001-i0001", "000000000002-i0001")
    assert not second.start.save_again
    assert {str(folder) for folder in second.start.lineage} == set(second.value)


def test_damage_falls_back_to_the_one_before_and_saves_it_again(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    first = job(store)
    for step in (1, 2, 3):
        first.save(step)
    damage(store, "000000000003-i0001", "shard")
    second = Job(store)
    assert second.resume() == 2
    assert "damaged checkpoint" in caplog.text
    assert "restored step 2 instead" in caplog.text
    assert second.start.reason == "damage"
    assert folders(store)[-2:] == ["000000000002-i0002", "000000000003-i0001"]
    assert job(store).start.restored is not None
    assert Job(store).resume() == 2  # what is damaged is not even looked at any more


def test_a_step_that_was_asked_for_is_not_replaced_by_another() -> None:
    store = MemoryStore()
    first = job(store)
    first.save(1)
    first.save(2)
    damage(store, "000000000002-i0001", "shard")
    with pytest.raises(CorruptCheckpointError, match="no other step is taken"):
        Job(store).resume(2)
    with pytest.raises(CheckpointNotFoundError, match=r"there are steps \[1, 2\]"):
        Job(store).resume(7)
    assert Job(store).resume(1) == 1


def test_a_damaged_first_manifest_does_not_cut_off_what_was_kept() -> None:
    """The newest incarnation's only manifest is damaged: the lineage before it goes on, and so does retention."""
    store = MemoryStore()
    keep = (KeepLast(2), KeepBest("loss"))
    first = job(store, keep)
    first.save(1, metrics={"loss": 0.1})
    first.save(2, metrics={"loss": 0.5})
    first.save(3, metrics={"loss": 0.4})
    second = job(store, keep)
    second.save(4)
    assert folders(store) == ["000000000001-i0001", "000000000003-i0001", "000000000004-i0002"]
    damage(store, "000000000004-i0002")
    third = job(store, keep)
    assert third.start.reason == "outside"
    assert third.value[-1] == "000000000003-i0001"
    third.save(4)
    third.save(5)
    assert folders(store) == ["000000000001-i0001", "000000000004-i0003", "000000000005-i0003"]


def test_a_rollback_can_be_undone_with_all_that_it_cut_off() -> None:
    store = MemoryStore()
    first = job(store)
    for step in (1, 2, 3):
        first.save(step)
    assert Job(store).resume(1) == 1
    third = job(store, step=3)
    assert third.start.reason == "rollback"
    assert [str(folder) for folder in sorted(third.start.lineage)] == [
        "000000000001-i0001",
        "000000000002-i0001",
        "000000000003-i0001",
    ]


@pytest.mark.parametrize("damaged", ["manifest.json", "shard"])
def test_nothing_is_taken_past_a_rollback(damaged: str) -> None:
    """A rollback's own checkpoint is damaged: what it cut off is named, and not taken."""
    store = MemoryStore()
    first = job(store)
    first.save(1)
    first.save(2)
    job(store, step=1)
    for folder in ("000000000001-i0001", "000000000001-i0002"):
        damage(store, folder, damaged)
    with pytest.raises(CorruptCheckpointError, match=r"superseded by a rollback.*restore\(2\)"):
        Job(store).resume()
    assert Job(store).resume(2) == 2


def test_a_rollback_is_known_by_its_claim_behind_a_younger_damaged_incarnation() -> None:
    """Both the rollback's manifests and those of the life after it are damaged."""
    store = MemoryStore()
    first = job(store)
    first.save(1)
    first.save(5)
    job(store, step=1)
    job(store).save(3)
    assert folders(store) == ["000000000001-i0002", "000000000003-i0003", "000000000005-i0001"]
    damage(store, "000000000001-i0002")
    damage(store, "000000000003-i0003")
    with pytest.raises(CorruptCheckpointError, match="no valid checkpoint is left"):
        Job(store).resume()


def test_nothing_is_taken_past_a_fresh_start() -> None:
    store = MemoryStore()
    job(store).save(1)
    fresh = Job(store)
    fresh.begin_anew(fresh=True)
    fresh.save(1)
    damage(store, "000000000001-i0002", "shard")
    with pytest.raises(CorruptCheckpointError, match="fresh start"):
        Job(store).resume()


def test_a_save_before_any_restore_is_refused_on_a_used_root() -> None:
    store = MemoryStore()
    job(store).save(1)
    with pytest.raises(UsageError, match="restore_latest"):
        Job(store).begin_anew()
    assert [key for key in store.objects if key.startswith("lineage/")] == ["lineage/000001.json"]


def test_a_state_that_does_not_fit_costs_no_claim() -> None:
    store = MemoryStore()
    job(store).save(1)
    before = dict(store.objects)

    def check(_: Manifest) -> None:
        raise ValueError("shapes differ")

    with pytest.raises(ValueError, match="shapes differ"):
        Job(store, check=check).resume()
    assert store.objects == before


def test_a_reader_writes_nothing_and_falls_back_as_well() -> None:
    store = MemoryStore()
    first = job(store)
    first.save(1)
    first.save(2)
    damage(store, "000000000002-i0001", "shard")
    before = dict(store.objects)
    reader = Job(store, read_only=True)
    assert reader.resume() == 1
    assert store.objects == before


@pytest.mark.parametrize("reads", ["restoring", "listing", "finding"])
def test_a_reader_does_not_take_what_was_pruned_for_nothing(reads: str) -> None:
    """The only checkpoint is listed, and deleted before its manifest is read: something newer is there."""
    objects: dict[str, bytes] = {}
    first = job(MemoryStore(objects), [KeepLast(1)])
    first.save(1)
    saved: list[int] = []

    def saves_meanwhile(verb: str, key: str) -> None:
        if verb == "get" and key.endswith("/manifest.json") and not saved:
            saved.append(2)
            first.save(2)

    store = MemoryStore(objects, hook=saves_meanwhile)
    if reads == "restoring":
        assert Job(store, read_only=True).resume() == 2
    elif reads == "listing":
        assert [checkpoint.step for checkpoint in list_counting(store, Summaries(store))] == [2]
    else:
        assert find_folder(store, Summaries(store), None).step == 2
    assert saved


def test_a_storage_that_does_not_answer_is_no_damage() -> None:
    objects: dict[str, bytes] = {}
    first = job(MemoryStore(objects))
    first.save(1)
    first.save(2)
    store = FaultyStore(MemoryStore(objects))
    store.fail("get", StorageUnavailableError("503"), key="shard")
    with pytest.raises(StorageUnavailableError):
        Job(store).resume()
    store.assert_all_used()
    assert Job(MemoryStore(objects)).resume() == 2


def test_a_checkpoint_that_is_gone_is_looked_for_anew_and_not_for_ever() -> None:
    objects: dict[str, bytes] = {}
    first = job(MemoryStore(objects))
    first.save(1)
    first.save(2)

    def prunes_it(verb: str, key: str) -> None:
        if verb == "get" and key.startswith("000000000002-i0001/shard"):
            for gone in [k for k in objects if k.startswith("000000000002-i0001/")]:
                del objects[gone]

    second = Job(MemoryStore(objects, hook=prunes_it))
    assert second.resume() == 1
    assert not second.start.save_again  # it is the newest that counts, now

    class Stale(MemoryStore):
        """Lists what is not there."""

        def get(self, key: str, into: memoryview, start: int = 0) -> int:
            return super().get("nothing" if key.startswith("0") and "manifest" in key else key, into, start)

    with pytest.raises((CheckpointGoneError, UsageError, CheckpointNotFoundError)):
        Job(Stale(dict(objects))).resume(1)


def test_the_only_one_that_went_while_it_was_read_is_no_empty_root() -> None:
    """What was assigned of it may be in the state already."""
    objects: dict[str, bytes] = {}
    job(MemoryStore(objects)).save(1)

    def removes_it(verb: str, key: str) -> None:
        if verb == "get" and "shard" in key:
            for gone in [k for k in objects if k.startswith("000000000001-i0001/")]:
                del objects[gone]

    with pytest.raises(CheckpointGoneError, match="made anew"):
        Job(MemoryStore(objects, hook=removes_it)).resume()


def test_a_foreign_folder_does_not_decide_and_is_deleted_only_by_hand() -> None:
    """A folder of another run, copied in by hand under a higher number."""
    other = MemoryStore()
    for _ in range(4):
        life = job(other)
    life.save(9)
    store = MemoryStore()
    first = job(store)
    first.save(1)
    store.objects |= {key: data for key, data in other.objects.items() if key.startswith("000000000009-i0004/")}
    second = Job(store, (KeepLast(1),))
    assert second.resume() == 1
    assert second.start.held is not None
    assert second.start.held.number == 5
    second.save(10)
    assert folders(store) == ["000000000009-i0004", "000000000010-i0005"]
    assert Job(store).resume(9) == 9  # by hand it can be taken


@pytest.fixture
def beside_anothers() -> MemoryStore:
    """Step 20 of this run, and step 1000 of another, under a higher number, copied in by hand."""
    store, other = MemoryStore(), MemoryStore()
    for _ in range(4):
        life = job(other)
    life.save(1000)
    job(store).save(20)
    store.objects |= {key: data for key, data in other.objects.items() if key.startswith("000000001000-i0004/")}
    return store


def test_another_runs_checkpoint_is_not_taken_in_place_of_a_damaged_one(beside_anothers: MemoryStore) -> None:
    """Restored, it would be saved as this run's own, which is then pruned."""
    store = beside_anothers
    shard = shard_key(store, "000000000020-i0001")
    store.objects[shard] = b"?" * len(store.objects[shard])
    with pytest.raises(CorruptCheckpointError, match="no valid checkpoint is left"):
        Job(store).resume()
    damage(store, "000000000020-i0001")
    with pytest.raises(CorruptCheckpointError, match="no valid checkpoint is left"):
        Job(store).resume()
    assert Job(store).resume(1000) == 1000  # asked for by hand it can be


def test_a_step_of_this_run_goes_before_the_same_of_another() -> None:
    """Ours was cut off by a rollback, and does not count either."""
    store, other = MemoryStore(), MemoryStore()
    first = job(store)
    first.save(10)
    first.save(20)
    job(store, step=10)
    for _ in range(4):
        life = job(other)
    life.save(20)
    store.objects |= {key: data for key, data in other.objects.items() if key.startswith("000000000020-i0004/")}
    assert find_folder(store, Summaries(store), 20) == Folder(20, 1)
    again = Job(store)
    assert again.resume(20) == 20
    assert again.value == ("000000000010-i0001", "000000000020-i0001")
