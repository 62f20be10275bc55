"""`restore(step)` only reads: storage is as it was until a save goes on from it; `rollback(step)` cuts off at once."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import ckptflow
from ckptflow import CheckpointManager, KeepLast, StepOrderError, UsageError
from ckptflow.commit.catalog import Summaries
from ckptflow.commit.prune import prune_by_hand
from ckptflow.errors import FencedError, SaveFailedError, StorageFullError, StorageUnavailableError
from ckptflow.events import Claimed, Event, Restored
from ckptflow.storage.opening import open_store
from ckptflow.storage.store import Store
from ckptflow.storage.wrappers import StoreWrapper
from ckptflow.testing import FaultyStore
from tests.commit.roots import Job
from tests.manager.states import Weights, committed, wrap_store
from tests.speed.team import Team


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Steps 1, 2 and 3 of one run attempt."""
    weights = Weights()
    with CheckpointManager(tmp_path, {"w": weights}) as manager:
        for step in (1, 2, 3):
            weights.fill(step)
            manager.save(step)
    return tmp_path


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def newest(root: Path) -> tuple[int, int]:
    found = ckptflow.list_checkpoints(root)[-1]
    return found.step, found.incarnation


@pytest.mark.parametrize("step", [1, 3])
def test_it_changes_nothing_that_is_there(root: Path, step: int) -> None:
    weights, before, told = Weights(), content(root), list[Event]()
    with CheckpointManager(root, {"w": weights}, on_event=told.append) as manager:
        assert manager.restore(step).step == step
        assert weights.value() == step
        assert f"step {step}" in repr(manager)
        manager.wait()
    assert content(root) == before
    assert [type(event) for event in told] == [Restored]
    with CheckpointManager(root, {"w": weights}) as manager:
        assert getattr(manager.restore_latest(), "step", None) == 3
    assert weights.value() == 3


def test_the_first_save_goes_on_from_it(root: Path) -> None:
    weights, told = Weights(), list[Event]()
    with CheckpointManager(root, {"w": weights}, on_event=told.append) as manager:
        manager.restore(1)
        with pytest.raises(StepOrderError, match="below step 1"):
            manager.save(0)
        assert committed(root)[-1] == "000000000003-i0001"
        weights.fill(2)
        assert manager.save(2).result().incarnation == 2
        assert [c.step for c in manager.checkpoints()] == [1, 2]
        weights.fill(5)
        manager.save(5)
    assert [(event.incarnation, event.reason) for event in told if isinstance(event, Claimed)] == [(2, "rollback")]
    assert [c.step for c in ckptflow.list_checkpoints(root)] == [1, 2, 5]
    assert not (root / "000000000001-i0002").exists()
    with CheckpointManager(root, {"w": weights}) as manager:
        assert getattr(manager.restore_latest(), "step", None) == 5
    assert weights.value() == 5


def test_of_the_newest_nothing_is_cut_off(root: Path) -> None:
    told = list[Event]()
    with CheckpointManager(root, {"w": Weights()}, on_event=told.append) as manager:
        manager.restore(3)
        manager.save(4)
    assert [event.reason for event in told if isinstance(event, Claimed)] == ["resume"]
    assert [c.step for c in ckptflow.list_checkpoints(root)] == [1, 2, 3, 4]


def test_a_rollback_cuts_off_at_once(root: Path) -> None:
    weights = Weights()
    with CheckpointManager(root, {"w": weights}) as manager:
        assert manager.rollback(2).step == 2
        assert newest(root) == (2, 2)
    with CheckpointManager(root, {"w": weights}, read_only=True) as reader:
        with pytest.raises(UsageError, match="read_only=True"):
            reader.rollback(1)
        assert reader.restore(1).step == 1


def test_a_live_manager_looks_at_an_older_one_and_goes_on_with_the_newest(root: Path) -> None:
    weights = Weights()
    with CheckpointManager(root, {"w": weights}) as manager:
        manager.restore_latest()
        weights.fill(4)
        manager.save(4)
        for step in (1, 2):
            assert manager.restore(step).step == step
            assert weights.value() == step
        assert getattr(manager.restore_latest(), "step", None) == 4
        assert weights.value() == 4
        manager.save(5)
    assert [c.step for c in ckptflow.list_checkpoints(root)] == [1, 2, 3, 4, 5]


def test_a_live_manager_goes_back_with_its_next_save(root: Path) -> None:
    with CheckpointManager(root, {"w": Weights()}) as manager:
        manager.restore_latest()
        manager.save(4).result()
        manager.restore(1)
        manager.save(2).result()
        assert newest(root) == (2, 3)
        assert [c.step for c in manager.checkpoints()] == [1, 2]


def starts(other: CheckpointManager) -> None:
    other.restore_latest()


def starts_and_saves(other: CheckpointManager) -> None:
    other.restore_latest()
    other.save(10).result()


