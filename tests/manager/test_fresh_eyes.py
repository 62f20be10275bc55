"""What a stranger may do to it: odd models, odd URLs, odd orders of calls."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import ckptflow
from ckptflow import CheckpointManager, KeepBest, StepOrderError, UnsupportedStateError
from ckptflow.format.manifest import MAX_MANIFEST_BYTES
from tests.manager.states import PlainState, Weights
from tests.processes import run_python


@pytest.mark.parametrize("url", [Path("s3://bucket/run"), "s3:/bucket/run", "gs:bucket/run", "file:/data/run", ""])
def test_a_url_that_has_lost_a_slash_is_no_folder_here(
    url: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for use in (lambda: CheckpointManager(url, {"w": Weights()}), lambda: ckptflow.list_checkpoints(url)):
        with pytest.raises(ValueError, match=r"lacks a slash|is empty"):
            use()
    assert not list(tmp_path.iterdir())
    with CheckpointManager("./s3:/folder", {"w": Weights()}) as manager:
        manager.save(1)
    assert ckptflow.list_checkpoints("./s3:/folder")[0].step == 1


def test_what_is_printed_says_what_it_is(tmp_path: Path) -> None:
    """On one line, without tensors and without credentials."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    root = repr(str(tmp_path))
    with CheckpointManager(tmp_path, {"model": model}) as manager:
        assert repr(manager) == f"<CheckpointManager {root}: worker 0 of 1, nothing restored or saved yet>"
        saved = manager.save(7, metrics={"loss": 0.5}, metadata={"long": "x" * 1000}).result()
        named = f"<CheckpointManager {root}: worker 0 of 1, step 7>"
        assert repr(manager) == named
        with ckptflow.PreemptionWatcher(manager) as watcher:
            assert repr(watcher) == f"<PreemptionWatcher of {named}: not told to leave>"
        callback = ckptflow.CheckpointCallback(manager, every_steps=5)
        assert repr(callback) == f"CheckpointCallback({named}, every_steps=5)"
    assert repr(manager) == f"{named[:-1]}, closed>"
    with CheckpointManager(tmp_path, {"model": model}, read_only=True) as manager:
        assert repr(manager).endswith("nothing restored or saved yet, read-only>")
    assert repr(ckptflow.PerWorker(np.zeros(1000))) == "PerWorker(ndarray)"
    what = f"{saved.url!r}: step 7"
    made = saved.created_at.isoformat(" ", "seconds")
    assert repr(saved) == f"<Checkpoint {what}, {saved.size_bytes:,} bytes, {made}, {{'loss': 0.5}}>"
    with ckptflow.open_checkpoint(tmp_path) as checkpoint:
        assert repr(checkpoint) == f"<OpenCheckpoint {what}, 2 tensors, {saved.size_bytes:,} bytes>"


def test_a_failed_save_is_heard_of_without_close(tmp_path: Path) -> None:
    code = f"""
import logging, shutil, tensorflow as tf, ckptflow
manager = ckptflow.CheckpointManager({str(tmp_path / "run")!r}, {{"v": tf.Variable(1.0)}})
manager.save(1).wait()
shutil.rmtree({str(tmp_path / "run")!r})
manager.save(2)
"""
    ended = run_python("-c", code)
    assert "000000000002-i0001 was not saved" in ended.stderr


def test_what_get_state_raises_leaves_no_trace(tmp_path: Path) -> None:
    class Broken(PlainState):
        def get_state(self) -> Any:
            if self.seen == "broken":
                raise RuntimeError("no state today")
            return super().get_state()

    state = Broken()
    with CheckpointManager(tmp_path, {"p": state}) as manager:
        manager.save(1)
        state.seen = "broken"
        with pytest.raises(RuntimeError, match="no state today"):
            manager.save(7)
        state.seen = "well"
        manager.save(2)
        with pytest.raises(StepOrderError, match="below step 2"):
            manager.save(1)
    assert [c.step for c in ckptflow.list_checkpoints(tmp_path)] == [1, 2]


