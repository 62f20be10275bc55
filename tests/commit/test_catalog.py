"""What counts: from a listing and what manifests say, as a table; and how odd names and odd bytes are met."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from ckptflow.commit.catalog import (
    Checkpoint,
    Listing,
    Summaries,
    Summary,
    find_counting,
    list_root,
    of_one_writer,
    read_claim,
    read_manifest,
)
from ckptflow.commit.finding import find_checkpoint, list_counting
from ckptflow.commit.retention import KeepBest, KeepLast
from ckptflow.errors import CorruptCheckpointError, ObjectNotFoundError
from ckptflow.format.layout import Folder, claim_key, parse_folder, pin_key, shard_name, writer_tag
from ckptflow.testing import CountingStore, MemoryStore
from tests.commit.roots import Job, damage, folders, job

BAD = "damaged"


def name(text: str) -> Folder:
    """`3-i2` for short."""
    step, _, number = text.partition("-i")
    return Folder(int(step), int(number))


def summary(folder: Folder, lineage: tuple[str, ...] = (), run_id: str = "run", barrier: int = 0) -> Summary:
    checkpoint = Checkpoint(folder.step, folder.incarnation, {}, None, datetime.now(UTC), 0, "")
    return Summary(folder, run_id, "resume", frozenset(map(name, lineage)), barrier, 0, {}, checkpoint)


def count(run_id: str | None = "run", **manifests: object) -> tuple[list[str], list[str], int]:
    """What counts and what is outside. Manifests by short name: `s3_i2` is a lineage, a (run id, lineage), or BAD."""
    found: dict[Folder, Summary | CorruptCheckpointError] = {}
    for key, value in manifests.items():
        folder = name(key.removeprefix("s").replace("_", "-"))
        if value == BAD:
            found[folder] = CorruptCheckpointError("damaged")
        elif isinstance(value, tuple) and value and isinstance(value[-1], tuple):
            found[folder] = summary(folder, value[1], run_id=value[0])
        else:
            found[folder] = summary(folder, value)  # type: ignore[arg-type]
    listing = Listing({folder: {"manifest.json": 1} for folder in found}, (), frozenset())
    counting = find_counting(listing, run_id, found.__getitem__)
    short = [[f"{f.step}-i{f.incarnation}" for f in part] for part in (counting.folders, counting.outside)]
    return short[0], short[1], counting.incarnation


@pytest.mark.parametrize(
    ("manifests", "counts", "outside", "decides"),
    [
        ({}, [], [], 0),
        ({"s1_i1": (), "s2_i1": ()}, ["2-i1", "1-i1"], [], 1),
        ({"s1_i1": (), "s2_i1": (), "s3_i2": ("1-i1", "2-i1")}, ["3-i2", "2-i1", "1-i1"], [], 2),
        ({"s1_i1": (), "s2_i1": (), "s1_i2": ("1-i1",)}, ["1-i2", "1-i1"], ["2-i1"], 2),  # a rollback
        ({"s1_i1": (), "s9_i1": (), "s2_i2": ("1-i1", "7-i1")}, ["2-i2", "1-i1"], ["9-i1"], 2),  # 7 is gone
        ({"s1_i9": (), "s2_i10": ("1-i9",)}, ["2-i10", "1-i9"], [], 10),  # numbers, not text
        ({"s1_i1": (), "s2_i2": BAD, "s3_i2": ("1-i1",)}, ["3-i2", "2-i2", "1-i1"], [], 2),
        ({"s1_i1": (), "s2_i2": ("1-i1",), "s3_i2": BAD}, ["3-i2", "2-i2", "1-i1"], [], 2),
        ({"s1_i1": (), "s2_i2": BAD}, ["2-i2"], ["1-i1"], 2),  # met and reported, not passed over
        ({"s1_i1": BAD, "s2_i2": BAD}, ["2-i2", "1-i1"], [], 2),
        ({"s1_i1": (), "s9_i42": ("other", ())}, ["1-i1"], ["9-i42"], 1),  # copied in by hand
        ({"s9_i42": ("other", ())}, [], ["9-i42"], 0),
        ({"s1_i1": (), "s8_i42": BAD, "s9_i42": ("other", ())}, ["1-i1"], ["9-i42", "8-i42"], 1),
    ],
)
def test_what_counts(manifests: dict[str, object], counts: list[str], outside: list[str], decides: int) -> None:
    assert count("run", **manifests) == (counts, outside, decides)


@pytest.mark.parametrize(
    ("writers", "claimed_by", "stay"),
    [
        ({3: "a", 2: "b", 1: "a"}, "a", [3, 1]),
        ({3: "a", 2: "b", 1: "a"}, "b", [2]),  # the claim goes before the newest manifest
        ({3: "a", 2: "b", 1: "a"}, None, [3, 1]),
        ({3: "a", 2: "b", 1: "a"}, "c", [3, 1]),  # it has committed nothing here
        ({3: "a, damaged", 2: "b", 1: "a"}, None, [2]),
        ({3: "a, damaged", 2: "b", 1: "a"}, "a", [3, 1]),  # by the names of its shards
        ({3: "x, another run", 2: "b", 1: "a"}, "x", [2]),
        ({3: "a, damaged", 2: "b, damaged"}, "a", [3, 2]),  # nobody is known to have written here
    ],
)
def test_of_two_that_held_a_number(writers: dict[int, str], claimed_by: str | None, stay: list[int]) -> None:
    found: dict[Folder, Summary | CorruptCheckpointError] = {}
    files: dict[Folder, dict[str, int]] = {}
    for step, text in writers.items():
        writer, _, what = text.partition(", ")
        run_id = "other" if what == "another run" else "run"
        readable = replace(summary(Folder(step, 1), run_id=run_id), writer_id=writer)
        found[Folder(step, 1)] = CorruptCheckpointError(BAD) if what == BAD else readable
        files[Folder(step, 1)] = {shard_name(0, 1, 0, writer_tag(writer)): 1}
    listing = Listing(files, (), frozenset())
    assert [folder.step for folder in of_one_writer(found, listing, "run", claimed_by)] == stay


def test_without_a_claim_the_newest_manifest_says_which_run_it_is() -> None:
    assert count(None, s1_i1=(), s9_i42=("other", ()))[0] == ["9-i42"]


def test_one_manifest_is_read_in_a_healthy_root() -> None:
    read: list[Folder] = []
    found = {name(f"{step}-i1"): summary(name(f"{step}-i1")) for step in range(1, 100)}
    listing = Listing({folder: {"manifest.json": 1} for folder in found}, (), frozenset())

    def reads(folder: Folder) -> Summary:
        read.append(folder)
        return found[folder]

    assert len(find_counting(listing, "run", reads).folders) == 99
    assert read == [Folder(99, 1)]


def test_a_listing_passes_over_what_is_not_ours() -> None:
    store = MemoryStore(
        {
            "000000000001-i0001/manifest.json": b"1",
            "000000000001-i0001/deep/er/file": b"22",
            "000000000002-i0001/shard-00000-of-00001-0000.safetensors": b"",
            "000000000003-i0001": b"a file, not a folder",
            "0000000000004-i0001/manifest.json": b"one digit too many",
            "000000000005-i0001-r1/manifest.json": b"the first call has no suffix",
            "000000000006-i0001.tmp/manifest.json": b"",
            "notes.txt": b"",
            claim_key(7): b"",
            "lineage/7.json": b"",
            "lineage/000008.json.tmp": b"",
            pin_key(Folder(1, 1)): b"",
            "pins/whatever": b"",
        }
    )
    listing = list_root(store)
    assert {str(f): dict(files) for f, files in listing.folders.items()} == {
        "000000000001-i0001": {"manifest.json": 1, "deep/er/file": 2},
        "000000000002-i0001": {"shard-00000-of-00001-0000.safetensors": 0},
    }
    assert listing.claims == (7,)
    assert listing.pins == {Folder(1, 1)}
    assert listing.committed == (Folder(1, 1),)
    assert listing.top_number == 7


def test_a_manifest_under_another_folders_name_is_damage() -> None:
    """A folder renamed by hand."""
    store = MemoryStore()
    job(store).save(1)
    store.objects["000000000009-i0001/manifest.json"] = store.objects["000000000001-i0001/manifest.json"]
    with pytest.raises(CorruptCheckpointError, match="it is the manifest of 000000000001-i0001"):
        read_manifest(store, Folder(9, 1))


def test_summaries_read_each_manifest_once_and_remember_damage_but_not_absence() -> None:
    store = MemoryStore()
    life = job(store)
    life.save(1)
    life.save(2)
    damage(store, "000000000002-i0001")
    summaries = Summaries(store)
    assert isinstance(summaries.get(Folder(1, 1)), Summary)
    assert isinstance(summaries.get(Folder(2, 1)), CorruptCheckpointError)
    with pytest.raises(ObjectNotFoundError):
        summaries.get(Folder(3, 1))
    taken = {key: store.objects.pop(key) for key in list(store.objects)}
    assert isinstance(summaries.get(Folder(1, 1)), Summary)
    assert isinstance(summaries.get(Folder(2, 1)), CorruptCheckpointError)
    store.objects |= taken
    store.objects["000000000003-i0001/manifest.json"] = b"?"
    assert isinstance(summaries.get(Folder(3, 1)), CorruptCheckpointError)
    summaries.forget([Folder(1, 1)])
    del store.objects["000000000001-i0001/manifest.json"]
    with pytest.raises(ObjectNotFoundError):
        summaries.get(Folder(1, 1))


def test_a_claim_that_is_torn_or_anothers_is_not_read() -> None:
    store = MemoryStore()
    job(store)
    assert read_claim(store, 1) is not None
    store.objects[claim_key(2)] = store.objects[claim_key(1)]
    store.objects[claim_key(3)] = store.objects[claim_key(1)][:-5]
    store.objects[claim_key(4)] = b"x" * 100_000
    assert [read_claim(store, number) for number in (2, 3, 4, 5)] == [None] * 4


def test_a_root_of_a_real_life_counts_as_it_should() -> None:
    store = MemoryStore()
    for step in (1, 2, 3):
        job(store).save(step)
    listing = list_root(store)
    counting = find_counting(listing, None, Summaries(store).get)
    assert [str(f) for f in reversed(counting.folders)] == folders(store)
    assert counting.newest == parse_folder("000000000003-i0003")
    assert counting.lineage_up_to(Folder(2, 2)) == {Folder(1, 1), Folder(2, 2)}
    assert counting.lineage_up_to(Folder(2, 9)) == frozenset()


# What is remembered of manifests


def flipped(objects: dict[str, bytes], key: str, times: int) -> MemoryStore:
    """A client that reads one wrong byte of `key`, so many times, always the same."""

    class Flips(MemoryStore):
        left = times

        def get(self, key_: str, into: memoryview, start: int = 0) -> int:
            count = super().get(key_, into, start)
            if key_ == key and self.left:
                self.left -= 1
                into[count // 2] ^= 1
            return count

    return Flips(objects)


def test_a_verdict_of_damage_is_no_older_than_the_listing_that_it_is_used_with() -> None:
    """A bad answer on the way, given twice; hours later it would have let the best one go."""
    objects: dict[str, bytes] = {}
    first = job(MemoryStore(objects))
    for step, loss in ((10, 3.0), (30, 1.0), (40, 2.0)):
        first.save(step, metrics={"loss": loss})
    store = flipped(objects, f"{Folder(30, 1)}/manifest.json", times=2)
    life = Job(store, [KeepBest("loss"), KeepLast(1)])
    assert [found.step for found in list_counting(store, life.summaries)] == [10, 40]
    assert life.resume() == 40
    life.save(50, metrics={"loss": 4.0})
    assert folders(MemoryStore(objects)) == [str(Folder(30, 1)), str(Folder(50, 2))]


def test_a_reader_that_lives_on_sees_another_run_in_the_same_place() -> None:
    """The root is emptied and used again: the same folders, by number and step."""
    objects: dict[str, bytes] = {}
    store = MemoryStore(objects)
    job(store).save(10, metrics={"loss": 1.0})
    summaries = Summaries(MemoryStore(objects))
    assert [found.metrics for found in list_counting(MemoryStore(objects), summaries)] == [{"loss": 1.0}]
    objects.clear()
    job(MemoryStore(objects)).save(10, metrics={"loss": 2.0})
    reader = MemoryStore(objects)
    found = find_checkpoint(reader, summaries)
    assert found is not None
    assert found.metrics == {"loss": 2.0}
    assert [found.metrics for found in list_counting(reader, summaries)] == [{"loss": 2.0}]


def test_what_is_remembered_is_not_read_again() -> None:
    objects: dict[str, bytes] = {}
    life = job(MemoryStore(objects))
    for step in (10, 20):
        life.save(step)
    store = CountingStore(MemoryStore(objects))
    summaries = Summaries(store)
    for _ in range(3):
        list_counting(store, summaries)
    assert [key for key in store.keys("get") if key.endswith("manifest.json")] == [
        f"{Folder(step, 1)}/manifest.json" for step in (20, 10)
    ]
