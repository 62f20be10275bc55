"""What goes because a listing lacks some of it, or something else is there instead: asked again before it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from ckptflow.commit.catalog import Summaries
from ckptflow.commit.coordinator import Coordinator
from ckptflow.commit.pins import pin_checkpoint
from ckptflow.commit.prune import ByHand, prune_by_hand
from ckptflow.commit.retention import KeepLast, Policy
from ckptflow.errors import CheckpointGoneError, ObjectNotFoundError, StorageAccessError, UsageError
from ckptflow.format.layout import Folder, pin_key
from ckptflow.storage.store import Entry, Store
from ckptflow.testing import FaultyStore, MemoryStore
from tests.commit.roots import Job, folders, job

ONE = [KeepLast(1)]


def five_and_one() -> dict[str, bytes]:
    """Steps 10 to 50 of one job, 60 of the next."""
    store = MemoryStore()
    first = job(store)
    for step in (10, 20, 30, 40, 50):
        first.save(step)
    job(store).save(60)
    return store.objects


class OnceShort(MemoryStore):
    """The first `times` listings that would show something lack it, as one of a gateway's that was cut off."""

    def __init__(self, objects: dict[str, bytes], lacks: Callable[[str], bool], *, times: int = 1) -> None:
        super().__init__(objects)
        self.lacks: Callable[[str], bool] | None = lacks
        self.times = times

    def list(self, prefix: str = "") -> list[Entry]:
        entries, lacks = super().list(prefix), self.lacks
        shown = [entry for entry in entries if lacks is None or not lacks(entry.key)]
        if shown != entries:
            self.times -= 1
            self.lacks = lacks if self.times else None
        return shown


LACKING: dict[str, Callable[[str], bool]] = {
    "its shards": lambda key: key.startswith("000000000050-i0001/shard"),
    "its manifest": lambda key: key == "000000000050-i0001/manifest.json",
}


@pytest.mark.parametrize("lacking", LACKING)
def test_by_hand_nothing_goes_by_one_listing_that_lacks_some_of_it(lacking: str) -> None:
    store = OnceShort(five_and_one(), LACKING[lacking])
    found = prune_by_hand(store, Summaries(store), [KeepLast(2)])
    kept = {d.folder: d.reason for d in found.plan.decisions if d.keep}
    assert "two listings of it differ" in kept[Folder(50, 1)]
    assert str(Folder(50, 1)) in folders(store)
    prune_by_hand(store, Summaries(store), [KeepLast(2)])
    assert folders(store) == [str(Folder(50, 1)), str(Folder(60, 2))]


def test_a_job_deletes_nothing_by_one_listing_that_lacks_some_of_it() -> None:
    store = OnceShort({}, LACKING["its shards"])
    lacks, store.lacks = store.lacks, None
    life = job(store, [KeepLast(2)])
    life.save(40)
    life.save(50)
    store.lacks = lacks
    life.save(60)
    assert store.lacks is None
    assert str(Folder(50, 1)) in folders(store)


def test_by_hand_what_is_there_instead_of_another_is_verified() -> None:
    store = MemoryStore()
    first = job(store)
    first.save(10)
    earlier = {key: data for key, data in store.objects.items() if key.startswith(f"{Folder(10, 1)}/")}
    second = job(store)
    second.save(10)
    second.save(20)
    store.objects |= earlier  # as where its prune failed
    before = folders(store)
    damaged = Folder(10, 2)

    def verify(_: object, folder: Folder) -> str | None:
        return "a bit" if folder == damaged else None

    with pytest.raises(UsageError, match=f"nothing was deleted: {damaged}, saved again at its step, is damaged: a bit"):
        prune_by_hand(store, Summaries(store), [KeepLast(2)], verify)
    assert folders(store) == before
    prune_by_hand(store, Summaries(store), [KeepLast(1)], verify)  # goes itself, so that nothing is there instead
    assert folders(store) == [str(Folder(20, 2))]


# A full storage


