"""What the next checkpoint copies from: a table, real jobs against every history, and what the choice asks for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptflow.commit.catalog import Checkpoint, Summaries, read_manifest
from ckptflow.commit.copying import copy_checkpoint
from ckptflow.commit.finding import read_counting
from ckptflow.commit.retention import KeepBest, KeepEvery, KeepLast, Policy
from ckptflow.commit.reuse import Existing, Reuse, choose_reuse
from ckptflow.errors import CommitUnknownError, StorageAccessError, StorageUnavailableError
from ckptflow.events import Pruned
from ckptflow.format.layout import Folder, pin_key
from ckptflow.storage.store import Store
from ckptflow.testing import CountingStore, Fault, FaultyStore, MemoryStore
from tests.commit.roots import Disk, Tuning, folders

ONE, TWO, THREE = Folder(1, 1), Folder(2, 1), Folder(3, 1)


@pytest.mark.parametrize(
    ("families", "kept", "expected"),
    [
        ((), (), Reuse(0, None)),
        ((0,), (), Reuse(0, "1")),  # it goes: one family
        ((1,), (), Reuse(1, "1")),
        ((0,), (ONE,), Reuse(1, None)),  # it stays: the second family begins
        ((0, 1), (TWO,), Reuse(0, "1")),
        ((0, 1), (ONE,), Reuse(1, "2")),
        ((0, 1, 0), (ONE, TWO), Reuse(0, "3")),
        ((0, 0, 0), (ONE, THREE), Reuse(1, None)),
        ((0, 1, 1), (ONE, TWO, THREE), Reuse(0, "1")),
        ((0, 1, -1), (TWO,), Reuse(0, "1")),
        ((0, -1, 1), (ONE,), Reuse(1, "3")),
        ((0, -1, 0), (THREE,), Reuse(1, None)),
    ],
)
def test_on_a_disk_the_next_is_of_another_family_than_the_newest_that_stays(
    families: Sequence[int], kept: Sequence[Folder], expected: Reuse
) -> None:
    """-1: one of family 1 that is not to be copied from."""
    numbered = zip((ONE, TWO, THREE), families, strict=False)
    existing = [Existing(folder, abs(family), is_source=family >= 0) for folder, family in numbered]
    found = choose_reuse(existing, kept, is_shared=True)
    source = f"00000000000{expected.source}-i0001" if expected.source else None
    assert (found.family, found.source) == (expected.family, source)
    assert found.reason


POLICIES: Sequence[Sequence[Policy]] = [
    [],
    [KeepLast(1)],
    [KeepLast(2)],
    [KeepLast(1), KeepBest("loss")],
    [KeepBest("loss", 2)],
    [KeepEvery(steps=4)],
    [KeepLast(2), KeepEvery(steps=3), KeepBest("loss", mode="max")],
]
losses = st.sampled_from([None, 0.1, 0.2, 0.3])
acts = st.one_of(
    st.tuples(st.just("save"), st.sampled_from([0, 1, 1, 1, 3]), losses),
    st.tuples(st.just("save, and do not prune"), st.just(1), losses),
    st.tuples(st.just("restart"), st.integers(0, len(POLICIES) - 1), st.none()),
    st.tuples(st.just("go back"), st.integers(0, 9), st.none()),
    st.tuples(st.sampled_from(["pin", "unpin", "delete by hand"]), st.integers(0, 9), st.none()),
)


@given(policies=st.sampled_from(POLICIES), history=st.lists(acts, max_size=14))
def test_two_that_stay_never_share_all_and_the_source_is_there(
    policies: Sequence[Policy], history: list[tuple[str, int, Any]]
) -> None:
    store = Disk()
    life, step = _begun(store, policies, None)
    for what, number, loss in [*history, ("save", 1, None), ("save", 1, None)]:
        there = folders(store)
        picked = Folder(*_numbers(there[number % len(there)])) if there else None
        match what:
            case "save" | "save, and do not prune":
                step += number
                life.save(step, metrics={} if loss is None else {"loss": loss}, prune=what == "save")
                if what == "save":
                    check_two_copies(store)
            case "restart":
                policies = POLICIES[number]
                life, step = _begun(store, policies, None)
            case "go back" if picked:
                life, step = _begun(store, policies, picked.step)
            case "pin" if picked:
                store.objects[pin_key(picked)] = b""
            case "unpin" if picked:
                store.objects.pop(pin_key(picked), None)
            case "delete by hand" if picked and len(there) > 2 and str(picked) != there[-1]:
                for key in [key for key in store.objects if key.startswith(f"{picked}/")]:
                    del store.objects[key]
                life, step = _begun(store, policies, None)


def _numbers(folder: str) -> tuple[int, int, int]:
    step, incarnation, *call = folder.split("-")
    return int(step), int(incarnation[1:]), int(call[0][1:]) if call else 1


class _Checked(Tuning):
    def write(self, folder: Folder, metrics: Any) -> Any:
        draft, receipt = super().write(folder, metrics)
        assert self.coordinator is not None
        reuse = self.coordinator.choose_reuse(folder.step, metrics)
        assert reuse.source is None or reuse.source in folders(self.store)  # type: ignore[arg-type]
        assert (receipt.shards[1].copied_from is not None) == (reuse.source is not None)
        return draft, receipt


def _begun(store: Disk, policies: Sequence[Policy], step: int | None) -> tuple[Tuning, int]:
    life = _Checked(store, policies)
    restored = life.resume(step)
    return life, restored or 0


def check_two_copies(store: Disk) -> None:
    """Of what counts, the newest of each step, where there are two: two families, and two files; the newest and the one
    before it have not the same, unless a pin, which decides last, keeps that one."""
    _, counting = read_counting(store, Summaries(store))
    by_step = {folder.step: read_manifest(store, folder) for folder in sorted(counting.folders)}
    if len(by_step) > 1:
        assert {manifest.family for manifest in by_step.values()} == {0, 1}
        files = [id(store.objects[still_key(store, by_step[step].folder)]) for step in sorted(by_step)]
        assert len(set(files)) > 1
        if not any(key.startswith("pins/") for key in store.objects):
            assert files[-1] != files[-2]


def test_on_an_object_store_the_newest_and_nothing_is_asked_for() -> None:
    store = CountingStore(MemoryStore())
    life = Tuning(store, [KeepLast(2)])
    life.resume()
    for step in (1, 2, 3):
        life.save(step)
    later = Tuning(store, [KeepLast(2)])
    later.resume()
    store.calls.clear()
    assert later.coordinator is not None
    found = later.coordinator.choose_reuse(4, {})
    assert (found.family, found.source) == (0, "000000000003-i0001")
    assert not store.calls
    saved = later.save(4)
    assert saved.checkpoint.copied_bytes == len(b"still")
    assert read_manifest(store, saved.folder).shards[1].copied_from == "000000000003-i0001/" + "".join(
        shard.name for shard in read_manifest(store, Folder(3, 1)).shards[1:]
    )


def test_what_was_deleted_by_hand_does_not_count_as_staying_for_long() -> None:
    store = Disk()
    life = Tuning(store, [KeepBest("loss")])
    life.resume()
    for step, loss in ((1, 0.1), (2, 0.2)):
        life.save(step, metrics={"loss": loss})
    for key in [key for key in store.objects if key.startswith("000000000001-")]:
        del store.objects[key]
    life.save(3, metrics={"loss": 0.3})  # which thinks that 1 stays
    life.save(4, metrics={"loss": 0.4})
    assert folders(store) == ["000000000002-i0001", "000000000004-i0001"]
    check_two_copies(store)


def begun(store: Store, policies: Sequence[Policy]) -> Tuning:
    life = Tuning(store, policies)
    life.resume()
    return life


def still_key(store: Disk, folder: Folder | str) -> str:
    """The key of the shard that never changes."""
    (key,) = (key for key in store.objects if key.startswith(f"{folder}/shard-") and "-0001-" in key)
    return key


def go_bad(store: Disk, key: str) -> None:
    """One file gets other bytes, under all its names and with the same version."""
    shared = store.objects[key]
    bad = type(shared)(b"?" * len(shared))
    bad.version = shared.version  # type: ignore[attr-defined]
    store.objects.update({key: bad for key, data in store.objects.items() if data is shared})


@pytest.mark.parametrize("is_new_life", [False, True])
def test_after_a_fallback_nothing_is_copied_that_was_not_read_since(is_new_life: bool) -> None:
    """2 and 4 share a file, which goes bad: 3 is restored, and 2, of the family of the next one, is not its source."""
    store = Disk()
    life = Tuning(store)
    life.resume()
    for step in (1, 2, 3, 4):
        life.save(step)
    go_bad(store, still_key(store, Folder(4, 1)))
    after = Tuning(store)
    assert after.resume() == 3
    if is_new_life:
        after = Tuning(store)
        assert after.resume() == 3
    assert [after.save(step).checkpoint.copied_bytes for step in (4, 5, 6)] == [0, len("still"), len("still")]
    assert Tuning(store).resume() == 6
    check_two_copies(store)


def test_a_fallback_is_remembered_once_all_of_its_life_is_pruned() -> None:
    """2, 4 and 5 share a file, which goes bad: 3 is restored. The life after that one, of which nothing is left to be
    asked, does not copy from 2 either."""
    store = Disk()
    policies: list[Policy] = [KeepLast(1), KeepBest("loss", 2)]
    first = begun(store, policies)
    for step, loss in ((2, 0.1), (3, 0.2), (4, 0.9), (5, 0.9)):
        first.save(step, metrics={"loss": loss})
    go_bad(store, still_key(store, Folder(5, 1)))
    second = begun(store, policies)
    assert (second.start.restored and second.start.restored.folder.step, second.start.reason) == (3, "damage")
    for step in (4, 5):
        second.save(step, metrics={"loss": 0.9})
    third = begun(store, policies)
    third.save(6, metrics={"loss": 0.15})
    assert folders(store) == [str(Folder(2, 1)), str(Folder(6, 3))]
    third.save(7, metrics={"loss": 0.9})
    assert Tuning(store).resume() == 7


def test_a_restart_among_many_reads_few_and_writes_nothing_whole() -> None:
    store = Disk()
    policies: list[Policy] = [KeepLast(1), KeepEvery(steps=2)]
    life = begun(store, policies)
    for first in (1, 14, 27, 40):
        for step in range(first, first + 13):
            life.save(step)
        counting = CountingStore(store)
        life = begun(counting, policies)
        counting.calls.clear()
        assert life.coordinator is not None
        assert life.coordinator.choose_reuse(first + 13, {}).source is not None
        assert len(counting.keys("get")) <= 8
        check_two_copies(store)
    assert len({id(store.objects[still_key(store, folder)]) for folder in folders(store)}) == 2


def test_one_of_ours_that_landed_without_a_reply_is_chosen_by() -> None:
    """10 and 20 are of both families; 30, the best from now on, is of that of 20, and thought to be lost: 40 is not."""
    store = Disk()
    faulty = FaultyStore(store)
    life = begun(faulty, [KeepLast(1), KeepBest("loss")])
    for step, loss in ((10, 0.2), (20, 0.3)):
        life.save(step, metrics={"loss": loss})
    faulty.fail("create", StorageUnavailableError("lost"), key="manifest", is_after=True)
    faulty.fail("get", StorageUnavailableError("lost"), key="manifest")
    faulty.fail("create", StorageAccessError("refused"), key="manifest")
    with pytest.raises(CommitUnknownError):
        life.save(30, metrics={"loss": 0.1})
    for step in (40, 50, 60):
        life.save(step, metrics={"loss": 0.5})
        assert folders(store) == [str(Folder(30, 1)), str(Folder(step, 1))]
        check_two_copies(store)


def test_a_prune_says_what_has_become_free() -> None:
    life = begun(Disk(), [KeepLast(1)])
    for step in (1, 2):
        life.save(step)
    (pruned,) = (event for event in life.told if isinstance(event, Pruned))
    assert pruned.size_bytes - pruned.freed_bytes == len("still")


@pytest.mark.parametrize(("policies", "is_asked"), [([KeepLast(1)], True), ([KeepLast(2)], False)])
def test_pins_are_listed_where_they_decide(policies: Sequence[Policy], is_asked: bool) -> None:
    store = CountingStore(Disk())
    life = begun(store, policies)
    for step in (1, 2, 3):
        life.save(step)
    store.calls.clear()
    assert life.coordinator is not None
    life.coordinator.choose_reuse(4, {})
    assert store.calls == ([("list", "pins/")] if is_asked else [])


def test_a_pin_after_a_save_decides_at_the_next() -> None:
    store = Disk()
    life = begun(store, [KeepLast(1)])
    for step in (1, 2, 3, 4):
        life.save(step)
    store.objects[pin_key(Folder(4, 1))] = b""
    life.save(5)
    assert folders(store) == [str(Folder(4, 1)), str(Folder(5, 1))]
    check_two_copies(store)


def test_where_pruning_fails_the_save_after_is_another_copy(caplog: pytest.LogCaptureFixture) -> None:
    class Guarded(Disk):
        is_guarded = True

        def delete(self, keys: Sequence[str]) -> None:
            if self.is_guarded:
                raise StorageAccessError("refused")
            super().delete(keys)

    store = Guarded()
    life = begun(store, [KeepLast(1)])
    for step in (1, 2, 3, 4):
        life.save(step)
    assert len(folders(store)) == 4
    assert caplog.text.count("pruning failed") == 3
    files = [id(store.objects[still_key(store, folder)]) for folder in folders(store)]
    assert [file == files[0] for file in files] == [True, True, False, True]
    store.is_guarded = False
    copied = [life.save(step).checkpoint.copied_bytes for step in (5, 6)]
    assert copied == [len("still")] * 2
    assert folders(store) == [str(Folder(6, 1))]


def test_it_is_said_once_that_what_does_not_change_is_written_again(caplog: pytest.LogCaptureFixture) -> None:
    """`KeepLast(1)` and one best: each better one, and then a worse one, leaves one family alone."""
    caplog.set_level(logging.INFO, "ckptflow")
    life = begun(Disk(), [KeepLast(1), KeepBest("loss")])
    copied = [
        life.save(step, metrics={"loss": loss}).checkpoint.copied_bytes > 0
        for step, loss in enumerate((0.9, 0.8, 0.9, 0.7, 0.9, 0.6, 0.9, 0.9), 1)
    ]
    assert copied == [False, True, False, True, False, True, False, True]
    assert caplog.text.count("KeepLast(2)") == 1


@pytest.mark.parametrize("make", [Disk, MemoryStore])
def test_after_a_copy_to_another_storage_versions_mean_nothing(make: type[MemoryStore]) -> None:
    """Manifests are copied byte for byte: what they say of versions is not so there, and is written anew once."""
    here, there = make(), make()
    first = Tuning(here)
    first.resume()
    for step in (1, 2):
        first.save(step)
    for folder in (ONE, TWO):
        copy_checkpoint(here, there, folder, lambda _: None)
    later = Tuning(there)
    assert later.resume() == 2
    copied = [later.save(step).checkpoint.copied_bytes for step in (3, 4, 5, 6)]
    anew = 2 if make is Disk else 1  # each family
    assert copied == [0] * anew + [len("still")] * (4 - anew)
    assert Tuning(there).resume() == 6
    check_two_copies(there) if isinstance(there, Disk) else None


def raises(checkpoints: Sequence[Checkpoint]) -> NoReturn:
    raise SystemExit


@pytest.mark.parametrize("policy", [raises, lambda _: []])
def test_a_policy_that_cannot_be_asked_fails_no_save(policy: Policy, caplog: pytest.LogCaptureFixture) -> None:
    life = Tuning(Disk(), [policy])
    life.resume()
    for step in (1, 2):
        life.save(step)
    assert "nothing is copied into step 2" in caplog.text


def test_a_lineage_that_cannot_be_read_fails_no_save(caplog: pytest.LogCaptureFixture) -> None:
    store = Disk()
    first = Tuning(store)
    first.resume()
    for step in (1, 2):
        first.save(step)
    faulty = FaultyStore(store)
    later = Tuning(faulty)
    later.resume()
    faulty.faults.append(Fault("get", StorageUnavailableError("no answer")))
    assert later.save(3).checkpoint.copied_bytes == 0
    assert "no answer" in caplog.text


def test_where_nothing_is_copied_there_is_one_family() -> None:
    class Plain(MemoryStore):
        can_copy = False

    life = Tuning(Plain())
    life.resume()
    for step in (1, 2):
        life.save(step)
    assert life.coordinator is not None
    assert life.coordinator.choose_reuse(3, {}) == Reuse(reason="the storage cannot copy")
