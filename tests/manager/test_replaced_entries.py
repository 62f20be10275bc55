"""What the program hands over is looked at again by each save, and each name by each restore."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import ckptflow
from ckptflow import CheckpointManager, PerWorker, StateMismatchError, UnsupportedStateError, UsageError
from tests.manager.states import PlainState


def batches(first: int = 0) -> Any:
    iterator = iter(tf.data.Dataset.range(100))
    for _ in range(first):
        next(iterator)
    return iterator


def test_an_entry_that_is_replaced_is_saved_as_it_is_now(tmp_path: Path) -> None:
    """As a new iterator is, for each epoch."""
    state: dict[str, Any] = {"batches": batches(9), "own": PerWorker(batches(9))}
    with CheckpointManager(tmp_path, state) as manager:
        manager.save(1)
        state["batches"] = batches(3)
        state["own"].obj = batches(4)
        manager.save(2)
    state = {"batches": batches(), "own": PerWorker(batches())}
    with CheckpointManager(tmp_path, state) as manager:
        manager.restore_latest()
        assert int(next(state["batches"])) == 3
        assert int(next(state["own"].obj)) == 4
        manager.restore(1)
        assert int(next(state["batches"])) == 9


def test_names_stay_those_that_the_manager_was_made_with(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Else the program's next start, which makes its manager with the old ones, could not restore what it saved."""
    state: dict[str, Any] = {"a": tf.Variable(1.0)}
    with CheckpointManager(tmp_path, state) as manager:
        manager.save(1)
        state["loss"], state[" a "], state[3] = tf.constant(1.0), 1, 1  # type: ignore[index]
        manager.save(2)
        state.clear()
        manager.save(3)
        manager.save(4)
    said = [record.getMessage() for record in caplog.records if "the manager was made" in record.getMessage()]
    told = {text.split(",")[0] for text in said}
    assert told == {"state['loss'] was added", "state['3'] was added", "state['a'] was removed"}
    assert len(said) == 3
    with CheckpointManager(tmp_path, {"a": tf.Variable(0.0)}) as manager:
        restored = manager.restore_latest()
    assert restored is not None
    assert restored.step == 4


def test_two_python_states_that_become_one_are_refused(tmp_path: Path) -> None:
    state = {"sampler": PlainState(), "old": PlainState()}
    with CheckpointManager(tmp_path, state) as manager:
        manager.save(1)
    with (
        CheckpointManager(tmp_path, {"sampler": PlainState()}, read_only=True) as manager,
        pytest.raises(UsageError, match=r"rename makes both '(sampler|old)' and '(sampler|old)' into 'sampler'"),
    ):
        manager.restore_latest(rename={"old": "sampler"})


class Holder(tf.Module):  # type: ignore[misc]
    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held = held


def test_a_weight_is_not_left_out_because_a_metric_had_its_name(tmp_path: Path) -> None:
    import keras

    metric = keras.metrics.Mean(name="held")
    metric.update_state(3.0)
    with CheckpointManager(tmp_path, {"s": Holder(metric)}) as manager:
        manager.save(1)
        (name,) = [each.name for each in manager.session.live._tree.leaves if each.name.endswith("total")]
    entry, *path = name.split("/")
    weight = tf.Variable(tf.zeros([7]))
    inner: Any = weight
    for part in reversed(path):
        inner = {part: inner}
    with (
        CheckpointManager(tmp_path, {entry: inner}, read_only=True) as manager,
        pytest.raises(StateMismatchError, match=r"shape \(\) in the checkpoint, \(7\) in the state"),
    ):
        manager.restore_latest()