def five_and_a_start() -> tuple[dict[str, bytes], Job]:
    """Steps 10 to 50 of one job; the next has started from 50 and saved nothing; 45 was never committed."""
    store = MemoryStore()
    first = job(store)
    for step in (10, 20, 30, 40, 50):
        first.save(step)
    store.objects[f"{Folder(45, 1)}/shard-00000-of-00001-0000-{'0' * 8}.safetensors"] = b"never committed"
    return store.objects, job(store)


def swept(life: Job, store: Store) -> int:
    """What its sweep frees on a full storage, by what `store` answers."""
    assert life.start.held is not None
    sweeper = Coordinator(store, life.start, Summaries(store), [KeepLast(1)], commit_timeout_s=5.0)
    return sweeper.sweep_partials()


@pytest.mark.parametrize("times", [1, 2])
def test_a_sweep_deletes_no_checkpoint_whose_manifest_a_listing_lacks(times: int) -> None:
    """Twice: a cache in front of the storage."""
    objects, life = five_and_a_start()
    before = dict(objects)
    store = OnceShort(objects, LACKING["its manifest"], times=times)
    assert swept(life, store) == len(b"never committed")
    assert store.lacks is None
    assert {key: data for key, data in before.items() if not key.startswith(f"{Folder(45, 1)}/")} == objects
    assert job(MemoryStore(objects)).start.restored is not None


def test_a_sweep_keeps_what_cannot_be_asked_for() -> None:
    objects, life = five_and_a_start()
    before = dict(objects)
    store = FaultyStore(OnceShort(objects, LACKING["its manifest"], times=2))
    store.fail("get", StorageAccessError("403"), key="manifest.json", times=100)
    with pytest.raises(StorageAccessError):
        swept(life, store)
    assert objects == before


def test_a_job_deletes_no_checkpoint_whose_manifest_two_listings_lack() -> None:
    objects, life = five_and_a_start()
    store = OnceShort(objects, LACKING["its manifest"], times=2)
    saver = Job(store, [KeepLast(9)])
    saver.go_on(life.start)
    saver.save(60)
    assert str(Folder(50, 1)) in folders(MemoryStore(objects))
    assert any(key.startswith(f"{Folder(50, 1)}/shard") for key in objects)


# Pins


@pytest.mark.parametrize("how", ["a job's prune", "by hand", "a sweep"])
def test_nothing_pinned_goes_by_one_listing_that_lacks_its_pin(how: str) -> None:
    objects, life = five_and_a_start()
    pinned = Folder(45, 1) if how == "a sweep" else Folder(20, 1)
    objects[pin_key(pinned)] = b"pinned\n"
    store = OnceShort(objects, lambda key: key.startswith("pins/"))
    if how == "a sweep":
        assert swept(life, store) == 0
    elif how == "by hand":
        life.save(60)
        found = prune_by_hand(store, Summaries(store), [KeepLast(1)])
        assert next(d for d in found.plan.decisions if d.folder == pinned).reason == "pinned"
    else:
        saver = Job(store, [KeepLast(1)])
        saver.go_on(life.start)
        saver.save(60)
    assert store.lacks is None
    assert any(key.startswith(f"{pinned}/") for key in objects)
    assert pin_key(pinned) in objects


def test_a_pin_that_comes_after_the_listing_of_a_prune_still_counts() -> None:
    objects, life = five_and_a_start()

    def pins_20(verb: str, key: str) -> None:
        if verb == "list" and key == "lineage/":
            objects[pin_key(Folder(20, 1))] = b"pinned\n"

    saver = Job(MemoryStore(objects, hook=pins_20), [KeepLast(1)])
    saver.go_on(life.start)
    saver.save(60)
    assert folders(MemoryStore(objects)) == [str(Folder(20, 1)), str(Folder(60, 2))]


@pytest.mark.parametrize("wrong", ["a listing", "a 404"])
def test_pinning_again_takes_no_pin_back_by_one_wrong_answer(wrong: str) -> None:
    objects, _ = five_and_a_start()
    objects[pin_key(Folder(50, 1))] = b"pinned\n"
    store = OnceShort(objects, LACKING["its manifest"])
    lacks, store.lacks = store.lacks, None
    faulty = FaultyStore(store)

    def goes_wrong(verb: str, key: str) -> None:  # from here on, once
        if verb != "create" or not key.startswith("pins/"):
            return
        if wrong == "a listing":
            store.lacks = lacks
        else:
            faulty.fail("get", ObjectNotFoundError("404"), key="manifest.json")

    store.hook = goes_wrong
    pin_checkpoint(faulty, Summaries(faulty), 50)
    assert pin_key(Folder(50, 1)) in objects


