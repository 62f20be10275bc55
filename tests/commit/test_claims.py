"""A claim counts only while it is seen: emptied roots, listings that are none, servers that replace on create."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from ckptflow.commit import lineage
from ckptflow.commit.catalog import Summaries, list_root
from ckptflow.commit.coordinator import Coordinator
from ckptflow.commit.lineage import Held, claim_next
from ckptflow.commit.prune import prune_by_hand
from ckptflow.commit.retention import KeepLast
from ckptflow.errors import (
    CommitUnknownError,
    FencedError,
    SaveFailedError,
    StorageAccessError,
    StorageError,
    StorageUnavailableError,
    UsageError,
)
from ckptflow.format.layout import Folder, claim_key
from ckptflow.storage.opening import open_store
from ckptflow.storage.store import Entry
from ckptflow.testing import CountingStore, FaultyStore, MemoryStore
from tests.commit.roots import Job, folders, job

ONE = [KeepLast(1)]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Pauses pass at once."""
    now = SimpleNamespace(s=0.0)

    def sleep(seconds: float) -> None:
        now.s += seconds

    monkeypatch.setattr(lineage, "time", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr("ckptflow.stops.ticking.awake_s", lambda: now.s)
    return now


class Lying(MemoryStore):
    """Answers the listings `which` picks, by number, as if nothing were there: a proxy's page, a cache."""

    which: Callable[[int], bool] = staticmethod(lambda number: True)
    asked = 0

    def list(self, prefix: str = "") -> list[Entry]:
        self.asked += 1
        return [] if self.which(self.asked) else super().list(prefix)


class Replacing(MemoryStore):
    """A server that ignores `If-None-Match`."""

    def create(self, key: str, data: memoryview) -> None:
        self._before("create", key)
        self.objects[key] = bytes(data)


def another_job(objects: dict[str, bytes], *steps: int) -> tuple[Job, dict[str, bytes]]:
    """Empties the root, and starts a job there that saves; with what it has written."""
    objects.clear()
    other = job(MemoryStore(objects))
    for step in steps:
        other.save(step)
    return other, dict(objects)


@pytest.mark.parametrize("step", [10, 30, 40])
def test_a_root_that_is_emptied_and_used_by_another_job_is_left_alone(step: int) -> None:
    objects: dict[str, bytes] = {}
    first = job(MemoryStore(objects), ONE)
    first.save(10)
    other, written = another_job(objects, 10, 20, 30)
    assert other.start.held is not None
    assert other.start.held.number == 1  # as the first
    with pytest.raises(FencedError):
        first.save(step)
    assert objects == written | objects
    other.save(50)
    last = Job(MemoryStore(objects))
    assert last.resume() == 50
    assert last.value == other.value


@pytest.mark.parametrize("number", range(7))
def test_at_whatever_moment_of_a_save_the_root_is_emptied(number: int) -> None:
    """Before each call of the first job's save; but for a delete, which nothing can call back."""
    objects: dict[str, bytes] = {}
    seen: list[str] = []
    others: list[Job] = []

    def empties(verb: str, key: str) -> None:
        if verb != "delete":
            seen.append(verb)
            if len(seen) == number + 1:
                others.append(another_job(objects, 10, 20, 30)[0])

    store = MemoryStore(objects)
    first = job(store, ONE)
    first.save(10)
    store.hook = empties
    with contextlib.suppress(FencedError):
        first.save(30)
    store.hook = None
    last = Job(MemoryStore(objects))
    assert last.resume() == 30
    assert last.value == others[0].value
    with pytest.raises(FencedError):
        first.save(50)


@pytest.mark.parametrize("what", ["its claim", "lineage/", "the root"])
def test_a_job_whose_claim_is_gone_is_told(what: str) -> None:
    objects: dict[str, bytes] = {}
    life = job(MemoryStore(objects), ONE)
    life.save(10)
    for key in [key for key in objects if what == "the root" or key.startswith("lineage/")]:
        del objects[key]
    with pytest.raises(FencedError, match=r"lineage/000001.json, the claim of this job, is gone"):
        life.save(20)
    assert what == "the root" or f"{Folder(10, 1)}/manifest.json" in objects  # nothing was deleted
    assert life.coordinator is not None
    with pytest.raises(FencedError):
        life.coordinator.sweep_partials()


def test_a_higher_number_whose_claim_was_deleted_does_not_decide() -> None:
    """A job restarts twice before it saves; lineage/ is deleted, and another one claims a lower number and saves."""
    objects: dict[str, bytes] = {}
    job(MemoryStore(objects)).save(5)
    job(MemoryStore(objects))
    lost = job(MemoryStore(objects))
    for key in [key for key in objects if key.startswith("lineage/")]:
        del objects[key]
    holder = job(MemoryStore(objects))
    holder.save(6)
    with pytest.raises(FencedError):
        lost.save(10)
    assert folders(MemoryStore(objects)) == [str(Folder(5, 1)), str(Folder(6, 2))]
    last = Job(MemoryStore(objects))
    assert last.resume() == 6
    assert last.value == holder.value


def test_two_that_held_one_number_in_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """lineage/ is deleted between the claim of one and that of the other; the one that lost it saves last, and does
    not look at its claim before."""
    monkeypatch.setattr(Coordinator, "check_claim_before", lambda self: None)
    objects: dict[str, bytes] = {}
    job(MemoryStore(objects)).save(5)
    lost = job(MemoryStore(objects))
    for key in [key for key in objects if key.startswith("lineage/")]:
        del objects[key]
    holder = job(MemoryStore(objects))
    assert (lost.start.held, holder.start.held) != (None, None)
    assert lost.start.held.number == holder.start.held.number == 2  # type: ignore[union-attr]
    holder.save(6)
    with pytest.raises(FencedError):
        lost.save(10)
    assert folders(MemoryStore(objects))[-1] == str(Folder(10, 2))
    last = Job(MemoryStore(objects))
    assert last.resume() == 6
    assert last.value == holder.value
    holder_still = MemoryStore(objects)
    with pytest.raises(UsageError, match="incarnation 3 has started"):
        prune_by_hand(holder_still, Summaries(holder_still), ONE)


def test_a_listing_that_is_none_acknowledges_nothing_and_deletes_nothing() -> None:
    objects: dict[str, bytes] = {}
    store = Lying(objects)
    store.which = lambda number: False
    life = job(store, ONE)
    life.save(10)
    store.which = lambda number: True
    with pytest.raises(CommitUnknownError, match=r"a listing does not show lineage/000001\.json, which is there"):
        life.save(20)
    newer = job(MemoryStore(objects))
    with pytest.raises((FencedError, SaveFailedError)):
        life.save(30)
    assert newer.start.restored is not None
    store.which = lambda number: False
    with pytest.raises(FencedError):
        life.save(40)
    assert str(Folder(10, 1)) in folders(MemoryStore(objects))


@pytest.mark.parametrize("number", range(1, 5))
def test_a_start_does_not_go_by_a_listing_that_is_none(number: int) -> None:
    objects: dict[str, bytes] = {}
    job(MemoryStore(objects)).save(10)
    store = Lying(objects)
    store.which = lambda asked: asked == number
    if number < 3:  # before the claim: the create runs into what the listing hides
        assert Job(store).resume() == 10
    else:
        with pytest.raises(StorageUnavailableError, match="does not show"):
            Job(store).resume()


def test_claiming_ends_where_listings_never_show_what_is_taken(clock: SimpleNamespace) -> None:
    objects = {claim_key(1): b"another's"}
    store = CountingStore(Lying(objects))
    with pytest.raises(
        StorageUnavailableError, match=r"does not show lineage/000001.json.* a folder \(and not a link\)"
    ):
        claim_next(store, Summaries(store), "start", 60.0)
    assert store.counts["list"] < 20
    assert 0 < clock.s <= 60


def test_lineage_as_a_link_ends_as_well(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "run" / "lineage")
    store = open_store(str(tmp_path / "run"))
    with pytest.raises(StorageError):
        Job(store).resume()
    store.close()


@pytest.mark.parametrize("key", ["lineage/4611686018427387903.json", f"{Folder(1, 2**62 - 1)}/receipt"])
def test_no_number_is_left(key: str) -> None:
    store = MemoryStore({key: b"?"})
    with pytest.raises(StorageError, match="no number is left after 4611686018427387903: delete"):
        claim_next(store, Summaries(store), "start", 5.0)


def test_names_that_are_no_claims_are_passed_over() -> None:
    store = MemoryStore({f"lineage/{name}": b"?" for name in ("000001.json.tmp", "7.json", "0000007.json", "x", "a/b")})
    assert claim_next(store, Summaries(store), "start", 5.0).number == 1


# Servers that replace on create


def test_a_server_that_replaces_on_create_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    assert claim_next(MemoryStore(), Summaries(MemoryStore()), "start", 5.0).is_exclusive
    assert "create" not in caplog.text
    store = Replacing()
    assert not claim_next(store, Summaries(store), "start", 5.0).is_exclusive
    assert "cannot create a file only where none is" in caplog.text


def test_racers_on_such_a_server_get_numbers_of_their_own() -> None:
    objects: dict[str, bytes] = {}
    second: list[Held] = []

    def overtakes(verb: str, key: str) -> None:
        if verb == "create" and not second:
            other = Replacing(objects)
            second.append(claim_next(other, Summaries(other), "start", 5.0))

    store = Replacing(objects, hook=overtakes)
    mine = claim_next(store, Summaries(store), "start", 5.0)
    assert (mine.number, second[0].number) == (1, 1)  # the pause of the second was too short, and it is told:
    with pytest.raises(FencedError):
        lineage.check_fence(MemoryStore(objects), second[0])
    lineage.check_fence(MemoryStore(objects), mine)


def test_two_jobs_that_share_a_claim_there_do_not_both_go_on() -> None:
    objects: dict[str, bytes] = {}
    first = job(Replacing(objects), ONE)
    first.save(10)
    claim = objects[claim_key(1)]
    second = job(Replacing(objects), ONE)  # would be 2: made to hold 1, as if it had listed before
    second_claim = objects.pop(claim_key(2))
    objects[claim_key(1)] = second_claim.replace(b'"number":2', b'"number":1')
    with pytest.raises(FencedError):
        first.save(20)  # before the manifest, which would replace another's
    assert f"{Folder(20, 1)}/manifest.json" not in objects
    assert claim != objects[claim_key(1)]
    assert second.start.restored is not None


# Said to have failed


@pytest.mark.parametrize("key", ["", "lineage/", claim_key(1)])
@pytest.mark.parametrize("error", [StorageUnavailableError("503"), StorageAccessError("403"), SystemExit(0)])
def test_what_fails_after_the_manifest_is_unknown(key: str, error: BaseException) -> None:
    inner = MemoryStore()
    store = FaultyStore(inner)
    life = job(store, ONE)
    life.save(10)

    def fails_from_here(verb: str, called: str) -> None:
        if verb == "create":
            for failing in ("list", "get") if key else ("list",):
                store.fail(failing, error, key=key, times=100)

    inner.hook = fails_from_here
    with pytest.raises(CommitUnknownError, match="whether it is current is not known"):
        life.save(20)
    inner.hook = None
    store.faults.clear()
    assert Job(store).resume() == 20


def test_a_manifest_that_is_there_though_creating_it_failed_is_unknown() -> None:
    """A disk that fails when the folder is made durable."""
    store = FaultyStore(MemoryStore())
    life = job(store, ONE)
    life.save(10)
    store.fail("create", StorageError("fsync: EIO"), key="manifest.json", is_after=True)
    with pytest.raises(CommitUnknownError):
        life.save(20)
    store.fail("create", SystemExit(0), key="manifest.json", is_after=True)  # no error of a client's that it knows
    with pytest.raises(CommitUnknownError):
        life.save(30)
    assert Job(store).resume() == 30


def test_a_refusal_after_a_try_without_a_reply_is_unknown() -> None:
    store = FaultyStore(MemoryStore())
    life = job(store, ONE)
    life.save(10)
    store.fail("create", StorageUnavailableError("timed out"), key="manifest.json")
    store.fail("create", StorageAccessError("the token has expired"), key="manifest.json")
    with pytest.raises(CommitUnknownError, match="may be there or not"):
        life.save(20)
    store.fail("create", StorageAccessError("403"), key="manifest.json")
    with pytest.raises(StorageAccessError):  # refused, not reported as missing
        life.save(30)


# What failed saves leave behind


def test_save_after_save_that_fails_leaves_no_more_than_one_behind() -> None:
    store = FaultyStore(MemoryStore())
    life = job(store, ONE)
    life.save(1)
    for step in range(2, 152):
        store.fail("create", StorageAccessError("403"), key="manifest.json")
        with pytest.raises(StorageAccessError):
            life.save(step)
    assert len(list_root(store).folders) == 2
    life.save(200)
    assert set(list_root(store).folders) == {Folder(200, 1)}


def test_a_manifest_whose_name_was_not_made_durable_is_not_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))
    life = job(store, ONE)
    life.save(10)
    fsync, failed = os.fsync, list[int]()

    def fails_once(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if not failed and os.path.exists(f"{path}/manifest.json"):
            failed.append(descriptor)
            raise OSError(errno.EIO, "EIO")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fails_once)
    with pytest.raises(CommitUnknownError, match="may be lost on a power failure"):
        life.save(20)
    life.save(30)
    assert Job(store).resume() == 30
