"""One wrong answer of a storage does not cost a checkpoint: the newest is restored, and nothing of it is deleted."""

from __future__ import annotations

from pathlib import Path

import pytest

import ckptflow
from ckptflow import CheckpointManager, KeepLast
from ckptflow.errors import CorruptCheckpointError, StorageError
from tests.manager.states import Weights, wrap_store
from tests.storage.wrong import LIES, ForgetfulStore, Lie, WrongStore, flip, flip_elsewhere


def make_root(root: Path) -> None:
    weights = Weights()
    with CheckpointManager(root, {"weights": weights}, keep=KeepLast(2)) as manager:
        for step in (10, 20):
            weights.fill(step)
            manager.save(step)


def restored(root: Path, weights: Weights) -> int:
    """The step that a next life restores; then it saves another, and lets the oldest go."""
    with CheckpointManager(root, {"weights": weights}, keep=KeepLast(2)) as manager:
        start = manager.restore_latest()
        assert start is not None
        assert weights.value() == start.step
        weights.fill(30)
        manager.save(30)
    assert [each.step for each in ckptflow.list_checkpoints(root)][-1] == 30
    return start.step


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("key", ["000000000020-i0001/shard", "000000000020-i0001/manifest", "lineage/"])
def test_the_newest_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: Lie, key: str) -> None:
    make_root(tmp_path)
    made = wrap_store(monkeypatch, lambda store: WrongStore(store, lie, key))
    assert restored(tmp_path, Weights()) == 20
    assert made[0].told == 1
    assert [each.step for each in ckptflow.list_checkpoints(tmp_path)] == [20, 30]


@pytest.mark.parametrize("size_bytes", [None, 3])
def test_a_shard_that_one_listing_does_not_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int | None
) -> None:
    make_root(tmp_path)
    for skip in (0, 1, 2):
        with monkeypatch.context() as patch:
            wrap_store(patch, lambda store, skip=skip: ForgetfulStore(store, "20-i0001/shard", size_bytes, skip=skip))  # type: ignore[misc]
            with CheckpointManager(tmp_path, {"weights": Weights()}, read_only=True) as manager:
                start = manager.restore_latest()
                assert start is not None
                assert start.step == 20


def test_damage_is_still_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_root(tmp_path)
    wrap_store(monkeypatch, lambda store: WrongStore(store, flip, "000000000020-i0001/shard", times=10**6))
    assert restored(tmp_path, Weights()) == 10


def test_what_differs_each_time_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is given up, and nothing older is taken."""
    make_root(tmp_path)
    with monkeypatch.context() as patch:
        wrap_store(patch, lambda store: WrongStore(store, flip_elsewhere, "000000000020-i0001/shard", times=10**6))
        with pytest.raises(StorageError, match="3 different results") as raised:
            restored(tmp_path, Weights())
        assert not isinstance(raised.value, CorruptCheckpointError)
    assert restored(tmp_path, Weights()) == 20
