"""From receipts to a manifest: late, missing, failed, foreign and odd ones, and replies that are lost."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace
from types import SimpleNamespace

import msgspec
import pytest

from ckptflow.commit.catalog import read_manifest
from ckptflow.commit.retention import KeepLast
from ckptflow.errors import (
    CommitTimeoutError,
    CommitUnknownError,
    FencedError,
    ObjectExistsError,
    SaveFailedError,
    StorageAccessError,
    StorageFullError,
    StorageUnavailableError,
)
from ckptflow.format.failure import Failure
from ckptflow.format.layout import Folder, claim_key, receipt_name, shard_name
from ckptflow.format.manifest import (
    Receipt,
    ReceiptSlice,
    TensorRecord,
    encode,
)
from ckptflow.storage.retry import RetryingStore
from ckptflow.testing import CountingStore, FaultyStore, MemoryStore
from tests.commit.reports import FOLDER, HELD, WORLD_SIZE, claimed, coordinator, draft, receipt, report
from tests.commit.roots import folders, job
from tests.waiting import HANG_S


def test_receipts_add_up_to_a_manifest() -> None:
    store = claimed()
    report(store, receipt(2), receipt(1))
    summary = coordinator(store).commit(draft(), receipt(0))
    manifest = read_manifest(store, FOLDER)
    assert [shard.name for shard in manifest.shards] == [shard_name(w, WORLD_SIZE, 0) for w in range(WORLD_SIZE)]
    assert [(s.shard, s.start) for s in manifest.tensors[0].slices] == [(0, (0,)), (1, (8,)), (2, (16,))]
    assert summary.checkpoint.size_bytes == 24
    assert (manifest.run_id, manifest.writer_id, manifest.incarnation) == ("run", "writer", 7)


def test_late_ones_are_waited_for() -> None:
    store = claimed()
    asked = threading.Event()
    store.hook = lambda verb, key: asked.set() if (verb, key) == ("list", f"{FOLDER}/") else None

    def late() -> None:
        asked.wait(HANG_S)
        report(store, receipt(1), receipt(2))

    worker = threading.Thread(target=late)
    worker.start()
    coordinator(store).commit(draft(), receipt(0))
    worker.join()
    assert folders(store) == [str(FOLDER)]


def test_missing_ones_are_named_and_nothing_is_committed() -> None:
    store = MemoryStore()
    report(store, receipt(1))
    with pytest.raises(CommitTimeoutError, match=r"worker 2 of 3 did not report within commit_timeout_s=0.1"):
        coordinator(store, timeout_s=0.1).commit(draft(), receipt(0))
    assert folders(store) == []


def test_a_failure_receipt_ends_the_wait() -> None:
    store = MemoryStore()
    full = Failure(kind="StorageFullError", message="no space")
    report(store, msgspec.structs.replace(receipt(2), failure=full, shards=(), slices=()))
    with pytest.raises(SaveFailedError, match="worker 2 could not save: StorageFullError: no space") as caught:
        coordinator(store, timeout_s=3600.0).commit(draft(), receipt(0))
    assert not isinstance(caught.value, CommitTimeoutError)
    assert isinstance(caught.value.__cause__, StorageFullError)


@pytest.mark.parametrize(
    "foreign",
    [
        {"writer_id": "another life's"},
        {"folder": str(Folder(500, 7, 2))},
        {"folder": str(Folder(499, 7))},
        {"worker": 1},
        {"world_size": 4},
    ],
)
def test_foreign_receipts_are_refused(foreign: dict[str, object]) -> None:
    store = MemoryStore()
    report(store, receipt(1))
    key = f"{FOLDER}/{receipt_name(2, WORLD_SIZE, HELD.tag)}"
    store.objects[key] = encode(msgspec.structs.replace(receipt(2), **foreign))
    with pytest.raises(SaveFailedError, match=r"worker 2's receipt (is not of this save|cannot be used)"):
        coordinator(store).commit(draft(), receipt(0))
    assert folders(store) == []


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        (receipt(2, start=8), "do not|cover|overlap"),
        (receipt(2, start=17), "fit together"),
        (receipt(2, tensor="other"), "saved 'other', which the chief does not have"),
        (msgspec.structs.replace(receipt(2), slices=()), "fit together"),
        (msgspec.structs.replace(receipt(2), shards=receipt(1).shards), "cannot be used"),
    ],
)
def test_what_does_not_cover_every_tensor_once_is_not_committed(odd: Receipt, why: str) -> None:
    store = MemoryStore()
    report(store, receipt(1), odd)
    with pytest.raises(SaveFailedError, match=why):
        coordinator(store).commit(draft(), receipt(0))
    assert folders(store) == []


def test_a_torn_receipt_is_an_error_and_not_waited_for() -> None:
    store = MemoryStore()
    report(store, receipt(1))
    store.objects[f"{FOLDER}/{receipt_name(2, WORLD_SIZE, HELD.tag)}"] = encode(receipt(2))[:-9]
    with pytest.raises(SaveFailedError, match="worker 2's receipt cannot be used"):
        coordinator(store).commit(draft(), receipt(0))


def test_copies_that_differ_are_named(caplog: pytest.LogCaptureFixture) -> None:
    store = claimed()
    tensor = TensorRecord(name="moving_mean", dtype="uint8", shape=(8,), slices=())
    piece = ReceiptSlice(tensor="moving_mean", shard=0, offset=0, start=(0,), shape=(8,), crc32c=1)
    own = msgspec.structs.replace(receipt(0), slices=(piece,))
    same = msgspec.structs.replace(receipt(1), slices=(), shards=(), digests={"moving_mean": 1})
    other = msgspec.structs.replace(receipt(2), slices=(), shards=(), digests={"moving_mean": 2})
    report(store, same, other)
    coordinator(store).commit(replace(draft(), tensors=(tensor,)), own)
    assert read_manifest(store, FOLDER).diverged == ("moving_mean",)
    assert "differ between workers" in caplog.text


# Replies that are lost


@pytest.mark.parametrize("error", [StorageUnavailableError("lost"), ObjectExistsError("met itself")])
def test_a_manifest_whose_reply_was_lost_is_found_to_be_ours(error: Exception) -> None:
    store = FaultyStore(MemoryStore())
    life = job(store)
    store.fail("create", error, key="manifest.json", is_after=True)
    life.save(1)
    store.assert_all_used()
    assert job(store).start.restored is not None


def test_an_outcome_that_stays_unknown_is_said_to_be_and_its_folder_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inner = MemoryStore()
    store = FaultyStore(inner)
    life = job(store, [KeepLast(1)])
    life.save(1)
    now = [0.0]
    monkeypatch.setattr("ckptflow.stops.ticking.awake_s", lambda: now[0])
    pause = SimpleNamespace(sleep=lambda _: now.__setitem__(0, now[0] + 1.0))
    monkeypatch.setattr("ckptflow.commit.lineage.time", pause)
    sent: list[bytes] = []
    inner.hook = lambda verb, key: sent.append(b"") if verb == "create" and "000000000002" in key else None
    store.fail("create", StorageUnavailableError("503"), key="manifest.json", times=100)
    with pytest.raises(CommitUnknownError, match="may or may not be committed"):
        life.save(2)
    store.faults.clear()
    life.save(3)
    assert [key for key in inner.objects if key.startswith("000000000002-i0001/")] != []
    later = job(store, [KeepLast(1)])
    later.save(4)
    assert [key for key in inner.objects if key.startswith("000000000002-i0001/")] == []


def test_a_lost_reply_and_then_a_refusal_is_unknown_and_its_folder_is_left() -> None:
    """The first try landed; the credentials end before the second."""
    inner = MemoryStore()
    faulty = FaultyStore(inner)
    store = RetryingStore(faulty, first_wait_s=0.0)
    life = job(store)
    life.save(1)
    faulty.fail("create", StorageUnavailableError("reset"), key="manifest.json", is_after=True)
    faulty.fail("create", StorageAccessError("403"), key="manifest.json")
    faulty.fail("get", StorageAccessError("403"), key="manifest.json", times=3)
    with pytest.raises(CommitUnknownError, match="403"):
        life.save(2)
    faulty.faults.clear()
    faulty.fail("create", StorageAccessError("403"), key="manifest.json")
    with pytest.raises(StorageAccessError):
        life.save(3)
    faulty.fail("create", StorageAccessError("403"), key="manifest.json")
    with pytest.raises(StorageAccessError):
        life.save(4)
    assert job(MemoryStore(dict(inner.objects))).start.restored == life.summaries.get(Folder(2, 1))


def test_what_was_given_up_and_has_a_manifest_all_the_same_is_left(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a storage said of it: the manifest is asked for before its shards are deleted."""
    inner = MemoryStore()
    store = FaultyStore(inner)
    life = job(store)
    store.fail("create", StorageAccessError("403"), key="manifest.json", is_after=True)
    store.fail("get", StorageAccessError("403"), key="manifest.json")
    for step in (1, 2, 3):
        with contextlib.suppress(StorageAccessError):
            life.save(step)
        store.fail("create", StorageAccessError("403"), key=f"{Folder(step + 1, 1)}/manifest.json")
    assert "is committed, though" in caplog.text
    restored = job(MemoryStore(dict(inner.objects))).start.restored
    assert restored is not None
    assert restored.folder == Folder(1, 1)


