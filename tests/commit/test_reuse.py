"""What the next checkpoint copies from: a table, real jobs against every history, and what the choice asks for."""

from __future__ import annotations

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
from ckptflow.errors import StorageUnavailableError
from ckptflow.format.layout import Folder, pin_key
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
    """Of what counts, the newest of each step, where there are two: two families, and two files."""
    _, counting = read_counting(store, Summaries(store))
    by_step = {folder.step: read_manifest(store, folder) for folder in sorted(counting.folders)}
    if len(by_step) > 1:
        assert {manifest.family for manifest in by_step.values()} == {0, 1}
        assert len({id(store.objects[f"{each.folder}/{each.shards[1].name}"]) for each in by_step.values()}) > 1


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


@pytest.mark.parametrize("is_new_life", [False, True])
def test_after_a_fallback_nothing_is_copied_that_was_not_read_since(is_new_life: bool) -> None:
    """2 and 4 share a file, which goes bad: 3 is restored, and 2, of the family of the next one, is not its source."""
    store = Disk()
    life = Tuning(store)
    life.resume()
    for step in (1, 2, 3, 4):
        life.save(step)
    shared = store.objects[f"{Folder(4, 1)}/{read_manifest(store, Folder(4, 1)).shards[1].name}"]
    bad = type(shared)(b"?" * len(shared))
    bad.version = shared.version  # type: ignore[attr-defined]
    store.objects.update({key: bad for key, data in store.objects.items() if data is shared})
    after = Tuning(store)
    assert after.resume() == 3
    if is_new_life:
        after = Tuning(store)
        assert after.resume() == 3
    assert [after.save(step).checkpoint.copied_bytes for step in (4, 5, 6)] == [0, len("still"), len("still")]
    assert Tuning(store).resume() == 6
    check_two_copies(store)


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
