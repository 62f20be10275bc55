"""Claims: racing for a number, whose a create was once its reply is lost, and who is fenced by what."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from ckptflow.commit.catalog import Summaries, list_root
from ckptflow.commit.lineage import (
    Held,
    check_fence,
    claim_next,
    create_once,
    is_written_by,
)
from ckptflow.commit.retention import KeepLast
from ckptflow.errors import FencedError, ObjectExistsError, StorageAccessError, StorageUnavailableError
from ckptflow.format.layout import Folder, claim_key
from ckptflow.stops import awake_s
from ckptflow.storage.opening import open_store
from ckptflow.storage.store import Store
from ckptflow.testing import FaultyStore, MemoryStore
from tests.commit.roots import Job, damage, folders, job
from tests.waiting import HANG_S

RACERS = 16


def claim(store: Store) -> Held:
    return claim_next(store, Summaries(store), "start", HANG_S)


@pytest.fixture(params=["memory", "local"])
def open_root(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    """Opens stores on one root: one client each."""
    objects: dict[str, bytes] = {}
    return lambda: MemoryStore(objects) if request.param == "memory" else open_store(str(tmp_path / "root"))


def test_racers_get_numbers_of_their_own(open_root: Callable[[], Store]) -> None:
    stores = [open_root() for _ in range(RACERS)]
    barrier = threading.Barrier(RACERS)

    def race(store: Store) -> Held:
        barrier.wait()
        return claim(store)

    with ThreadPoolExecutor(RACERS) as threads:
        held = list(threads.map(race, stores))
    assert sorted(h.number for h in held) == list(range(1, RACERS + 1))
    assert len({h.writer_id for h in held}) == RACERS
    assert len({h.run_id for h in held}) == 1
    fenced = 0
    for h in held:
        try:
            check_fence(stores[0], h)
        except FencedError:
            fenced += 1
    assert fenced == RACERS - 1
    for store in stores:
        store.close()


def lost(error: Exception, *, is_after: bool, times: int = 1) -> FaultyStore:
    store = FaultyStore(MemoryStore())
    store.fail("create", error, is_after=is_after, times=times)
    return store


def soon() -> Callable[[], float]:
    deadline = awake_s() + 0.2
    return lambda: deadline


def test_ours() -> None:
    assert create_once(MemoryStore(), "a", b"ours", soon())


@pytest.mark.parametrize("error", [StorageUnavailableError("lost"), ObjectExistsError("a retry below met itself")])
def test_ours_though_the_reply_was_lost(error: Exception) -> None:
    store = lost(error, is_after=True)
    assert create_once(store, "a", b"ours", soon())
    store.assert_all_used()


def test_ours_at_the_second_try_where_the_first_never_arrived() -> None:
    store = lost(StorageUnavailableError("503"), is_after=False)
    assert create_once(store, "a", b"ours", soon())
    store.assert_all_used()


@pytest.mark.parametrize("other", [b"anothers", b"our", b"ours and more", b"", b"x" * 100_000])
def test_not_ours(other: bytes) -> None:
    store = MemoryStore({"a": other})
    assert not create_once(store, "a", b"ours", soon())
    assert store.objects["a"] == other


def test_unknown_until_the_deadline_is_said_to_be_unknown() -> None:
    store = lost(StorageUnavailableError("503"), is_after=False, times=1_000)
    with pytest.raises(StorageUnavailableError):
        create_once(store, "a", b"ours", soon())


def test_unknown_where_the_reading_back_fails_too() -> None:
    store = lost(StorageUnavailableError("503"), is_after=True)
    store.fail("get", StorageUnavailableError("503"), times=1)
    assert create_once(store, "a", b"ours", soon())  # then it is there, and ours
    store.assert_all_used()


def test_a_refusal_is_raised_at_once() -> None:
    store = lost(StorageAccessError("403"), is_after=False)
    with pytest.raises(StorageAccessError):
        create_once(store, "a", b"ours", soon())


def test_a_number_is_above_every_claim_and_every_folder() -> None:
    store = MemoryStore()
    assert claim(store).number == 1
    store.objects[claim_key(41)] = b"torn"
    assert claim(store).number == 42
    store.objects["000000000001-i0099/shard-00000-of-00001-0000.safetensors"] = b"partial"
    assert claim(store).number == 100
    store.objects[claim_key(9_999_999)] = b"torn"
    assert claim(store).number == 10_000_000


def test_the_run_id_is_that_of_the_newest_claim_else_of_the_newest_manifest() -> None:
    store = MemoryStore()
    first = job(store)
    first.save(1)
    assert first.start.held is not None
    run_id = first.start.held.run_id
    assert claim(store).run_id == run_id
    store.objects[claim_key(3)] = b"torn"
    assert claim(store).run_id == run_id
    for key in [key for key in store.objects if key.startswith("lineage/")]:
        del store.objects[key]
    assert claim(store).run_id == run_id
    assert claim(MemoryStore()).run_id != run_id


@pytest.mark.parametrize("how", ["claim", "torn claim", "checkpoint"])
def test_whatever_is_newer_fences_and_says_who(how: str) -> None:
    store = MemoryStore()
    life = job(store, [KeepLast(1)])  # lists the root at each save; where nothing is pruned, claims alone fence
    life.save(1)
    assert life.start.held is not None
    check_fence(store, life.start.held, list_root(store))
    if how == "claim":
        claim(store)
    elif how == "torn claim":
        store.objects[claim_key(2)] = b"{"
    else:
        store.objects["000000000009-i0002/shard-00000-of-00001-0000.safetensors"] = b""
        check_fence(store, life.start.held, list_root(store))  # of a job without a claim, which commits nothing
        store.objects["000000000009-i0002/manifest.json"] = b"cannot be read"
    who = "process" if how == "claim" else "its claim cannot be read"
    with pytest.raises(FencedError, match=f"incarnation 2.*{who}.*do not restart it"):
        check_fence(store, life.start.held, list_root(store))
    with pytest.raises(FencedError):
        life.save(2)


def test_a_newer_claim_at_start_is_met_by_standing_down() -> None:
    objects: dict[str, bytes] = {}
    job(MemoryStore(objects)).save(1)

    def overtakes(verb: str, key: str) -> None:
        if verb == "create" and key == claim_key(2):
            claim(MemoryStore(objects))
            objects[claim_key(3)] = objects.pop(claim_key(2))

    with pytest.raises(FencedError):
        Job(MemoryStore(objects, hook=overtakes)).resume()


@pytest.mark.parametrize("is_readable", [True, False])
def test_who_has_written_a_folder_is_not_told_by_its_number(is_readable: bool) -> None:
    store = MemoryStore()
    life = job(store)
    folder = life.save(1).folder
    if not is_readable:
        damage(store, str(folder))
    held, listing, found = life.start.held, list_root(store), Summaries(store).get(folder)
    assert held is not None
    assert is_written_by(held, folder, found, listing)
    assert not is_written_by(replace(held, writer_id="another"), folder, found, listing)
    assert is_written_by(replace(held, number=2), folder, found, listing) is is_readable  # a manifest says who


# Numbers above ours


def test_a_job_in_an_emptied_root_is_not_ended_by_one_of_before_with_a_higher_number() -> None:
    objects: dict[str, bytes] = {}
    job(MemoryStore(objects)).save(5)
    job(MemoryStore(objects))
    zombie = job(MemoryStore(objects), [KeepLast(1)])
    zombie.save(10)
    objects.clear()
    other = job(MemoryStore(objects), [KeepLast(1)])
    with pytest.raises(FencedError):
        zombie.save(20)
    assert f"{Folder(20, 3)}/manifest.json" not in objects  # it looks before each manifest
    other.save(10)
    other.save(30)
    assert folders(MemoryStore(objects)) == [str(Folder(30, 1))]
    assert other.resume() == 30  # in the same process, and in a new one
    last = Job(MemoryStore(objects))
    assert last.resume() == 30
    assert last.start.held is not None
    assert last.start.held.number > 3  # above what it has left


def test_another_runs_folder_that_is_copied_in_ends_no_running_job() -> None:
    other, objects = MemoryStore(), dict[str, bytes]()
    for _ in range(4):
        life = job(other)
    life.save(1000)
    running = job(MemoryStore(objects), [KeepLast(1)])
    running.save(10)
    objects |= {key: data for key, data in other.objects.items() if key.startswith(str(Folder(1000, 4)))}
    running.save(20)
    assert folders(MemoryStore(objects)) == [str(Folder(20, 1)), str(Folder(1000, 4))]
    objects[f"{Folder(1000, 4)}/manifest.json"] = b"?"  # whose it is, nobody can say
    with pytest.raises(FencedError):
        running.save(30)


def test_a_checkpoint_of_a_newer_number_ends_a_job_also_without_its_claim() -> None:
    objects: dict[str, bytes] = {}
    first = job(MemoryStore(objects), [KeepLast(1)])
    first.save(10)
    job(MemoryStore(objects)).save(20)
    del objects[claim_key(2)]
    with pytest.raises(FencedError):
        first.save(30)
    assert str(Folder(10, 1)) in folders(MemoryStore(objects))


def test_one_wrong_answer_at_the_read_back_makes_nobody_anothers() -> None:
    """A byte that flips once on its way, of our own manifest: no reason to end the job."""

    class Flips(MemoryStore):
        is_wrong = False

        def get(self, key: str, into: memoryview, start: int = 0) -> int:
            count = super().get(key, into, start)
            if self.is_wrong and key.endswith("manifest.json"):
                self.is_wrong, into[count // 2] = False, into[count // 2] ^ 1
            return count

    inner = Flips()
    store = FaultyStore(inner)
    life = job(store)
    inner.is_wrong = True
    store.fail("create", StorageUnavailableError("reset"), key="manifest.json", is_after=True)
    life.save(10)
    store.assert_all_used()
    assert not inner.is_wrong