def test_anothers_manifest_under_our_name_fences() -> None:
    store = MemoryStore()
    life = job(store)
    store.objects["000000000001-i0001/manifest.json"] = b"another's"
    with pytest.raises(FencedError, match="is there and is another's"):
        life.save(1)


def test_a_fenced_commit_is_not_acknowledged_and_deletes_nothing() -> None:
    store = MemoryStore()
    life = job(store, [KeepLast(1)])
    life.save(1)
    store.objects[claim_key(2)] = b"newer"
    before = folders(store)
    with pytest.raises(FencedError):
        life.save(2)
    assert set(before) < set(folders(store))


@pytest.mark.parametrize("is_claim_there", [True, False])
def test_whoever_claims_after_an_acknowledgement_is_met_by_the_next_save(
    is_claim_there: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """In the listing of a prune: nothing is deleted, and the save stands. By a checkpoint alone that is not known."""
    store = MemoryStore()
    life = job(store, [KeepLast(1)])
    life.save(1)
    newer = claim_key(2) if is_claim_there else Folder(9, 2).manifest_key

    def claims(verb: str, key: str) -> None:
        if (verb, key) == ("list", ""):
            store.objects[newer] = b"newer"

    store.hook = claims
    with contextlib.nullcontext() if is_claim_there else pytest.raises(FencedError):
        life.save(2)
    assert {str(Folder(1, 1)), str(Folder(2, 1))} <= set(folders(store))
    assert ("what was saved is current" in caplog.text) == is_claim_there
    if is_claim_there:
        with pytest.raises(FencedError, match="incarnation 2"):
            life.save(3)


# Cost


def test_requests_of_a_start_and_of_a_save() -> None:
    objects: dict[str, bytes] = {}
    first = job(MemoryStore(objects))
    first.save(1)
    store = CountingStore(MemoryStore(objects))
    life = job(store)
    assert store.counts["list"] <= 4
    assert store.counts["create"] == 2  # the claim, and once more, which must be refused
    assert store.counts["get"] <= 7
    assert life.start.held is not None
    life.save(2)
    store.calls.clear()
    life.save(3)
    assert store.calls == [  # nothing to prune: one list
        ("put", f"{Folder(3, 2)}/{shard_name(0, 1, 0, life.start.held.tag)}"),
        ("get", claim_key(2)),  # in a manager while the receipt is written
        ("create", f"{Folder(3, 2)}/manifest.json"),
        ("list", "lineage/"),
        ("get", claim_key(2)),
    ]
