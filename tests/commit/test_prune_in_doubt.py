"""What goes because a listing lacks some of it, or something else is there instead: asked again before it does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ckptflow.commit.catalog import Summaries
from ckptflow.commit.coordinator import Coordinator
from ckptflow.commit.prune import prune_by_hand
from ckptflow.commit.retention import KeepLast
from ckptflow.errors import StorageAccessError, UsageError
from ckptflow.format.layout import Folder
from ckptflow.storage.store import Entry, Store
from ckptflow.testing import FaultyStore, MemoryStore
from tests.commit.roots import Job, folders, job


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
    assert "two listings show other files in it" in kept[Folder(50, 1)]
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

    with pytest.raises(UsageError, match=f"nothing was pruned: {damaged}, saved again at its step, is damaged: a bit"):
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
    saver._begin(life.start)
    saver.save(60)
    assert str(Folder(50, 1)) in folders(MemoryStore(objects))
    assert any(key.startswith(f"{Folder(50, 1)}/shard") for key in objects)
