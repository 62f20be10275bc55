"""One wrong answer is no damage: it is asked again. What is wrong twice is, and what differs each time is not known."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckptflow.commit.catalog import Summaries, read_claim, read_manifest
from ckptflow.commit.copying import copy_checkpoint
from ckptflow.commit.lineage import claim_next
from ckptflow.errors import (
    CheckpointGoneError,
    CorruptCheckpointError,
    ObjectNotFoundError,
    StorageError,
    StorageUnavailableError,
)
from ckptflow.format.layout import MANIFEST_NAME
from ckptflow.format.manifest import Manifest
from ckptflow.format.spec import Wanted
from ckptflow.reading import OpenCheckpoint
from ckptflow.storage.local import LocalStore
from ckptflow.storage.retry import RetryingStore
from ckptflow.storage.store import Store
from ckptflow.storage.wrappers import FaultyStore, StoreWrapper
from ckptflow.transfer.buffers import BufferPool
from ckptflow.transfer.reader import read_tensors
from ckptflow.transfer.verify import verify_checkpoint
from tests.storage.wrong import LIES, ForgetfulStore, Lie, WrongStore, flip, flip_elsewhere, missing, shorten
from tests.transfer.helpers import FOLDER, ArrayTarget, same_bits
from tests.transfer.test_buffers import all_free
from tests.transfer.test_reader import SPECS, written

SIZES = [2**13, 2**20]  # a slice in parts; whole slices


def read(store: Store, manifest: Manifest, buffer_bytes: int, *, verify_first: bool = False) -> ArrayTarget:
    target, pool = ArrayTarget(manifest), BufferPool(2 * buffer_bytes, buffer_bytes)
    wanted = list(map(Wanted, range(len(SPECS))))
    try:
        if verify_first:
            read_tensors(store, FOLDER, manifest, wanted, target, pool, only_verify=True)
        read_tensors(store, FOLDER, manifest, wanted, target, pool)
    finally:
        assert all_free(pool)
    return target


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("buffer_bytes", SIZES)
@pytest.mark.parametrize("verify_first", [False, True])
def test_tensors_after_one_wrong_answer(buffer_bytes: int, lie: Lie, verify_first: bool) -> None:
    store, manifest, expected = written()
    for shard in manifest.shards[::8]:
        wrong = WrongStore(store, lie, shard.name)
        target = read(wrong, manifest, buffer_bytes, verify_first=verify_first)
        assert wrong.told == 1
        assert wrong.renewed == [FOLDER.key(shard.name)]
        assert all(same_bits(target.arrays[spec.name], array) for spec, array in zip(SPECS, expected, strict=True))


def test_the_calling_thread_reads_nothing_again_itself() -> None:
    """Ctrl-C comes to it, and would leave a client in the middle of a request."""
    store, manifest, _ = written()
    wrong = WrongStore(store, flip, manifest.shards[0].name)
    threads: set[threading.Thread] = set()

    class Watched(StoreWrapper):
        def run(self, verb: str, key: str, call: Callable[[], Any]) -> Any:
            threads.add(threading.current_thread())
            return call()

    read(Watched(wrong), manifest, SIZES[0])
    assert wrong.told == 1
    assert threading.main_thread() not in threads


def test_on_a_disk(tmp_path: Path) -> None:
    """What the page cache holds of the file is let go, and it is there all the same."""
    store, manifest, expected = written()
    disk = LocalStore(str(tmp_path))
    for key, data in store.objects.items():
        disk.put(key, memoryview(data))
    for buffer_bytes in SIZES:
        for lie in LIES:
            target = read(WrongStore(disk, lie, manifest.shards[0].name), manifest, buffer_bytes)
            assert all(same_bits(target.arrays[spec.name], array) for spec, array in zip(SPECS, expected, strict=True))


def test_each_range_may_come_wrong_once() -> None:
    """Many at once, in every thread, and in each part of a slice that is read in parts."""
    store, manifest, expected = written()

    class EachOnce(WrongStore):
        def __init__(self) -> None:
            super().__init__(store, flip, times=10**6)
            self.seen: set[tuple[str, int, int]] = set()

        def get(self, key: str, into: memoryview, start: int = 0) -> int:
            place = (key, start, len(into))
            if place in self.seen:
                return store.get(key, into, start)
            self.seen.add(place)
            return super().get(key, into, start)

    for buffer_bytes in SIZES:
        wrong = EachOnce()
        target = read(wrong, manifest, buffer_bytes)
        assert wrong.told == len(wrong.seen) > 5
        assert all(same_bits(target.arrays[spec.name], array) for spec, array in zip(SPECS, expected, strict=True))


def test_any_answer_may_be_wrong() -> None:
    """Whatever comes wrong, whenever: the values are right, or it is said that nothing is known."""
    store, manifest, expected = written()
    outcomes = set()
    for seed in range(30):
        rng, often = random.Random(seed), 0.02 * (seed % 5)

        def lie(into: memoryview, count: int, number: int, rng: random.Random = rng, often: float = often) -> int:
            into[rng.randrange(count)] ^= 1 << rng.randrange(8) if rng.random() < often else 0
            return count

        for buffer_bytes in SIZES:
            try:
                target = read(WrongStore(store, lie, times=10**6), manifest, buffer_bytes)
            except StorageUnavailableError:
                outcomes.add("not known")
                continue
            outcomes.add("right")
            assert all(same_bits(target.arrays[spec.name], array) for spec, array in zip(SPECS, expected, strict=True))
    assert "right" in outcomes


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("buffer_bytes", SIZES)
def test_what_is_wrong_twice_is_damage(buffer_bytes: int, lie: Lie) -> None:
    store, manifest, _ = written()
    name = manifest.shards[0].name
    wrong = WrongStore(store, lie, name, times=10**6)
    with pytest.raises(CorruptCheckpointError, match=name):
        read(wrong, manifest, buffer_bytes)
    assert wrong.told < 100
    wrong = WrongStore(store, lie, name, times=10**6)
    assert {problem.shard for problem in verify_checkpoint(wrong, FOLDER, manifest, BufferPool(2**20, 2**20))} == {name}


@pytest.mark.parametrize("buffer_bytes", SIZES)
def test_three_different_wrong_answers_are_no_verdict(buffer_bytes: int) -> None:
    store, manifest, _ = written()
    for name in (shard.name for shard in manifest.shards[::8]):
        wrong = WrongStore(store, flip_elsewhere, name, times=10**6)
        with pytest.raises(StorageUnavailableError, match=r"3 different results"):
            read(wrong, manifest, buffer_bytes)
        with pytest.raises(StorageUnavailableError, match=r"3 different results"):
            verify_checkpoint(wrong, FOLDER, manifest, BufferPool(2**20, 2**20))


def test_two_different_wrong_answers_and_a_right_one() -> None:
    store, manifest, expected = written()
    for buffer_bytes in SIZES:
        wrong = WrongStore(store, flip_elsewhere, manifest.shards[0].name, times=2)
        target = read(wrong, manifest, buffer_bytes)
        assert all(same_bits(target.arrays[spec.name], array) for spec, array in zip(SPECS, expected, strict=True))
        assert wrong.told == 2


@pytest.mark.parametrize("lie", LIES)
def test_verify_after_one_wrong_answer(lie: Lie) -> None:
    store, manifest, _ = written()
    for number in range(1, 4):  # of the reads of a shard: its header's length, its header, its data
        wrong = WrongStore(store, lie, manifest.shards[0].name, times=number)
        if number > 1:
            wrong.lie = lambda into, count, told, number=number: lie(into, count, told) if told == number else count  # type: ignore[misc]
        assert verify_checkpoint(wrong, FOLDER, manifest, BufferPool(2**20, 2**20)) == []
        assert wrong.told >= number


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_and_a_claim_after_one_wrong_answer(lie: Lie) -> None:
    store, manifest, _ = written()
    held = claim_next(store, Summaries(store), "start", 10.0)
    wrong = WrongStore(store, lie, MANIFEST_NAME)
    assert read_manifest(wrong, FOLDER) == manifest
    assert isinstance(Summaries(WrongStore(store, lie, MANIFEST_NAME)).get(FOLDER), object)
    claim = read_claim(WrongStore(store, lie, "lineage/"), held.number)
    assert claim is not None
    assert claim.writer_id == held.writer_id
    assert wrong.told == 1


def test_a_manifest_that_is_wrong_twice_and_one_that_is_not_known() -> None:
    store, manifest, _ = written()
    for lie in LIES:
        with pytest.raises(ObjectNotFoundError if lie is missing else CorruptCheckpointError):
            read_manifest(WrongStore(store, lie, MANIFEST_NAME, times=10**6), FOLDER)
    with pytest.raises(StorageUnavailableError, match="3 different results"):
        read_manifest(WrongStore(store, flip_elsewhere, MANIFEST_NAME, times=10**6), FOLDER)
    waited = WrongStore(store, missing, MANIFEST_NAME)
    with pytest.raises(ObjectNotFoundError):  # who waits for it asks again anyway
        read_manifest(waited, FOLDER, may_be_missing=True)
    assert read_manifest(waited, FOLDER) == manifest


@pytest.mark.parametrize("size_bytes", [None, 7])
def test_a_listing_that_was_wrong_once(size_bytes: int | None) -> None:
    store, manifest, _ = written()
    name = manifest.shards[1].name
    uses: list[Callable[[Store], object]] = [
        lambda wrong: OpenCheckpoint(wrong, manifest).read(["scalar"]),
        lambda wrong: verify_checkpoint(wrong, FOLDER, manifest, BufferPool(2**20, 2**20)) or True,
    ]
    for use in uses:
        wrong = ForgetfulStore(store, name, size_bytes)
        assert use(wrong)
        assert not wrong.left
    with pytest.raises(CorruptCheckpointError, match=name):
        uses[0](ForgetfulStore(store, name, size_bytes, times=10**6))
    (problem,) = verify_checkpoint(
        ForgetfulStore(store, name, size_bytes, times=10**6), FOLDER, manifest, BufferPool(2**20, 2**20)
    )
    assert problem.shard == name


@pytest.mark.parametrize("lie", LIES)
def test_a_copy_after_one_wrong_answer(lie: Lie, tmp_path: Path) -> None:
    store, manifest, _ = written()
    for number, key in enumerate((manifest.shards[0].name, MANIFEST_NAME)):
        target = LocalStore(str(tmp_path / f"{number}"))
        wrong = WrongStore(store, lie, key)
        copy_checkpoint(wrong, target, FOLDER, lambda count: None)
        assert wrong.told == 1
        assert verify_checkpoint(target, FOLDER, manifest, BufferPool(2**20, 2**20)) == []
        # a second time, the destination's answers are wrong once: nothing is sent anew, nothing is called another's
        untrusted = WrongStore(target, lie, key)
        assert copy_checkpoint(store, untrusted, FOLDER, lambda count: None).sent_bytes == 0
        assert untrusted.told == 1
    with pytest.raises((CorruptCheckpointError, StorageError)):
        copy_checkpoint(
            WrongStore(store, shorten, manifest.shards[0].name, times=10**6),
            LocalStore(str(tmp_path / "bad")),
            FOLDER,
            lambda count: None,
        )


def test_what_is_stored_is_asked_for_again() -> None:
    store, manifest, _ = written()
    faulty = FaultyStore(store)
    faulty.fail("filled_bytes", StorageUnavailableError("busy"))
    opened = OpenCheckpoint(RetryingStore(faulty, first_wait_s=0.001), manifest)
    assert opened.stored_bytes() == sum(shard.size_bytes for shard in manifest.shards)
    faulty.assert_all_used()


def test_what_is_pruned_while_it_is_measured_is_gone(tmp_path: Path) -> None:
    class Pruned(StoreWrapper):
        """Its checkpoint goes when it is asked how much of a shard was written."""

        def run(self, verb: str, key: str, call: Callable[[], Any]) -> Any:
            if verb == "filled_bytes":
                self.store.delete([entry.key for entry in self.store.list(f"{FOLDER}/")])
            return call()

    memory, manifest, _ = written()
    store = LocalStore(str(tmp_path))
    for key, data in memory.objects.items():
        store.put(key, memoryview(data))
    with pytest.raises(CheckpointGoneError, match="pin what must stay"):
        OpenCheckpoint(Pruned(store), manifest).stored_bytes()
