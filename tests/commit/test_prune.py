"""Every decision of a prune with its reason, as a table; what pruning by hand refuses; what a failed prune costs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ckptflow.commit.catalog import Counting, Listing, Summaries, find_counting, list_root
from ckptflow.commit.prune import CLAIMS_KEPT, PrunePlan, plan_by_hand, plan_prune, prune_by_hand, refuse_by_hand
from ckptflow.commit.retention import KeepBest, KeepLast, Policy
from ckptflow.errors import StorageAccessError, UsageError
from ckptflow.format.layout import Folder, claim_key, pin_key
from ckptflow.storage.store import Entry
from ckptflow.testing import FaultyStore, MemoryStore
from tests.commit.roots import Disk, Job, Tuning, damage, folders, job, shard_key


def plan(store: MemoryStore, *policies: Policy, given_up: tuple[Folder, ...] = ()) -> PrunePlan:
    listing, summaries = list_root(store), Summaries(store)
    counting = find_counting(listing, None, summaries.get)
    return plan_prune(listing, counting, summaries.get, policies, incarnation=counting.incarnation, given_up=given_up)


def decisions(store: MemoryStore, *policies: Policy, given_up: tuple[Folder, ...] = ()) -> dict[str, tuple[bool, str]]:
    return {str(d.folder): (d.keep, d.reason) for d in plan(store, *policies, given_up=given_up).decisions}


def test_every_decision_has_its_reason() -> None:
    """One root with everything in it: the golden table."""
    store = MemoryStore()
    first = job(store)
    for step in (1, 2, 3, 4, 5):
        first.save(step, metrics={"loss": 1.0 / step if step != 3 else 0.01})
    first.save(20)
    second = job(store, step=5)  # cuts off 20, and saves 5 again
    for step in (6, 7, 8, 9):
        second.save(step)
    store.objects[pin_key(Folder(2, 1))] = b"pinned\n"
    damage(store, "000000000006-i0002")
    del store.objects[shard_key(store, "000000000007-i0002")]
    store.objects[shard_key(store, "000000000004-i0001")] += b"?"
    for leftover in ("000000000021-i0001", "000000000010-i0002", "000000000010-i0002-r2", "000000000010-i0003"):
        store.objects[f"{leftover}/shard-00000-of-00001-0000.safetensors"] = b"partial"
    store.objects["somebody's notes.txt"] = b"not ours"
    found = decisions(store, KeepLast(2), KeepBest("loss"), given_up=(Folder(10, 2),))
    assert found == {
        "000000000001-i0001": (False, "no policy retains it"),
        "000000000002-i0001": (True, "pinned"),
        "000000000003-i0001": (True, "1 of the best 1 by loss (min): 0.01"),
        "000000000004-i0001": (False, "shards are missing or have the wrong size"),
        "000000000005-i0002": (False, "no policy retains it"),
        "000000000006-i0002": (False, "its manifest is damaged"),
        "000000000007-i0002": (False, "shards are missing or have the wrong size"),
        "000000000008-i0002": (True, "2 of the last 2"),
        "000000000009-i0002": (True, "the newest"),
        "000000000010-i0002": (False, "never committed: the save failed"),
        "000000000010-i0002-r2": (True, "not committed yet"),
        "000000000010-i0003": (True, "not committed yet"),
        "000000000020-i0001": (True, "superseded, but no current checkpoint has reached its step"),
        "000000000021-i0001": (False, "never committed, and incarnation 1 is over"),
    }


def test_outside_what_counts() -> None:
    store = MemoryStore()
    first = job(store)
    for step in (1, 2, 3):
        first.save(step)
    second = job(store, step=1)
    second.save(2)  # reaches 2, not 3
    assert folders(store) == ["000000000001-i0002", "000000000002-i0002", "000000000003-i0001"]
    second.save(3)
    assert folders(store) == ["000000000001-i0002", "000000000002-i0002", "000000000003-i0002"]


def test_what_a_fresh_start_leaves_behind_is_deleted_only_by_hand() -> None:
    store = MemoryStore()
    job(store).save(1)
    fresh = Job(store, [KeepLast(1)])
    fresh.begin_anew(fresh=True)
    fresh.save(1)
    fresh.save(2)
    later = job(store, [KeepLast(1)])
    later.save(3)
    assert folders(store) == ["000000000001-i0001", "000000000003-i0003"]
    assert decisions(store, KeepLast(1))["000000000001-i0001"] == (
        True,
        "from before a fresh start: deleted only by hand",
    )


def test_equal_steps_count_once() -> None:
    """Saved, preempted, saved at the same step, again and again: one copy, and the two steps before it."""
    store = MemoryStore()
    keep = [KeepLast(3)]
    first = job(store, keep)
    first.save(1)
    first.save(2)
    for _ in range(4):
        life = job(store, keep)
        life.save(3)
        life.save(3)
    assert folders(store) == ["000000000001-i0001", "000000000002-i0001", "000000000003-i0005-r2"]


def test_the_newest_stays_whatever_the_policies_say() -> None:
    store = MemoryStore()
    life = job(store, [KeepLast(0)])
    for step in (1, 2, 3):
        life.save(step)
    assert folders(store) == ["000000000003-i0001"]


def test_the_newest_whole_one_stays_as_well_where_the_newest_is_not_whole() -> None:
    store = MemoryStore()
    life = job(store)
    for step in (1, 2, 3):
        life.save(step)
    del store.objects[shard_key(store, "000000000003-i0001")]
    found = decisions(store, KeepLast(0))
    assert [keep for keep, _ in found.values()] == [False, True, True]


def test_the_newest_hundred_claims_stay() -> None:
    store = MemoryStore()
    life = job(store)
    life.save(1)
    for number in range(2, 131):
        store.objects[claim_key(number)] = b"torn"
    found = plan(store, KeepLast(1))
    assert found.claims == tuple(range(130 - CLAIMS_KEPT, 0, -1))


def test_a_policy_that_raises_deletes_nothing_and_fails_no_save(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()

    def broken(_: object) -> list[bool]:
        raise ZeroDivisionError("policy")

    life = job(store, [broken])
    for step in (1, 2, 3):
        life.save(step)
    assert len(folders(store)) == 3
    assert caplog.text.count("pruning failed, the next save tries again: policy") == 3


def test_a_prune_that_fails_is_logged_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    inner = MemoryStore()
    store = FaultyStore(inner)
    life = job(store, [KeepLast(1)])
    life.save(1)
    store.fail("delete", StorageAccessError("403"))
    life.save(2)
    assert "pruning failed, the next save tries again" in caplog.text
    assert len(folders(inner)) == 2
    life.save(3)
    store.assert_all_used()
    assert folders(inner) == ["000000000003-i0001"]


def test_manifests_go_first() -> None:
    objects: dict[str, bytes] = {}
    deleted: list[str] = []
    store = MemoryStore(objects, hook=lambda verb, key: deleted.append(key) if verb == "delete" else None)
    life = job(store, [KeepLast(1)])
    life.save(1)
    life.save(2)
    assert [key.rpartition("/")[2].partition("-")[0] for key in deleted] == ["manifest.json", "shard"]


@pytest.mark.parametrize("make", [MemoryStore, Disk])
def test_what_becomes_free_is_what_was_not_shared(make: type[MemoryStore]) -> None:
    """Of three that go, two share a file with one that stays, and two another one."""
    store = make()

    def stored_bytes() -> int:
        return sum(map(len, {id(data): data for data in store.objects.values()}.values()))

    life = Tuning(store)
    life.resume()
    _ = [life.save(step) for step in (1, 2, 3, 4)]
    before = stored_bytes()
    found = prune_by_hand(store, Summaries(store), [KeepLast(1)])
    assert sum(found.freed_bytes.values()) == before - stored_bytes()
    sizes = {folder: sum(files.values()) for folder, files in found.listing.folders.items()}
    shared = {str(folder): sizes[folder] - freed for folder, freed in found.freed_bytes.items()}
    still = len("still") * (make is Disk)
    assert shared == {"000000000003-i0001": 0, "000000000002-i0001": still, "000000000001-i0001": still}


def test_a_sweep_says_what_becomes_free() -> None:
    store = Disk()
    life = Tuning(store)
    life.resume()
    _ = [life.save(step) for step in (1, 2, 3)]
    _, receipt = life.write(Folder(4, 1), {})  # and it dies: a link, and a shard of its own
    after = Tuning(store)
    after.resume()
    assert after.coordinator is not None
    own, still = receipt.shards
    assert still.copied_from
    assert after.coordinator.sweep_partials() == own.size_bytes


def test_by_hand_an_empty_root_is_nothing_to_do() -> None:
    assert refuse_by_hand(Listing({}, (), frozenset()), Counting()) is None
    assert prune_by_hand(MemoryStore(), Summaries(MemoryStore()), [KeepLast(1)]).plan.decisions == ()


def test_a_full_storage_is_swept_of_dead_leftovers_before_the_first_commit() -> None:
    store = MemoryStore()
    first = job(store)
    first.save(1)
    shard = "shard-00000-of-00001-0000.safetensors"
    store.objects[f"000000000002-i0001/{shard}"] = b"12345"
    second = job(store)
    store.objects[f"000000000002-i0002/{shard}"] = b"own, under way"
    assert second.coordinator is not None
    assert second.coordinator.sweep_partials() == 5
    assert f"000000000002-i0001/{shard}" not in store.objects
    assert f"000000000002-i0002/{shard}" in store.objects
    assert folders(store) == ["000000000001-i0001"]
    second.coordinator.give_up(Folder(2, 2))
    assert second.coordinator.sweep_partials() == len(b"own, under way")


# What decides is read before anything is deleted

UNREADABLE: dict[str, Callable[[bytes], bytes]] = {
    "one bit": lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
    "cut off": lambda data: data[:-40],
    "empty": lambda data: b"",
    "another's": lambda data: data.replace(b"000000000060", b"000000000050"),
}


def two_incarnations() -> MemoryStore:
    """10 to 50 of the first, 60 of the second."""
    store = MemoryStore()
    first = job(store)
    for step in (10, 20, 30, 40, 50):
        first.save(step)
    job(store).save(60)
    return store


@pytest.mark.parametrize("how", UNREADABLE)
def test_by_hand_nothing_goes_in_favour_of_what_cannot_be_read(how: str) -> None:
    store = two_incarnations()
    key = "000000000060-i0002/manifest.json"
    store.objects[key] = UNREADABLE[how](store.objects[key])
    before = dict(store.objects)
    found = plan_by_hand(store, Summaries(store), [KeepLast(3)])
    assert not found.plan.deletions  # nothing that can be read has reached their steps
    with pytest.raises(
        UsageError, match=r"nothing was deleted: the manifest of the newest .* cannot be read.*Start the j"
    ):
        prune_by_hand(store, Summaries(store), [KeepLast(3)])
    assert store.objects == before
    after = job(store, [KeepLast(3)])
    assert after.start.restored is not None
    assert after.start.restored.folder.step == 50


@pytest.mark.parametrize("step", [20, 60])
def test_by_hand_with_one_that_cannot_be_read(step: int) -> None:
    """The newest of its incarnation: refused. One below it is passed over, as it is by a restart."""
    store = MemoryStore()
    life = job(store)
    for each in (10, 20, 30, 40, 50, 60):
        life.save(each)
    damage(store, f"{Folder(step, 1)}")
    if step == 60:
        with pytest.raises(UsageError, match="cannot be read"):
            prune_by_hand(store, Summaries(store), [KeepLast(2)])
        assert len(folders(store)) == 6
    else:
        prune_by_hand(store, Summaries(store), [KeepLast(2)])
        assert folders(store) == [str(Folder(50, 1)), str(Folder(60, 1))]


@pytest.mark.parametrize("how", ["missing", "short", "longer"])
def test_by_hand_nothing_goes_in_favour_of_one_that_lacks_shards(how: str) -> None:
    store = two_incarnations()
    key = shard_key(store, "000000000060-i0002")
    data = store.objects.pop(key)
    if how != "missing":
        store.objects[key] = data[:-1] if how == "short" else data + b"?"
    with pytest.raises(UsageError, match=r"nothing was deleted: 000000000060-i0002, .* has shards that are missing"):
        prune_by_hand(store, Summaries(store), [KeepLast(3)])
    assert len(folders(store)) == 6


def test_by_hand_the_newest_is_verified_where_that_is_asked_for() -> None:
    store = two_incarnations()
    with pytest.raises(
        UsageError, match="nothing was deleted: 000000000060-i0002, the newest checkpoint, is damaged: a b"
    ):
        prune_by_hand(store, Summaries(store), [KeepLast(1)], lambda _, folder: f"a bit of {folder}")
    assert len(folders(store)) == 6
    prune_by_hand(store, Summaries(store), [KeepLast(1)], lambda *_: None)
    assert folders(store) == ["000000000060-i0002"]


def test_by_hand_a_listing_of_claims_that_is_none_is_not_gone_by() -> None:
    class Lying(MemoryStore):
        def list(self, prefix: str = "") -> list[Entry]:
            return super().list(prefix) if not prefix else []

    store = Lying(two_incarnations().objects)
    with pytest.raises(UsageError, match="does not show claim 2"):
        prune_by_hand(store, Summaries(store), [KeepLast(1)])


def test_by_hand_beside_a_job_that_deletes() -> None:
    """A manifest that goes between the listing and its reading was not there."""
    objects = two_incarnations().objects

    def deletes(verb: str, key: str) -> None:
        if verb == "get" and key == "000000000030-i0001/manifest.json":
            objects.pop(key, None)

    store = MemoryStore(objects, hook=deletes)
    found = prune_by_hand(store, Summaries(store), [KeepLast(2)])
    assert [d.folder.step for d in found.plan.decisions if d.keep] == [50, 60]
    assert folders(store) == ["000000000050-i0001", "000000000060-i0002"]


def test_a_job_deletes_nothing_in_favour_of_a_manifest_that_went_wrong(caplog: pytest.LogCaptureFixture) -> None:
    """A storage that keeps other bytes than it was given."""
    objects: dict[str, bytes] = {}
    store = MemoryStore(objects)
    life = job(store, [KeepLast(1)])
    life.save(1)

    def spoils(verb: str, key: str) -> None:
        manifest = "000000000002-i0001/manifest.json"
        if verb == "list" and manifest in objects:
            objects[manifest] = UNREADABLE["one bit"](objects[manifest])
            store.hook = None

    store.hook = spoils
    life.save(2)
    assert "nothing is deleted: the manifest of the newest checkpoint cannot be read" in caplog.text
    assert Job(store).resume() == 1


def test_a_job_whose_claim_went_between_the_save_and_the_prune_deletes_nothing() -> None:
    store = MemoryStore()
    life = job(store, [KeepLast(1)])
    life.save(1)
    assert life.coordinator is not None
    prune = life.coordinator.prune

    def later() -> None:
        del store.objects[claim_key(1)]
        prune()

    life.coordinator.prune = later  # type: ignore[method-assign]
    life.save(2)
    assert len(folders(store)) == 2


def test_who_is_in_a_hurry_prunes_nothing() -> None:
    """The program leaves by an exception, perhaps killed within seconds."""
    store = MemoryStore()
    life = job(store, [KeepLast(1)])
    life.save(1)
    assert life.coordinator is not None
    hurry = life.coordinator.hurry
    seen: list[str] = []

    def hurries(verb: str, key: str) -> None:
        seen.append(verb)
        if (verb, key) == ("list", "pins/"):
            hurry(5.0)

    store.hook = hurries
    life.save(2)
    first, seen[:] = seen.copy(), []
    life.save(3)
    assert "delete" not in first + seen
    assert seen.count("list") == 1  # lineage/, to acknowledge
    assert len(folders(store)) == 3
