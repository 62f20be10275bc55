"""From receipts to a manifest: late, missing, failed, foreign and odd ones, and replies that are lost."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from dataclasses import replace

import crc32c
import msgspec
import pytest

from ckptflow.commit.assembly import Draft
from ckptflow.commit.catalog import Summaries, read_manifest
from ckptflow.commit.coordinator import Coordinator
from ckptflow.commit.lineage import Held
from ckptflow.commit.resume import Start
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
from ckptflow.format import manifest
from ckptflow.format.failure import Failure
from ckptflow.format.layout import Folder, claim_key, receipt_name, shard_name
from ckptflow.format.manifest import (
    LINE_END,
    Claim,
    Digests,
    Receipt,
    ReceiptSlice,
    ShardRecord,
    TensorRecord,
    digest_of,
    encode,
    encode_receipt,
)
from ckptflow.storage.retry import RetryingStore
from ckptflow.storage.store import Store
from ckptflow.testing import CountingStore, FaultyStore, MemoryStore
from tests.commit.roots import folders, job
from tests.waiting import HANG_S

HELD = Held(7, "run", "writer")
FOLDER = Folder(500, 7)
WORLD_SIZE = 3
PART = b"12345678"


def claimed() -> MemoryStore:
    """A root that `HELD` holds."""
    claim = Claim(
        number=HELD.number, run_id=HELD.run_id, writer_id=HELD.writer_id, reason="start", host="", pid=1, created_at=""
    )
    return MemoryStore({claim_key(HELD.number): encode(claim)})


def coordinator(store: Store, *, timeout_s: float = 5.0) -> Coordinator:
    return Coordinator(store, Start(HELD), Summaries(store), [KeepLast(1)], commit_timeout_s=timeout_s)


def receipt(worker: int, *, folder: Folder = FOLDER, start: int | None = None, tensor: str = "value") -> Receipt:
    """Worker `worker` has written its third of the one tensor."""
    checksum = crc32c.crc32c(PART)
    first = worker * len(PART) if start is None else start
    return Receipt(
        folder=str(folder),
        writer_id=HELD.writer_id,
        worker=worker,
        world_size=WORLD_SIZE,
        shards=(ShardRecord(name=shard_name(worker, WORLD_SIZE, 0), size_bytes=len(PART), crc32c=checksum),),
        slices=(ReceiptSlice(tensor=tensor, shard=0, offset=0, start=(first,), shape=(len(PART),), crc32c=checksum),),
    )


def draft(folder: Folder = FOLDER) -> Draft:
    tensor = TensorRecord(name="value", dtype="uint8", shape=(WORLD_SIZE * len(PART),), slices=())
    return Draft(folder=folder, world_size=WORLD_SIZE, tensors=(tensor,))


def report(store: MemoryStore, *receipts: Receipt) -> None:
    for r in receipts:
        store.objects[f"{FOLDER}/{receipt_name(r.worker, WORLD_SIZE, HELD.tag)}"] = encode(r)


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
    with pytest.raises(CommitTimeoutError, match=r"worker\(s\) 2 of 3 did not report within commit_timeout_s=0.1"):
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


def with_second_line(number: int, alike: dict[str, int]) -> tuple[Receipt, bytes]:
    """The receipt of a worker that holds this, and its file."""
    told = msgspec.structs.replace(receipt(number), digest=digest_of(alike))
    return told, encode_receipt(told, alike)


def test_of_copies_that_must_be_alike_the_second_line_is_read_only_where_they_differ() -> None:
    same = {f"weight{i}": i for i in range(9)}
    inner = claimed()
    own, _ = with_second_line(0, same)
    for worker, alike in ((1, same), (2, same | {"weight3": 77, "weight5": 77})):
        inner.objects[FOLDER.key(receipt_name(worker, WORLD_SIZE, HELD.tag))] = with_second_line(worker, alike)[1]
    store = CountingStore(inner)
    coordinator(store).commit(draft(), own, alike=same)
    assert read_manifest(store, FOLDER).diverged == ("weight3", "weight5")
    asked = Counter(key for key in store.keys("get") if "receipt" in key)
    assert asked == {FOLDER.key(receipt_name(worker, WORLD_SIZE, HELD.tag)): worker for worker in (1, 2)}


def test_a_commit_in_a_hurry_does_not_read_what_differs() -> None:
    """It may be hundreds of megabytes of each worker."""
    store = claimed()
    for worker in (1, 2):
        store.objects[FOLDER.key(receipt_name(worker, WORLD_SIZE, HELD.tag))] = with_second_line(worker, {"a": 7})[1]
    saving = coordinator(store)
    saving.hurry(0.0)
    with pytest.raises(CommitTimeoutError, match=r"of whom 2 do not hold what.* that an error has left"):
        saving.commit(draft(), with_second_line(0, {"a": 1})[0], alike={"a": 1})
    assert folders(store) == []


def test_a_receipt_whose_lines_are_too_large_together_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first line alone could be read, and what differs could not."""
    told, data = with_second_line(1, {"weight": 7})
    monkeypatch.setitem(manifest._MAX_BYTES, Receipt, len(data) - 1)
    with pytest.raises(ValueError, match="a receipt has at most"):
        encode_receipt(told, {"weight": 7})


