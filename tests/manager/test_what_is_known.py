"""What is known of how a save ended is said, and what is not known is not said: fenced, unknown, refused."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import ckptflow
from ckptflow import CheckpointManager, SaveFailedError, UsageError
from ckptflow.errors import CommitUnknownError, FencedError, PeerError, StorageFullError, StorageUnavailableError
from ckptflow.format.layout import receipt_name
from ckptflow.storage.opening import open_store
from ckptflow.testing import FaultyStore
from tests.manager.states import Weights, wrap_store
from tests.speed.team import Team
from tests.storage.test_local import run_python


def test_a_full_storage_does_not_hide_that_another_holds_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = wrap_store(monkeypatch, FaultyStore)
    manager = CheckpointManager(tmp_path, {"w": Weights()}, on_save_error="log")
    manager.save(1).result()
    with CheckpointManager(tmp_path, {"w": Weights()}) as other:
        other.restore_latest()
        stores[0].fail("put", StorageFullError("no space"), key="shard")
        manager.save(2).wait()
        with pytest.raises(FencedError) as raised:
            manager.wait()
        assert isinstance(raised.value.__cause__, StorageFullError)
        with pytest.raises(FencedError):
            manager.close()
        other.save(3).result()


@pytest.mark.parametrize("is_there", ["it can be read", "nothing can be read", "it is not there"])
def test_a_worker_whose_receipt_was_not_answered_does_not_say_that_nothing_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: str
) -> None:
    """The chief may have read it, and committed."""
    stores: dict[int, FaultyStore] = {}

    def faulty(url: str) -> FaultyStore:
        return stores.setdefault(threading.get_ident(), FaultyStore(open_store(url)))

    def work(number: int) -> None:
        manager = CheckpointManager(str(tmp_path), {"w": Weights()}, commit_timeout_s=100_000)
        manager.save(1)
        manager.wait()
        if number == 1:
            lost, store, key = StorageUnavailableError("reset"), stores[threading.get_ident()], receipt_name(1, 2)[:-5]
            store.fail("put", lost, key=key, is_after=is_there != "it is not there")
            if is_there == "nothing can be read":
                store.fail("get", lost, key=key, times=100)
        pending = manager.save(2)
        if is_there == "it can be read":
            manager.wait()
            assert pending.result().step == 2
        elif is_there == "it is not there":
            with pytest.raises(SaveFailedError, match="reset"):
                manager.wait()
            assert not pending.is_unknown()
        else:
            with pytest.raises(CommitUnknownError if number else PeerError, match="reset"):
                manager.wait()
            assert pending.is_unknown() == (number == 1)
        manager.close()

    Team(monkeypatch, faulty).run(2, work)
    steps = [found.step for found in ckptflow.list_checkpoints(tmp_path)]
    assert steps == ([1] if is_there == "it is not there" else [1, 2])


def test_after_a_rollback_that_failed_while_it_claimed_the_program_restores_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its claim is there, and fences the incarnation before."""
    stores = wrap_store(monkeypatch, FaultyStore)
    manager = CheckpointManager(tmp_path, {"w": Weights()})
    for step in (10, 20):
        manager.save(step)
    manager.wait()
    create = stores[0].create

    def fails_second(key: str, data: memoryview) -> None:
        create(key, data)
        stores[0].fail("create", StorageFullError("no space"), key="lineage/000002")

    monkeypatch.setattr(stores[0], "create", fails_second)
    with pytest.raises(StorageFullError):
        manager.rollback(10)
    monkeypatch.setattr(stores[0], "create", create)
    stores[0].faults.clear()
    with pytest.raises(UsageError, match="restore_latest"):
        manager.save(30)
    assert manager.restore_latest().step == 20  # type: ignore[union-attr]
    manager.save(30).result()
    manager.close()


def test_a_save_while_the_interpreter_ends_is_refused_in_words(tmp_path: Path) -> None:
    script = """
        import atexit, sys
        from ckptflow import CheckpointManager, UsageError
        from tests.manager.states import Weights
        manager = CheckpointManager(sys.argv[1], {"w": Weights()})
        manager.save(1).result()

        def late():
            try:
                manager.save(2)
            except UsageError as error:
                print(error)

        atexit.register(late)
    """
    assert "the interpreter is ending" in run_python(script, str(tmp_path))
