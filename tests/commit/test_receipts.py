"""How receipts are found, each read once, and what differs between their workers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import msgspec
import pytest

from ckptflow.commit.assembly import Draft
from ckptflow.commit.catalog import Summaries, read_manifest
from ckptflow.commit.coordinator import Coordinator
from ckptflow.commit.receipts import Receipts
from ckptflow.commit.resume import Start
from ckptflow.errors import CommitTimeoutError, SaveFailedError
from ckptflow.format.layout import receipt_name, shard_name
from ckptflow.format.manifest import (
    LINE_END,
    Digests,
    Receipt,
    TensorRecord,
    digest_of,
    encode,
    encode_receipt,
)
from ckptflow.testing import CountingStore
from tests.commit.reports import FOLDER, HELD, PART, WORLD_SIZE, claimed, coordinator, draft, receipt, report
from tests.commit.roots import Disk, folders
from tests.waiting import HANG_S


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


def test_a_commit_in_a_hurry_reads_no_more_of_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be hundreds of megabytes of each worker. The first are read: few do not make a save fail."""
    monkeypatch.setattr("ckptflow.commit.receipts.READERS", 1)
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
    monkeypatch.setattr("ckptflow.format.manifest.MAX_RECEIPT_BYTES", len(data) - 1)
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


class Clock:
    """Goes on while somebody sleeps."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, duration_s: float) -> None:
        self.now += duration_s


def test_who_is_waited_for_is_asked_every_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a disk is looked at: each question takes time from all threads of the process."""
    clock = Clock()
    monkeypatch.setattr("ckptflow.commit.receipts.time", clock)
    monkeypatch.setattr("ckptflow.commit.receipts.awake_s", clock.monotonic)
    asked: list[float] = []

    def find_lost(workers: Sequence[int]) -> dict[int, str]:
        asked.append(clock.now)
        return {}

    receipts = Receipts(Disk(), HELD, 60.0, lambda: find_lost, lambda folder: None)
    with pytest.raises(CommitTimeoutError):
        receipts.collect(draft(), 60.0, lambda: math.inf)
    assert len(asked) > 20
    assert all(later - earlier >= 2.0 for earlier, later in pairwise(asked))


@pytest.mark.parametrize("gives_up_by", ["the deadline", "workers that are lost"])
def test_of_many_that_do_not_report_eight_are_named(gives_up_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptflow.commit.receipts.ASK_EVERY_S", 0.0)
    is_lost = gives_up_by == "workers that are lost"

    def find_lost(workers: Sequence[int]) -> dict[int, str]:
        return {worker: f"has ended (host{worker}:1)" for worker in workers if is_lost}

    receipts = Receipts(Disk(), HELD, 60.0, lambda: find_lost, lambda folder: None)
    with pytest.raises(SaveFailedError if is_lost else CommitTimeoutError) as raised:
        receipts.collect(Draft(FOLDER, 1000, ()), math.inf if is_lost else 0.0, lambda: math.inf)
    named = ", worker 8 has ended (host8:1) and 991 more and did" if is_lost else " 7, 8 and 991 more of 1000 did"
    assert f"{named} not report" in str(raised.value)
    assert "worker 9 " not in str(raised.value)
    assert str(raised.value).endswith("this step was not saved, older checkpoints are untouched")


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