def test_a_pin_of_what_is_gone_is_taken_back_if_it_is_our_own() -> None:
    for was_pinned in (False, True):
        objects, _ = five_and_a_start()
        store = MemoryStore(objects)
        if was_pinned:
            objects[pin_key(Folder(50, 1))] = b"pinned\n"

        def prunes(verb: str, key: str) -> None:
            if verb == "create":
                objects.pop(f"{Folder(50, 1)}/manifest.json", None)  # noqa: B023

        store.hook = prunes
        with pytest.raises(CheckpointGoneError):
            pin_checkpoint(store, Summaries(store), 50)
        assert (pin_key(Folder(50, 1)) in objects) == was_pinned


# By hand: what happens while the newest is verified, which may take hours


def pruned_while(objects: dict[str, bytes], happens: Callable[[], object], policies: Sequence[Policy] = ONE) -> ByHand:
    """A prune by hand, and what happens during its verification."""
    store = MemoryStore(objects)

    def verify(_: Store, folder: Folder) -> str | None:
        happens()
        return None

    return prune_by_hand(store, Summaries(store), policies, verify)


def test_by_hand_nothing_goes_once_a_job_has_started_meanwhile() -> None:
    objects = five_and_one()
    life = Job(MemoryStore(objects))
    with pytest.raises(UsageError, match=r"nothing was deleted: incarnation 3 has started meanwhile\. Run it again"):
        pruned_while(objects, lambda: life.resume(20))
    assert str(Folder(10, 1)) in folders(MemoryStore(objects))


def test_by_hand_what_was_pinned_meanwhile_stays() -> None:
    objects = five_and_one()
    store = MemoryStore(objects)
    found = pruned_while(objects, lambda: pin_checkpoint(store, Summaries(store), 20))
    assert folders(store) == [str(Folder(20, 1)), str(Folder(60, 2))]
    assert Folder(20, 1) not in found.plan.deletions


def test_by_hand_what_another_run_saved_meanwhile_under_the_same_names_stays() -> None:
    objects = five_and_one()

    def begins_anew() -> None:
        objects.clear()
        another = job(MemoryStore(objects))
        for step in (10, 20, 30, 40, 50):
            another.save(step)
        job(MemoryStore(objects)).save(60)

    with pytest.raises(UsageError, match=r"nothing was deleted: .* meanwhile\. Run it again"):
        pruned_while(objects, begins_anew)
    assert len(folders(MemoryStore(objects))) == 6


def test_by_hand_beside_a_job_that_saves_meanwhile() -> None:
    """It goes on saving: what is newer stays, and what goes is what was planned."""
    store = MemoryStore()
    life = job(store)
    for step in (10, 20, 30):
        life.save(step)
    pruned_while(store.objects, lambda: life.save(40))
    assert folders(store) == [str(Folder(30, 1)), str(Folder(40, 1))]


@pytest.mark.parametrize("how", ["is gone", "looks damaged"])
def test_by_hand_the_newest_was_pruned_meanwhile(how: str) -> None:
    """By a job beside it: no damage, and no bare not-found."""
    store = MemoryStore()
    life = job(store, [KeepLast(2)])
    for step in (10, 20):
        life.save(step)

    def verify(_: Store, folder: Folder) -> str | None:
        for step in (30, 40, 50):
            life.save(step)
        if how == "is gone":
            raise ObjectNotFoundError("404")
        return "shard-0 is missing"

    with pytest.raises(UsageError, match=r"000000000020-i0001, .* was deleted meanwhile\. Run it again"):
        prune_by_hand(store, Summaries(store), ONE, verify)
    assert folders(store) == [str(Folder(40, 1)), str(Folder(50, 1))]