@pytest.mark.parametrize("does", [starts, starts_and_saves])
@pytest.mark.parametrize("is_live", [False, True])
def test_a_job_that_has_started_since_keeps_the_root(
    root: Path, does: Callable[[CheckpointManager], None], is_live: bool
) -> None:
    manager = CheckpointManager(root, {"w": Weights()})
    if is_live:
        manager.restore_latest()
        manager.save(4).result()
    manager.restore(1)
    with CheckpointManager(root, {"w": Weights()}) as other:
        does(other)
        before = content(root)
        for _ in range(2):
            with pytest.raises(FencedError, match=r"since restore\(1\) has read it, another job has started"):
                manager.save(5)
        assert content(root) == before
        if is_live:  # it is fenced, and a further look is no way back
            manager.restore(2)
            with pytest.raises(FencedError, match="another job has started"):
                manager.save(5)
        other.save(11).result()
    assert manager.rollback(3).step == 3
    manager.save(4).result()
    manager.close()
    assert newest(root)[0] == 4


def test_what_another_has_saved_since_is_not_cut_off(root: Path) -> None:
    with CheckpointManager(root, {"w": Weights()}) as other:
        other.restore_latest()
        with CheckpointManager(root, {"w": Weights()}) as manager:
            manager.restore(1)
            other.save(4).result()
            before = content(root)
            with pytest.raises(FencedError, match="the newest checkpoint was 000000000003-i0001 and is 000000000004"):
                manager.save(2)
            assert content(root) == before
        other.save(5).result()  # nor was it fenced


def test_a_root_that_was_emptied_since_is_not_begun_anew(root: Path) -> None:
    with CheckpointManager(root, {"w": Weights()}) as manager:
        manager.restore(1)
        for path in root.iterdir():
            shutil.rmtree(path)
        for _ in range(2):
            with pytest.raises(FencedError, match="the root or lineage/ was deleted"):
                manager.save(2)
    assert content(root) == {}