def test_fresh_starts_over_once(tmp_path: Path) -> None:
    weights = Weights()
    weights.fill(5)
    with CheckpointManager(tmp_path, {"w": weights}) as manager:
        manager.save(5)
    with CheckpointManager(tmp_path, {"w": weights}, fresh=True) as manager:
        assert manager.restore_latest() is None
        assert manager.restore_latest() is None  # nothing of its own yet, so not what was there before either
        for step in (1, 2):
            weights.fill(step)
            manager.save(step)
        weights.fill(9)
        restored = manager.restore_latest()
        assert restored is not None
        assert (restored.step, weights.value()) == (2, 2)
        assert [c.step for c in manager.checkpoints()] == [1, 2]


def test_a_restore_in_part_says_what_it_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with CheckpointManager(tmp_path, {"model": tf.Variable(3.0)}) as manager:
        manager.save(5)
    other = tf.Variable(0.0)
    with CheckpointManager(tmp_path, {"net": other}, read_only=True) as manager:
        with caplog.at_level(logging.WARNING, "ckptflow"):
            assert manager.restore_latest(partial=True) is not None
    assert "0 tensors of it; left as they were: net; not used: model" in caplog.text


@pytest.mark.parametrize("metrics", [{"loss": 10**400}, {"loss\ud800": 1.0}])
def test_metrics_that_no_manifest_can_hold(metrics: dict[str, float], tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, {"w": Weights()}) as manager:
        with pytest.raises(ValueError, match="loss"):
            manager.save(1, metrics=metrics)
        manager.save(1)


def test_metadata_too_large_for_a_manifest_is_refused_by_the_save(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, {"w": Weights()}) as manager:
        manager.save(1)
        with pytest.raises(UnsupportedStateError, match=r"metadata takes .* bytes of JSON"):
            manager.save(2, metadata="x" * MAX_MANIFEST_BYTES)
        manager.save(3).result()
    assert [c.step for c in ckptflow.list_checkpoints(tmp_path)] == [1, 3]
    assert not (tmp_path / "000000000002-i0001").exists()


def test_a_policy_that_sorts_what_it_is_given_mixes_up_no_other(tmp_path: Path) -> None:
    def sorts(checkpoints: Any) -> list[bool]:
        checkpoints.sort(key=lambda checkpoint: -checkpoint.step)
        return [False] * len(checkpoints)

    with CheckpointManager(tmp_path, {"w": Weights()}, keep=[sorts, KeepBest("loss")]) as manager:
        for step in (1, 2, 3):
            manager.save(step, metrics={"loss": step})
    assert {1, 3} <= {c.step for c in ckptflow.list_checkpoints(tmp_path)}


def test_weights_without_a_name_or_an_attribute_keep_theirs_after_a_rebuild(tmp_path: Path) -> None:
    """Keras numbers them by all that was ever made before; an attribute called "history" is one like any other."""

    class Odd(keras.layers.Layer):  # type: ignore[misc]
        def build(self, _: Any) -> None:
            made = [self.add_weight(shape=(2,), initializer="normal") for _ in range(2)]
            self.compute: Callable[[Any], Any] = lambda inputs: inputs * made[0] + made[1]
            self.history = self.add_weight(shape=(2,), initializer="normal")

        def call(self, inputs: Any) -> Any:
            return self.compute(inputs) + self.history

    def build() -> keras.Model:
        return keras.Sequential([keras.Input((2,)), Odd()])

    model = build()
    with CheckpointManager(tmp_path, model) as manager:
        manager.save(1)
    with ckptflow.open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint) == ["model/odd/history", "model/odd/variable", "model/odd/variable_1"]
    rebuilt = build()
    with CheckpointManager(tmp_path, rebuilt, read_only=True) as manager:
        manager.restore_latest()
    for got, want in zip(rebuilt.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(got, want)
