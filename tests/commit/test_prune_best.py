"""Pruning by hand deletes nothing in favour of a best checkpoint that nobody can restore."""

from __future__ import annotations

import pytest

from ckptflow.commit.catalog import Summaries
from ckptflow.commit.prune import prune_by_hand
from ckptflow.commit.retention import KeepBest, KeepLast, Policy
from ckptflow.errors import UsageError
from ckptflow.format.layout import Folder, pin_key
from ckptflow.storage.store import Store
from ckptflow.testing import MemoryStore
from tests.commit.roots import folders, job


def test_by_hand_nothing_goes_in_favour_of_a_best_that_is_damaged() -> None:
    store = MemoryStore()
    life = job(store)
    for step, loss in ((1, 0.1), (2, 0.2), (3, 0.9)):
        life.save(step, metrics={"loss": loss})
    before, damaged, asked = dict(store.objects), {1}, set[int]()

    def verify(store: Store, folder: Folder) -> str | None:
        asked.add(folder.step)
        return "a bit" if folder.step in damaged else None

    policies: list[Policy] = [KeepLast(1), KeepBest("loss")]
    for is_pinned in (False, True):
        if is_pinned:
            store.objects[pin_key(Folder(1, 1))] = b"pinned\n"
        with pytest.raises(UsageError, match=r"000000000001-i0001, among the best .*, is damaged: a bit\. Look"):
            prune_by_hand(store, Summaries(store), policies, verify)
    assert before.items() <= store.objects.items()
    assert not prune_by_hand(store, Summaries(store), [KeepLast(3), KeepBest("loss")], verify).plan.deletions
    damaged.clear()
    prune_by_hand(store, Summaries(store), policies, verify)
    assert asked == {1, 3}
    assert folders(store) == ["000000000001-i0001", "000000000003-i0001"]
