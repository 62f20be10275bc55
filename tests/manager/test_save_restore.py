"""One process saves, another life of it restores: what the manager promises when nothing goes wrong."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import ckptflow
from ckptflow import CheckpointManager, KeepBest, KeepEvery, KeepLast
from ckptflow.commit.retention import Policy
from ckptflow.testing import FaultyStore, LatencyStore
from tests.manager.states import PlainState, Weights, committed, folders, wrap_store


def test_a_life_after_another_goes_on_where_it_was(tmp_path: Path) -> None:
    weights, counter = Weights(), PlainState()
    with CheckpointManager(tmp_path, {"weights": weights, "counter": counter}) as manager:
        assert manager.restore_latest() is None
        for step in (10, 20, 30):
            weights.fill(step)
            counter.seen = {"step": step, "best": float("inf"), "names": ("a", b"\x00")}
            pending = manager.save(step, metrics={"loss": 1 / step}, metadata={"note": "ü"})
            assert pending.step == step
        saved = pending.result()
    assert (saved.step, saved.incarnation, saved.metrics, saved.metadata) == (30, 1, {"loss": 1 / 30}, {"note": "ü"})

    weights, counter = Weights(), PlainState()
    with CheckpointManager(tmp_path, {"weights": weights, "counter": counter}) as manager:
        restored = manager.restore_latest()
        assert restored is not None
        assert (restored.step, restored.incarnation) == (30, 1)
        assert weights.value() == 30
        assert counter.seen == {"step": 30, "best": float("inf"), "names": ("a", b"\x00")}
        weights.fill(40)
        assert manager.save(40).result().incarnation == 2
        assert [c.step for c in manager.checkpoints()] == [10, 20, 30, 40]
    assert [c.step for c in ckptflow.list_checkpoints(tmp_path)] == [10, 20, 30, 40]


def test_what_is_saved_is_the_state_at_the_call(tmp_path: Path) -> None:
    weights = Weights(length=300_000)
    with CheckpointManager(tmp_path, {"weights": weights}, keep=KeepLast(100)) as manager:
        for step in range(8):
            weights.fill(step)
            manager.save(step)
            weights.fill(step + 1000)  # training goes on at once
    for step in range(8):
        with ckptflow.open_checkpoint(tmp_path, step) as checkpoint:
            values = checkpoint.read(checkpoint)
        assert {float(v.flat[0]) for v in values.values()} == {step, step + 1 / 16, step + 2 / 16}


def test_a_keras_model_and_its_optimizer_restore_before_the_first_step(tmp_path: Path) -> None:
    import keras

    def build() -> keras.Model:
        model = keras.Sequential([keras.Input([4]), keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.5),
                                  keras.layers.Dense(1)])  # fmt: skip
        model.compile("adam", "mse")
        return model

    x, y = np.random.default_rng(0).normal(size=(32, 4)), np.zeros((32, 1))
    model = build()
    with CheckpointManager(tmp_path, model) as manager:
        model.fit(x, y, verbose=0)
        manager.save(1)
        model.fit(x, y, verbose=0, shuffle=False)
    expected = model.get_weights()
    model = build()
    with CheckpointManager(tmp_path, model, read_only=True) as manager:
        restored = manager.restore_latest()
        assert restored is not None
        model.fit(x, y, verbose=0, shuffle=False)
    for got, want in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_rollback_holds(tmp_path: Path) -> None:
    weights = Weights()
    with CheckpointManager(tmp_path, {"w": weights}) as manager:
        for step in (1, 2, 3):
            weights.fill(step)
            manager.save(step)
        assert manager.rollback(2).step == 2
        assert weights.value() == 2
        assert [c.step for c in manager.checkpoints()] == [1, 2, 2]
        assert committed(tmp_path)[-2:] == ["000000000002-i0002", "000000000003-i0001"]
    with CheckpointManager(tmp_path, {"w": weights}) as manager:
        restored = manager.restore_latest()
        assert restored is not None
        assert (restored.step, restored.incarnation) == (2, 2)
        weights.fill(3)
        manager.save(3)
        manager.wait()
        # what was cut off stays until the new line has reached its step, and goes then
        assert "000000000003-i0001" not in folders(tmp_path)


def test_the_same_step_saved_twice_has_two_folders_and_counts_once(tmp_path: Path) -> None:
    weights = Weights()
    with CheckpointManager(tmp_path, {"w": weights}, keep=KeepLast(2)) as manager:
        for step, value in ((1, 1), (2, 2), (2, 3)):
            weights.fill(value)
            manager.save(step)
    assert committed(tmp_path) == ["000000000001-i0001", "000000000002-i0001-r2"]
    with CheckpointManager(tmp_path, {"w": weights}) as manager:
        manager.restore_latest()
        assert weights.value() == 3


def test_retention_keeps_what_any_policy_keeps_and_pins(tmp_path: Path) -> None:
    weights = Weights()
    keep: list[Policy] = [KeepLast(2), KeepBest("loss"), KeepEvery(steps=4)]
    with CheckpointManager(tmp_path, {"w": weights}, keep=keep) as manager:
        for step in range(1, 11):
            manager.save(step, metrics={"loss": abs(step - 6)} if step != 3 else {}).result()
            if step == 2:
                manager.pin(2)
        assert [c.step for c in manager.checkpoints()] == [2, 4, 6, 8, 9, 10]
        manager.unpin(2)
        manager.save(11)
    assert [c.step for c in ckptflow.list_checkpoints(tmp_path)] == [4, 6, 8, 10, 11]


def test_a_number_keeps_the_newest_and_best_finds_the_best_of_them(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, {"w": Weights()}, keep=3) as manager:
        assert manager.best("loss") is None
        for step, loss in ((1, 0.0), (2, 2.0), (3, 1.0), (4, 3.0), (4, 4.0)):  # 1 is deleted, the first 4 replaced
            manager.save(step, metrics={"loss": loss, "accuracy": loss})
        manager.wait()
        assert [found.step for found in manager.checkpoints()] == [2, 3, 4]
        found = [manager.best("loss"), manager.best("accuracy", "max"), manager.best("auc", "max")]
        assert [each and (each.step, each.metrics["loss"]) for each in found] == [(3, 1.0), (4, 4.0), None]
        with pytest.raises(ValueError, match='mode="max"'):
            manager.best("accuracy")


def test_fresh_starts_over_and_deletes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = Weights()
    with CheckpointManager(tmp_path, {"w": weights}) as manager:
        weights.fill(5)
        manager.save(5)
    with CheckpointManager(tmp_path, {"w": weights}, fresh=True, keep=KeepLast(1)) as manager:
        with caplog.at_level(logging.WARNING, "ckptflow"):
            assert manager.restore_latest() is None
        assert "fresh=True" in caplog.text
        for step in (1, 9):
            weights.fill(step)
            manager.save(step)
    assert committed(tmp_path) == ["000000000005-i0001", "000000000009-i0002"]
    with CheckpointManager(tmp_path, {"w": weights}, keep=KeepLast(1)) as manager:
        assert getattr(manager.restore_latest(), "step", None) == 9
        manager.save(10)
    assert committed(tmp_path) == ["000000000005-i0001", "000000000010-i0003"]


def test_partial_and_rename_are_for_warm_starts(tmp_path: Path) -> None:
    old = tf.Module()
    old.backbone, old.head = tf.Variable([1.0, 2.0]), tf.Variable([3.0])
    with CheckpointManager(tmp_path / "old", {"model": old}) as manager:
        manager.save(7)
    new = tf.Module()
    new.trunk, new.head = tf.Variable([0.0, 0.0]), tf.Variable([0.0, 0.0])
    with CheckpointManager(tmp_path / "old", {"model": new}, read_only=True) as manager:
        with pytest.raises(ckptflow.StateMismatchError) as caught:
            manager.restore_latest()
        for word in ("model/backbone", "model/trunk", "model/head", "(1)", "(2)"):
            assert word in str(caught.value)
        restored = manager.restore_latest(partial=True, rename={"model/backbone": "model/trunk"})
        assert restored is not None
    np.testing.assert_array_equal(new.trunk.numpy(), [1.0, 2.0])
    np.testing.assert_array_equal(new.head.numpy(), [0.0, 0.0])


def test_tf_train_checkpoint_is_a_state(tmp_path: Path) -> None:
    v = tf.Variable(3.0)
    with CheckpointManager(tmp_path, tf.train.Checkpoint(v=v)) as manager:
        manager.save(1)
    v.assign(0.0)
    with CheckpointManager(tmp_path, tf.train.Checkpoint(v=v)) as manager:
        manager.restore_latest()
    assert float(v) == 3.0


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_any_storage(scheme: str, tmp_path: Path) -> None:
    url = f"memory://run-{tmp_path.name}" if scheme == "memory" else f"file://{tmp_path}"
    weights = Weights()
    with CheckpointManager(url, {"w": weights}) as manager:
        weights.fill(4)
        manager.save(4)
    weights.fill(0)
    with CheckpointManager(url, {"w": weights}) as manager:
        manager.restore_latest()
    assert weights.value() == 4


def test_a_tensor_larger_than_a_shard_and_many_shards(tmp_path: Path) -> None:
    big = tf.Variable(tf.range(500_000, dtype=tf.float32))
    with CheckpointManager(tmp_path, {"big": big}, shard_bytes=2**18, memory_budget_bytes=2**19) as manager:
        saved = manager.save(1).result()
    shards = list(Path(saved.url).glob("shard-*"))
    assert len(shards) >= 8
    assert max(s.stat().st_size for s in shards) <= 2**18
    big.assign(tf.zeros_like(big))
    with CheckpointManager(tmp_path, {"big": big}) as manager:
        manager.restore_latest()
    np.testing.assert_array_equal(big.numpy(), np.arange(500_000, dtype=np.float32))


def test_a_pin_made_during_a_save_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The save under way is about to prune what is being pinned: the pin waits, and is told that it came too late."""
    wrap_store(monkeypatch, lambda store: LatencyStore(store, 0.02))
    with CheckpointManager(tmp_path, {"w": Weights()}, keep=KeepLast(1)) as manager:
        manager.save(1).result()
        manager.save(2)
        with pytest.raises(ckptflow.CheckpointNotFoundError):
            manager.pin(1)
        manager.pin(2)
        manager.save(3).result()
    assert committed(tmp_path) == ["000000000002-i0001", "000000000003-i0001"]


def test_a_failed_save_outlives_a_restore_that_finds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = wrap_store(monkeypatch, FaultyStore)
    with CheckpointManager(tmp_path, {"w": Weights()}) as manager:
        manager.save(1).result()
        stores[0].fail("put", ckptflow.StorageUnavailableError("503"))
        manager.save(2).wait()
        with pytest.raises(ckptflow.CheckpointNotFoundError):
            manager.restore(7)
        with pytest.raises(ckptflow.SaveFailedError):
            manager.wait()
