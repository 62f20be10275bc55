"""Restores by several workers of which one differs: all go on alike, or all raise."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from ckptflow.commit.catalog import Summaries
from ckptflow.commit.coordinator import Coordinator
from ckptflow.commit.handing import pack
from ckptflow.commit.resume import Resume, Start
from ckptflow.errors import (
    CorruptCheckpointError,
    ObjectNotFoundError,
    PeerError,
    StateMismatchError,
    StorageError,
    StorageUnavailableError,
)
from ckptflow.format.layout import Folder, claim_key
from ckptflow.format.manifest import Manifest
from ckptflow.storage.store import Store
from ckptflow.storage.wrappers import StoreWrapper
from ckptflow.testing import CountingStore, MemoryStore
from tests.commit.roots import KEEP_ALL, damage, folders, job
from tests.peers.members import WORKERS, Member, together
from tests.protocol.lives import parse_ancestry, read_checkpoint, shard_bytes, write_checkpoint


class Panic(BaseException):
    """As a client's that is written in Rust: no Exception, and an error all the same."""


@pytest.mark.parametrize("is_reader", [False, True])
@pytest.mark.parametrize("is_used", [False, True])
def test_workers_that_do_not_share_a_storage_are_told_at_once(
    is_reader: bool, is_used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk for each of them: empty at first, later with what the chief alone has committed."""
    monkeypatch.setattr("ckptflow.commit.together._PAUSES_S", (0.0,))
    stores = [MemoryStore(url=f"/disk{worker}") for worker in range(WORKERS)]
    if is_used:
        job(stores[0]).save(1)
    if not is_used and is_reader:
        return  # there is nothing that another could lack

    def work(member: Member) -> None:
        store = stores[member.worker]

        def load(folder: Folder, manifest: Manifest, files: Mapping[str, int] | None) -> None:
            read_checkpoint(store, folder, manifest, files)

        Resume(store, member, Summaries(store), check=lambda _: None, load=load, read_only=is_reader).run(None)

    key = f"{Folder(1, 1)}/manifest.json" if is_reader else claim_key(1 + is_used)
    for error in together(work):
        assert isinstance(error, StorageError)
        assert "these workers do not see the same storage: worker 0 (/disk0 on " in str(error)
        assert f"has {key}, which is not found by workers 1 (/disk1 on " in str(error)
        assert ", 2 (/disk2 on " in str(error)


def test_of_many_that_see_another_storage_eight_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptflow.commit.together._PAUSES_S", (0.0,))
    stores = [MemoryStore(url=f"/disk{worker}") for worker in range(30)]

    def work(member: Member) -> None:
        store = stores[member.worker]
        Resume(store, member, Summaries(store), check=lambda _: None, load=lambda *_: None).run(None)

    for error in together(work, 30):
        assert isinstance(error, StorageError)
        assert "which is not found by workers 1 (/disk1 on " in str(error)
        assert ") and 21 more. Give every worker the URL" in str(error)


def test_a_shard_that_one_worker_alone_does_not_find_is_no_damage() -> None:
    """Its disk holds a part of the checkpoint: whatever it lacks, the chief has it."""
    store = root(1, 2)
    lacking = MemoryStore({key: data for key, data in store.objects.items() if "shard" not in key}, url="/disk1")

    def elsewhere(s: Store, folder: Folder, manifest: Manifest, files: Mapping[str, int] | None) -> bytes:
        return read_checkpoint(lacking, folder, manifest, files)

    raised, _ = restore(store, load=elsewhere)
    assert [type(error) for error in raised] == [StorageError] * WORKERS
    assert all("these workers do not see the same storage: worker 1 does not find" in str(error) for error in raised)


@pytest.mark.parametrize("how", ["handed on", "too large for a message", "torn on its way", "by a reduction"])
def test_a_manifest_is_read_once_and_handed_on(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = root(1, 2)
    counting = [CountingStore(store) for _ in range(WORKERS)]
    if how == "too large for a message":
        monkeypatch.setattr("ckptflow.commit.resume.pack", lambda manifest: b"")
    if how == "by a reduction":
        monkeypatch.setattr(Member, "carries_much", False)
        monkeypatch.setattr("ckptflow.commit.resume.pack", lambda manifest: pytest.fail("nothing is to be packed"))
    if how == "torn on its way":
        monkeypatch.setattr("ckptflow.commit.resume.pack", lambda manifest: pack(manifest)[:-9])
    found: list[Manifest] = []

    def work(member: Member) -> Start:
        mine = counting[member.worker]
        return Resume(
            mine, member, Summaries(mine), check=lambda manifest: found.append(manifest), load=lambda *_: None
        ).run(None)

    assert all(isinstance(start, Start) for start in together(work))
    assert all(manifest == found[0] for manifest in found)
    gets = [mine.keys("get").count(f"{Folder(2, 1)}/manifest.json") for mine in counting]
    assert gets == [1] * WORKERS if how != "handed on" else [1] + [0] * (WORKERS - 1)
    assert [mine.counts["list"] for mine in counting] == [4] + [0] * (WORKERS - 1)


def test_one_storage_under_two_urls_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    objects: dict[str, bytes] = {}
    job(MemoryStore(objects)).save(1)

    def work(member: Member) -> Start:
        store = MemoryStore(objects, url=f"/mount{member.worker}")
        return Resume(store, member, Summaries(store), check=lambda _: None, load=lambda *_: None).run(None)

    for start in together(work):
        assert isinstance(start, Start)
        assert start.restored is not None


# A whole restore in which one worker differs

Load = Callable[[Store, Folder, Manifest, Mapping[str, int] | None], bytes]


def restore(
    store: MemoryStore,
    *,
    odd: int = 1,
    load: Load = read_checkpoint,
    check: Exception | None = None,
    step: int | None = None,
) -> tuple[list[object], list[tuple[str, ...]]]:
    """Every worker's `Start` or error, and what each holds then. Worker `odd` loads by `load` or fails by `check`."""
    values: list[tuple[str, ...]] = [()] * WORKERS

    def work(member: Member) -> Start:
        mine: Load = load if member.worker == odd else read_checkpoint

        def checks(_: Manifest) -> None:
            if check is not None and member.worker == odd:
                raise check

        def loads(folder: Folder, manifest: Manifest, files: Mapping[str, int] | None) -> None:
            values[member.worker] = parse_ancestry(mine(store, folder, manifest, files))

        return Resume(store, member, Summaries(store), check=checks, load=loads).run(step)

    return together(work), values


def root(*steps: int) -> MemoryStore:
    store = MemoryStore()
    life = job(store)
    for step in steps:
        life.save(step)
    return store


def test_all_restore_the_same_and_hold_one_claim() -> None:
    store = root(1, 2)
    starts, values = restore(store)
    assert all(isinstance(start, Start) for start in starts)
    helds = [start.held for start in starts if isinstance(start, Start)]
    assert {held.number for held in helds if held} == {2}
    assert len({held.writer_id for held in helds if held}) == 1
    assert values == [("000000000001-i0001", "000000000002-i0001")] * WORKERS


def test_damage_that_the_chief_sees_too_falls_back_together() -> None:
    store = root(1, 2)
    damage(store, "000000000002-i0001", "shard")
    starts, values = restore(store)
    assert values == [("000000000001-i0001",)] * WORKERS
    assert [start.save_again for start in starts if isinstance(start, Start)] == [True] * WORKERS


def test_nothing_is_completed_before_all_have_loaded() -> None:
    """What an older checkpoint may lack is assigned last: not by those either who read their part of it whole."""
    store = root(1, 2)
    completed: list[list[str]] = [[] for _ in range(WORKERS)]

    def work(member: Member) -> Start:
        at: list[str] = []

        def load(folder: Folder, manifest: Manifest, files: Mapping[str, int] | None) -> None:
            at.append(str(folder))
            if folder.step == 2 and member.worker == 0:
                raise CorruptCheckpointError("damaged, in the part that this one reads")

        def complete() -> None:
            completed[member.worker].append(at[-1])

        return Resume(store, member, Summaries(store), check=lambda _: None, load=load, complete=complete).run(None)

    starts = together(work)
    assert all(isinstance(start, Start) for start in starts)
    assert completed == [["000000000001-i0001"]] * WORKERS


def test_damage_that_one_worker_alone_sees_gives_nothing_up() -> None:
    def bad_disk(store: Store, folder: Folder, manifest: Manifest, files: Mapping[str, int] | None) -> bytes:
        raise CorruptCheckpointError("one worker's memory")

    raised, _ = restore(root(1, 2), load=bad_disk)
    assert [type(error) for error in raised] == [CorruptCheckpointError] * WORKERS
    assert all("nothing is given up" in str(error) for error in raised)


class Lost(StoreWrapper):
    """Lists the shards of step 2, and has none of them for who asks whether they are there."""

    def get(self, key: str, into: memoryview, start: int = 0) -> int:
        if len(into) == 1 and key.startswith("000000000002-"):
            raise ObjectNotFoundError("404")
        return super().get(key, into, start)


@pytest.mark.parametrize(
    "met",
    [{1: "wrong"}, {1: "missing"}, {1: "missing", 2: "wrong"}],
    ids=["wrong", "listed, not found", "one missing, another wrong"],
)
def test_damage_in_what_only_another_worker_reads_is_looked_for_by_the_chief(met: dict[int, str]) -> None:
    """As in its own entries: else no restart would ever get past it."""
    store = root(1, 2)
    values: list[tuple[str, ...]] = [()] * WORKERS

    def work(member: Member) -> Start:
        def load(folder: Folder, manifest: Manifest, files: Mapping[str, int] | None) -> None:
            values[member.worker] = parse_ancestry(read_checkpoint(store, folder, manifest, files))
            if member.worker in met and folder.step == 2:
                is_missing = met[member.worker] == "missing"
                raise CorruptCheckpointError("its own") from (ObjectNotFoundError("404") if is_missing else None)

        def verify(folder: Folder, manifest: Manifest) -> str:
            assert member.is_chief
            return "000001.shard: a checksum" if folder.step == 2 else ""

        seen = Lost(store) if met == {1: "missing"} else store
        return Resume(seen, member, Summaries(seen), check=lambda _: None, load=load, verify=verify).run(None)

    starts = together(work)
    assert [isinstance(start, Start) and start.reason for start in starts] == ["damage"] * WORKERS
    assert values == [("000000000001-i0001",)] * WORKERS


@pytest.mark.parametrize("error", [StorageUnavailableError("503"), KeyError("a bug"), MemoryError(), Panic()])
def test_whatever_one_worker_raises_stops_all(error: BaseException) -> None:
    def fails(store: Store, folder: Folder, manifest: Manifest, files: Mapping[str, int] | None) -> bytes:
        raise error

    raised, _ = restore(root(1, 2), load=fails, odd=2)
    assert [type(other) for other in raised] == [PeerError, PeerError, type(error)]


def test_a_state_that_fits_on_all_but_one_costs_no_claim() -> None:
    store = root(1)
    raised, _ = restore(store, check=StateMismatchError("shapes differ"))
    assert [type(error) for error in raised] == [PeerError, StateMismatchError, PeerError]
    assert [key for key in store.objects if key.startswith("lineage/")] == ["lineage/000001.json"]


def test_what_is_gone_for_one_worker_is_looked_for_again_by_all() -> None:
    store = root(1, 2)

    def pruned_meanwhile(s: Store, folder: Folder, manifest: Manifest, files: Mapping[str, int] | None) -> bytes:
        for key in [key for key in store.objects if key.startswith("000000000002-i0001/")]:
            store.objects.pop(key, None)
        return read_checkpoint(s, folder, manifest, files)

    _, values = restore(store, load=pruned_meanwhile)
    assert values == [("000000000001-i0001",)] * WORKERS


def test_a_rollback_by_all_is_saved_again_by_the_chief() -> None:
    store = root(1, 2)
    starts, _ = restore(store, step=1)
    chief = starts[0]
    assert isinstance(chief, Start)
    assert chief.reason == "rollback"
    coordinator = Coordinator(store, chief, Summaries(store), KEEP_ALL, commit_timeout_s=60.0)
    draft, receipt = write_checkpoint(store, chief, Folder(1, 2), shard_bytes(("000000000001-i0002",)))
    coordinator.commit(draft, receipt, prune=False)
    assert folders(store)[1] == "000000000001-i0002"
    assert restore(store)[1] == [("000000000001-i0002",)] * WORKERS
