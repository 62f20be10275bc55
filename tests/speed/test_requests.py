"""The price list: how many requests a save and a start are, with one worker and with several."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import tensorflow as tf

from ckptflow import CheckpointManager, KeepLast
from ckptflow.format.layout import parse_receipt_name
from ckptflow.storage.store import Store
from ckptflow.testing import MemoryStore
from tests.speed.stores import MeasuredStore, kind_of
from tests.speed.team import Team

SHARD_BYTES = 2**20


@pytest.fixture(params=["disk", "objects"])
def team(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Team:
    """Workers on a local disk, and on what costs a round trip for each request."""
    objects: dict[str, bytes] = {}

    def open_memory(url: str) -> Store:
        return MemoryStore(objects)

    return Team(monkeypatch, open_memory if request.param == "objects" else None)


def state() -> dict[str, tf.Variable]:
    """One tensor that workers divide into several shards each, and small ones, the chief's."""
    return {"large": tf.Variable(tf.ones([5_000_000])), **{f"small{i}": tf.Variable(tf.ones([64])) for i in range(20)}}


def manager(root: Path, keep: int) -> CheckpointManager:
    return CheckpointManager(root, state(), keep=KeepLast(keep), shard_bytes=SHARD_BYTES, memory_budget_bytes=2**22)


def save_is_priced(stores: dict[int, MeasuredStore], *, lists: list[str], deletes: int) -> None:
    """Shards + workers + 1 writes, the lists, and few gets beside receipts of others; the chief alone commits.

    Until all receipts are there each look is one list of the folder, or as many gets of some that are missing: of a
    file on a disk, or of the last one.
    """
    world_size = len(stores)
    verbs = ("put", "create", "copy")  # what has not changed is copied: a request for each shard all the same
    written = sum((store.kinds(verb) for store in stores.values() for verb in verbs), Counter[str]())
    assert written["shard"] >= 20
    assert written == {"shard": written["shard"], "receipt": world_size, "manifest": 1}
    chief = stores[0]
    assert chief.keys("create") == [key for key in chief.keys("create") if kind_of(key) == "manifest"]
    looks = [key for key in chief.keys("list") if kind_of(key) == "folder"]
    assert [key for key in chief.keys("list") if kind_of(key) != "folder"] == lists
    assert len(set(looks)) <= (1 if world_size > 2 else 0)
    assert len(chief.keys("delete")) == deletes
    gets = chief.kinds("get")
    # Is it still ours: while the receipt is written, before the save is acknowledged, before deleting.
    assert gets["claim"] == (3 if deletes else 2)
    assert gets["manifest"] == (1 if deletes else 0)  # of what was just saved: nothing is deleted in favour of damage
    assert set(gets) <= {"receipt", "claim", "manifest"}  # a receipt that is not there yet is asked for again
    asked = Counter(found for key in chief.keys("get") if (found := parse_receipt_name(key.rpartition("/")[2])))
    assert asked.keys() == {(worker, world_size) for worker in range(1, world_size)}
    if looks:  # all but the last one are read once it is known that they are there
        assert sum(count > 1 for count in asked.values()) <= 1
    for worker in range(1, world_size):
        assert set(stores[worker].counts) == {"put"}


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_save_is_shards_and_workers_and_one_writes(team: Team, world_size: int, tmp_path: Path) -> None:
    def work(worker: int) -> None:
        with manager(tmp_path, keep=2) as saving:
            for step in (1, 2, 3):
                saving.save(step)
            saving.wait()
            if worker == 0:
                team.forget()
            saving.wait()  # nobody saves before that
            saving.save(4)  # lets step 2 go
            saving.wait()
            if worker == 0:
                save_is_priced(team.stores, lists=["lineage/", "", "pins/"], deletes=2)
            saving.wait()

    team.run(world_size, work)

    def keep_all(worker: int) -> None:
        with manager(tmp_path, keep=100) as saving:
            restored = saving.restore_latest()
            assert restored is not None
            assert restored.step == 4
            for step in (5, 6):  # each copies what another life has saved: on a disk that manifest is read
                saving.save(step)
                saving.wait()
            if worker == 0:
                team.forget()
            saving.wait()
            saving.save(7)  # nothing is pruned
            saving.wait()
            if worker == 0:
                save_is_priced(team.stores, lists=["lineage/"], deletes=0)
            saving.wait()

    team.run(world_size, keep_all)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_start_reads_the_manifest_once(team: Team, world_size: int, tmp_path: Path) -> None:
    """Shards apart: the newest claim by the look and by the claim, which believes its own list alone; after it the own
    claim is read back. A list for the look, one for the claim, and after it one of the claims and one of all. All that
    on the chief: the others ask for its claim, whether they see the same storage."""

    def save(worker: int) -> None:
        with manager(tmp_path, keep=2) as saving:
            for step in (1, 2, 3):
                saving.save(step)

    def start(worker: int) -> None:
        with manager(tmp_path, keep=2) as starting:
            starting.restore_latest()
            starting.wait()

    team.run(world_size, save)
    team.run(world_size, start)
    chief = team.stores[0]
    assert chief.keys("create") == 2 * ["lineage/000002.json"]  # the second must be refused
    assert chief.keys("list") == ["", "", "lineage/", ""]
    small = [key for key in chief.keys("get") if kind_of(key) != "shard"]
    claim, own, manifest = "lineage/000001.json", "lineage/000002.json", "000000000003-i0001/manifest.json"
    assert small == [claim, manifest, claim, own]
    for worker in range(1, world_size):
        others = team.stores[worker]
        assert set(others.counts) == {"get"}
        assert [key for key in others.keys("get") if kind_of(key) != "shard"] == [own]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_reader_asks_for_no_more(team: Team, world_size: int, tmp_path: Path) -> None:
    def save(worker: int) -> None:
        with manager(tmp_path, keep=2) as saving:
            saving.save(1)

    def read(worker: int) -> None:
        with CheckpointManager(tmp_path, state(), read_only=True) as reading:
            reading.restore_latest()
            reading.wait()

    team.run(world_size, save)
    team.run(world_size, read)
    chief = team.stores[0]
    assert chief.keys("list") == [""]
    assert [key for key in chief.keys("get") if kind_of(key) != "shard"] == [
        "lineage/000001.json",
        "000000000001-i0001/manifest.json",
    ]
    for worker in range(1, world_size):
        assert team.stores[worker].kinds("get").keys() == {"shard"}
        assert set(team.stores[worker].counts) == {"get"}