class Once(StoreWrapper):
    """`happens` before the call of a number, of those of the thread that trains; the first is 0."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.left: int | None = None
        self.happens: Callable[[], None] = lambda: None
        self._thread = threading.get_ident()

    def at(self, number: int, happens: Callable[[], None]) -> None:
        self.left, self.happens = number, happens

    def run(self, verb: str, key: str, call: Callable[[], Any]) -> Any:
        if self.left is not None and threading.get_ident() == self._thread:
            self.left -= 1
            if self.left < 0:
                self.left = None
                self.happens()
        return call()


def raises(error: BaseException) -> Callable[[], None]:
    def do() -> None:
        raise error

    return do


@pytest.mark.parametrize("error", [StorageFullError("no space"), KeyboardInterrupt()], ids=["fault", "Ctrl-C"])
@pytest.mark.parametrize(
    "options", [{}, {"fresh": True}, {"on_save_error": "log"}, {"is_live": True}], ids=["plain", "fresh", "log", "live"]
)
def test_at_whatever_call_it_fails_the_save_is_tried_again(
    root: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, options: dict[str, Any]
) -> None:
    is_live = "is_live" in options
    options = {name: value for name, value in options.items() if name != "is_live"}
    looks = "fresh" not in options  # which has nothing to go on from
    stores = wrap_store(monkeypatch, Once)
    has_failed, number = True, 0
    while has_failed:
        here = root.with_name(f"{root.name}-{number}")
        shutil.copytree(root, here)
        with CheckpointManager(here, {"w": Weights()}, **options) as manager:
            if is_live:
                manager.restore_latest()
            if looks:
                manager.restore(1)
            stores[-1].at(number, raises(error))
            try:
                manager.save(2)
                has_failed = False
            except type(error):
                manager.save(2)
            stores[-1].left = None
            manager.wait()
            assert [c.step for c in manager.checkpoints()] == [1, 2][not looks :]
        assert looks or set(committed(root)) <= set(committed(here))
        number += 1
    assert number > 5


@pytest.mark.parametrize("verb", ["restore", "rollback"])
def test_one_that_is_to_start_over_takes_up_nothing(root: Path, verb: str) -> None:
    """What was there stays until it is deleted by hand: a save that went on from it would delete by `keep`."""
    weights, before = Weights(), committed(root)
    weights.fill(7)
    with CheckpointManager(root, {"w": weights}, fresh=True, keep=1) as manager:
        for begins in (lambda: None, manager.restore_latest):  # which only claims
            begins()
            with pytest.raises(UsageError, match=r"step 2 is not.*fresh=True.*leave fresh out.*read_only=True"):
                getattr(manager, verb)(2)
            assert weights.value() == 7
            assert committed(root) == before
        for step in (4, 5, 6):
            manager.save(step)
    assert committed(root) == [*before, "000000000006-i0002"]


def test_fresh_is_used_up_by_a_checkpoint_of_its_own(root: Path) -> None:
    with CheckpointManager(root, {"w": Weights()}, fresh=True) as manager:
        for step in (4, 5):
            manager.save(step)
        assert manager.restore(4).step == 4
        assert manager.rollback(4).step == 4
        manager.save(6)
    assert [c.step for c in ckptflow.list_checkpoints(root)] == [4, 6]
    with CheckpointManager(root, {"w": Weights()}, fresh=True, read_only=True) as reader:
        assert reader.restore(4).step == 4


def test_of_two_workers_that_are_to_start_over_none_reads(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(number: int) -> None:
        weights = Weights()
        weights.fill(7)
        with CheckpointManager(str(root), {"w": weights}, fresh=True) as manager:
            for verb in (manager.restore, manager.rollback):
                with pytest.raises(UsageError, match="leave fresh out"):
                    verb(2)
            assert weights.value() == 7
            manager.save(4)
            manager.wait()
            assert manager.restore(4).step == 4

    before = committed(root)
    Team(monkeypatch).run(2, work)
    assert committed(root) == [*before, "000000000004-i0002"]


def test_a_rollback_that_failed_leaves_what_was_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, stores = Weights(), wrap_store(monkeypatch, FaultyStore)
    with CheckpointManager(root, {"w": weights}) as manager:
        manager.restore(1)
        stores[0].fail("list", StorageUnavailableError("503"), key="lineage")
        with pytest.raises(StorageUnavailableError):
            manager.rollback(2)
        assert weights.value() == 1
        manager.save(2).result()
        assert [c.step for c in manager.checkpoints()] == [1, 2]


@pytest.mark.parametrize("does", [starts, starts_and_saves])
def test_a_save_that_failed_and_a_further_look_end_no_job_that_has_started_since(
    root: Path, monkeypatch: pytest.MonkeyPatch, does: Callable[[CheckpointManager], None]
) -> None:
    stores = wrap_store(monkeypatch, FaultyStore)
    manager = CheckpointManager(root, {"w": Weights()})
    manager.restore_latest()
    with CheckpointManager(root, {"w": Weights()}) as other:
        does(other)
        manager.restore(1)
        stores[0].fail("list", StorageUnavailableError("503"))
        with pytest.raises(StorageUnavailableError):
            manager.save(2)
        manager.restore(1)
        with pytest.raises(FencedError, match="another job has started"):
            manager.save(2)
        other.save(11).result()
    manager.close()


def test_refused_after_its_claim_it_says_whom_that_ends(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = wrap_store(monkeypatch, Once)
    other = CheckpointManager(root, {"w": Weights()})
    other.restore_latest()
    with CheckpointManager(root, {"w": Weights()}) as manager:
        manager.restore(1)
        create = stores[-1].create

        def commits_first(key: str, data: memoryview) -> None:
            if key == "lineage/000003.json":
                monkeypatch.setattr(stores[-1], "create", create)
                other.save(4).result()
            create(key, data)

        monkeypatch.setattr(stores[-1], "create", commits_first)
        for _ in range(2):
            with pytest.raises(FencedError, match=r"Claim 3 of this process was left behind.* start that job again"):
                manager.save(2)
    with pytest.raises(FencedError):
        other.save(5).result()
    with pytest.raises(FencedError):
        other.close()
    with CheckpointManager(root, {"w": Weights()}) as again:
        assert getattr(again.restore_latest(), "step", 0) >= 4  # 5 is there, and was not acknowledged
        again.save(6)
    assert {c.step for c in ckptflow.list_checkpoints(root)} >= {4, 6}


def test_after_a_first_save_that_failed_the_next_one_is_the_rollback(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = wrap_store(monkeypatch, FaultyStore)
    with CheckpointManager(root, {"w": Weights()}) as manager:
        manager.restore(1)
        stores[0].fail("put", StorageUnavailableError("503"), key="shard")
        manager.save(2)
        with pytest.raises(SaveFailedError):
            manager.wait()
        assert newest(root) == (3, 1)  # a claim alone decides nothing
        manager.save(3).result()
        assert [(c.step, c.incarnation) for c in manager.checkpoints()] == [(1, 1), (3, 2)]


def test_what_was_pruned_since_is_all_in_memory(root: Path) -> None:
    weights = Weights()
    with CheckpointManager(root, {"w": weights}) as manager:
        manager.restore(1)
        with closing(open_store(str(root))) as store:
            prune_by_hand(store, Summaries(store), [KeepLast(1)])
        assert committed(root) == ["000000000003-i0001"]
        manager.save(2).result()
        assert [c.step for c in manager.checkpoints()] == [2]
    with CheckpointManager(root, {"w": weights}) as manager:
        assert getattr(manager.restore_latest(), "step", None) == 2
    assert weights.value() == 1


def test_two_workers_take_it_up_together(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(number: int) -> None:
        weights = Weights()
        with CheckpointManager(str(root), {"w": weights}) as manager:
            manager.restore(1)
            assert weights.value() == 1
            weights.fill(2)
            manager.save(2)
            manager.wait()

    Team(monkeypatch).run(2, work)
    assert newest(root) == (2, 2)


def test_of_two_workers_none_takes_it_up_where_another_job_has_started(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(number: int) -> None:
        with CheckpointManager(str(root), {"w": Weights()}) as manager:
            manager.restore(1)
            manager.wait()
            if number == 0:
                with closing(open_store(str(root))) as store:
                    Job(store).begin_anew(fresh=True)
            for _ in range(2):
                with pytest.raises(FencedError, match="another job has started"):
                    manager.save(2)

    Team(monkeypatch).run(2, work)
    assert newest(root) == (3, 1)