def test_what_was_built_for_a_damaged_checkpoint_does_not_keep_an_older_one_out(tmp_path: Path) -> None:
    """The optimizer had no slots yet when the older one was saved."""
    import keras

    def made() -> tuple[Any, Any]:
        keras.utils.set_random_seed(1)
        return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), keras.optimizers.Adam()

    model, optimizer = made()
    with CheckpointManager(tmp_path, {"model": model, "optimizer": optimizer}) as manager:
        first = [weight.numpy() for weight in model.weights]
        manager.save(0)
        optimizer.build(model.trainable_variables)
        model.set_weights([weight + 1 for weight in first])
        manager.save(1000)
    (shard,) = tmp_path.glob("000000001000-*/*.safetensors")
    shard.unlink()
    model, optimizer = made()
    with CheckpointManager(tmp_path, {"model": model, "optimizer": optimizer}) as manager:
        restored = manager.restore_latest()
    assert restored is not None
    assert restored.step == 0
    for weight, value in zip(model.weights, first, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)


def test_a_layer_that_an_older_checkpoint_lacks_is_missed_after_damage_too(tmp_path: Path) -> None:
    """It would keep the random values of the build, and be saved with them."""
    import keras

    def made(*names: str) -> dict[str, Any]:
        return {"model": keras.Sequential([keras.layers.Dense(2, name=name) for name in names])}

    state = made("a")
    state["model"].build((None, 2))
    with CheckpointManager(tmp_path, state) as manager:
        manager.save(10)
    state = made("a", "head")
    state["model"].build((None, 2))
    with CheckpointManager(tmp_path, state) as manager:
        manager.restore_latest(partial=True)
        manager.save(20)
    (shard,) = tmp_path.glob("000000000020-*/*.safetensors")
    shard.unlink()
    before = sorted(tmp_path.glob("0*/*"))
    with (
        CheckpointManager(tmp_path, made("a", "head")) as manager,
        pytest.raises(StateMismatchError, match="model/head/kernel: in the state, not in the checkpoint"),
    ):
        manager.restore_latest()
    assert sorted(tmp_path.glob("0*/*")) == before


def test_what_is_refused_is_refused_again(tmp_path: Path) -> None:
    """What the first try has built is not taken for what another checkpoint had."""
    import keras

    def made(**options: Any) -> dict[str, Any]:
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        return {"model": model, "optimizer": keras.optimizers.Adam(**options)}

    state = made()
    state["optimizer"].build(state["model"].trainable_variables)
    with CheckpointManager(tmp_path, state) as manager:
        manager.save(1)
    manager = CheckpointManager(tmp_path, made(use_ema=True), read_only=True)
    for _ in range(3):
        with pytest.raises(StateMismatchError, match=r"average.*: in the state, not in the checkpoint"):
            manager.restore_latest()
    manager.close()


def test_an_entry_that_is_refused_is_refused_by_the_next_save_too(tmp_path: Path) -> None:
    state: dict[str, Any] = {"a": tf.Variable(1.0)}
    manager = CheckpointManager(tmp_path, state)
    manager.save(1)
    state["a"] = Holder({("x", frozenset("ab")): tf.Variable(2.0)})
    for step in (2, 3):
        with pytest.raises(UnsupportedStateError, match="key of type frozenset"):
            manager.save(step)
    state["a"] = tf.Variable(4.0)
    manager.save(4)
    manager.close()
    assert [checkpoint.step for checkpoint in ckptflow.list_checkpoints(tmp_path)][-1] == 4


def test_python_state_that_an_older_checkpoint_lacks_is_missed_after_damage_too(tmp_path: Path) -> None:
    """It was not built for the damaged one: it was there."""
    with CheckpointManager(tmp_path, {"v": tf.Variable(1.0)}) as manager:
        manager.save(2)
    with CheckpointManager(tmp_path, {"v": tf.Variable(1.0), "py": PlainState()}) as manager:
        manager.restore_latest(partial=True)
        manager.save(3)
    (shard,) = tmp_path.glob("000000000003-*/*.safetensors")
    shard.unlink()
    with (
        CheckpointManager(tmp_path, {"v": tf.Variable(0.0), "py": PlainState()}) as manager,
        pytest.raises(StateMismatchError, match="py: in the state, not in the checkpoint"),
    ):
        manager.restore_latest()
