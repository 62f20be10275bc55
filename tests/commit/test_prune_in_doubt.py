"""What goes because a listing lacks some of it, or something else is there instead: asked again before it does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ckptflow.commit.catalog import Summaries
from ckptflow.commit.prune import prune_by_hand
from ckptflow.commit.retention import KeepLast
from ckptflow.errors import UsageError
from ckptflow.format.layout import Folder
from ckptflow.storage.store import Entry
from ckptflow.testing import MemoryStore
from tests.commit.roots import folders, job


def five_and_one() -> dict[str, bytes]:
    """Steps 10 to 50 of one job, 60 of the next."""
    store = MemoryStore()
    first = job(store)
    for step in (10, 20, 30, 40, 50):
        first.save(step)
    job(store).save(60)
    return store.objects


class OnceShort(MemoryStore):
    """The first listing of the root lacks some of a folder, as one of a gateway's that was cut off."""

    def __init__(self, objects: dict[str, bytes], lacks: Callable[[str], bool]) -> None:
        super().__init__(objects)
        self.lacks: Callable[[str], bool] | None = lacks

    def list(self, prefix: str = "") -> list[Entry]:
        entries, lacks = super().list(prefix), self.lacks
        if lacks is None or prefix:
            return entries
        self.lacks = None
        return [entry for entry in entries if not lacks(entry.key)]


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