def test_what_a_tensor_was_written_as_is_compared_too() -> None:
    """Worker 1 wrote all of it, and holds what it wrote."""
    tensor = TensorRecord(name="value", dtype="uint8", shape=(8,), slices=())
    store = claimed()
    for worker in (1, 2):
        told, _ = with_second_line(worker, {"value": 1})
        parts = receipt(1, start=0) if worker == 1 else msgspec.structs.replace(receipt(2), shards=(), slices=())
        report(store, msgspec.structs.replace(parts, digest=told.digest))
    own = msgspec.structs.replace(with_second_line(0, {"value": 1})[0], shards=(), slices=())
    with pytest.raises(SaveFailedError, match="different values of value"):
        coordinator(store).commit(Draft(FOLDER, WORLD_SIZE, (tensor,)), own, alike={"value": 1})


@pytest.mark.parametrize("second", [b"", encode(Digests(digests={"weight0": 8})), b"no record"])
def test_a_second_line_that_is_not_what_the_digest_is_of_is_refused(second: bytes) -> None:
    store = claimed()
    told, _ = with_second_line(2, {"weight0": 7})
    report(store, receipt(1))
    store.objects[FOLDER.key(receipt_name(2, WORLD_SIZE, HELD.tag))] = LINE_END.join((encode(told), second))
    with pytest.raises(SaveFailedError, match="worker 2's digests cannot be used"):
        coordinator(store).commit(draft(), receipt(0))
    assert folders(store) == []


def test_each_of_many_receipts_is_read_once_and_listings_find_them() -> None:
    """The rest by name, once they are no more than a listing has pages."""
    world_size = 40
    empty = msgspec.structs.replace(receipt(1), shards=(), slices=(), world_size=world_size)
    inner = claimed()
    store = CountingStore(inner)
    keys = [FOLDER.key(receipt_name(worker, world_size, HELD.tag)) for worker in range(world_size)]
    waves = iter([range(1, 20), (), range(20, 39), (39,)])

    def write(verb: str, key: str) -> None:
        if (verb == "list" and key == f"{FOLDER}/") or (verb, key) == ("get", keys[39]):
            for worker in next(waves, ()):
                inner.objects[keys[worker]] = encode(msgspec.structs.replace(empty, worker=worker))

    inner.hook = write
    own = msgspec.structs.replace(empty, worker=0)
    coordinator(store).commit(Draft(FOLDER, world_size, ()), own)
    assert store.keys("list")[:3] == [f"{FOLDER}/"] * 3
    gets = Counter(key for key in store.keys("get") if key in keys)
    assert gets == dict.fromkeys(keys[1:], 1)


@pytest.mark.parametrize("gives_up_by", ["the deadline", "a worker that is lost"])
def test_a_listing_that_lacks_receipts_gives_no_save_up(gives_up_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker may have ended as soon as it had reported."""
    store = claimed()
    report(store, receipt(1), receipt(2))
    shown = store.list
    monkeypatch.setattr(store, "list", lambda prefix="": [] if prefix == f"{FOLDER}/" else shown(prefix))
    saving = coordinator(store, timeout_s=0.1)
    if gives_up_by != "the deadline":
        monkeypatch.setattr("ckptflow.commit.receipts.ASK_EVERY_S", 0.0)
        lost = {1: "has ended", 2: "has ended"}
        saving = Coordinator(
            store, Start(HELD), Summaries(store), [], commit_timeout_s=HANG_S, begin_wait=lambda: lambda workers: lost
        )
    saving.commit(draft(), receipt(0), prune=False)
    assert folders(store) == [str(FOLDER)]


def test_on_a_disk_few_are_asked_for_by_name_and_a_folder_of_many_files_is_listed_once() -> None:
    """A listing asks for the size of each file."""
    world_size = 40
    empty = msgspec.structs.replace(receipt(1), shards=(), slices=(), world_size=world_size)
    inner = claimed()
    inner.is_object_store = False
    keys = [FOLDER.key(receipt_name(worker, world_size, HELD.tag)) for worker in range(world_size)]
    for worker in range(world_size):
        inner.objects[FOLDER.key(shard_name(worker, world_size, 0, HELD.tag))] = PART

    def write(verb: str, key: str) -> None:
        for worker in range(1, world_size) if key == keys[39] else ():
            inner.objects.setdefault(keys[worker], encode(msgspec.structs.replace(empty, worker=worker)))

    inner.hook = write
    store = CountingStore(inner)
    coordinator(store).commit(Draft(FOLDER, world_size, ()), msgspec.structs.replace(empty, worker=0), prune=False)
    assert store.keys("list").count(f"{FOLDER}/") == 1
    inner.hook = None
    few = CountingStore(inner)
    inner.objects = dict(claimed().objects)
    report(inner, receipt(1), receipt(2))
    coordinator(few).commit(draft(), receipt(0), prune=False)
    assert few.keys("list").count(f"{FOLDER}/") == 0


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
    monkeypatch.setattr("ckptflow.commit.lineage.time.monotonic", lambda: now[0])
    monkeypatch.setattr("ckptflow.commit.lineage.time.sleep", lambda seconds: now.__setitem__(0, now[0] + 1.0))
    sent: list[bytes] = []
    inner.hook = lambda verb, key: sent.append(b"") if verb == "create" and "000000000002" in key else None
    store.fail("create", StorageUnavailableError("503"), key="manifest.json", times=100)
    with pytest.raises(CommitUnknownError, match="may or may not count"):
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
    assert ("what was saved counts" in caplog.text) == is_claim_there
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
