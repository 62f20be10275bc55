"""A prune by hand of a root on which a job may be starting: refused, unless a person says that none is."""

from __future__ import annotations

import pytest

from ckptflow.commit.catalog import Summaries
from ckptflow.commit.prune import plan_by_hand, prune_by_hand
from ckptflow.commit.retention import KeepLast
from ckptflow.errors import UsageError
from ckptflow.format.layout import Folder, claim_key
from ckptflow.storage.store import Store
from ckptflow.testing import MemoryStore
from tests.commit.roots import folders, job


def test_by_hand_nothing_is_pruned_while_the_newest_claim_has_no_commit() -> None:
    store = MemoryStore()
    life = job(store)
    for step in (1, 2, 3):
        life.save(step)
    waiting = job(store)
    before = dict(store.objects)
    with pytest.raises(UsageError, match="incarnation 2 has started and committed nothing"):
        prune_by_hand(store, Summaries(store), [KeepLast(1)])
    assert store.objects == before
    assert len(plan_by_hand(store, Summaries(store), [KeepLast(1)]).plan.deletions) == 2
    assert store.objects == before
    assert plan_by_hand(store, Summaries(store), [KeepLast(1)], even_if_starting=True).why_not is None
    waiting.save(4)
    prune_by_hand(store, Summaries(store), [KeepLast(1)])
    assert folders(store) == ["000000000004-i0002"]


def test_by_hand_a_claim_that_was_made_after_the_listing_is_seen() -> None:
    objects: dict[str, bytes] = {}
    life = job(MemoryStore(objects))
    for step in (1, 2, 3):
        life.save(step)

    def claims_meanwhile(verb: str, key: str) -> None:
        if verb == "list" and key == "lineage/":
            objects[claim_key(2)] = b"just made"

    store = MemoryStore(objects, hook=claims_meanwhile)
    with pytest.raises(UsageError, match="incarnation 2"):
        prune_by_hand(store, Summaries(store), [KeepLast(1)])
    assert len(folders(store)) == 3


def test_by_hand_a_start_while_it_is_verified_is_refused_whatever_was_said() -> None:
    store = MemoryStore()
    life = job(store)
    for step in (1, 2, 3):
        life.save(step)
    job(store)

    def verify(_: Store, folder: Folder) -> None:
        job(store)

    with pytest.raises(UsageError, match="incarnation 3 has started meanwhile"):
        prune_by_hand(store, Summaries(store), [KeepLast(1)], verify, even_if_starting=True)
    assert len(folders(store)) == 3
