"""Metrics of a fit: when they are known, and what `KeepBest` has of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from ckptflow import KeepBest, KeepLast
from tests.callbacks.jobs import BATCHES, arrays, keras_of
from tests.callbacks.test_fit import Job


def test_validation_feeds_keep_best(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Job(keras_of(False), tmp_path) as job:
        job.manager.session.policies = (KeepBest("val_loss", n=2),)
        history = job.fit(every={"every_epochs": 1}, epochs=4, validation_data=arrays())
        losses = history.history["val_loss"]
        best = sorted(range(4), key=lambda epoch: losses[epoch])[:2]
        assert {(epoch + 1) * BATCHES for epoch in best} <= set(job.steps())
        assert len(job.steps()) <= 3
    assert "KeepBest" not in caplog.text


def test_a_metric_that_no_save_has_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Job(keras_of(False), tmp_path) as job:
        job.manager.session.policies = (KeepBest("val_loss"), KeepLast(1))
        job.fit(epochs=1)
    assert caplog.text.count("KeepBest('val_loss'): the checkpoint of step 4 has no such metric") == 1
    assert "give every_epochs as well" in caplog.text


def test_steps_for_safety_and_epochs_for_the_best(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Job(keras_of(False), tmp_path) as job:
        job.manager.session.policies = (KeepBest("val_loss"), KeepLast(3))
        history = job.fit(every={"every_steps": 4, "every_epochs": 1}, epochs=4, validation_data=arrays())
        losses = history.history["val_loss"]
        best = (losses.index(min(losses)) + 1) * BATCHES
        found = {checkpoint.step: checkpoint.metrics for checkpoint in job.manager.checkpoints()}
        assert found[best]["val_loss"] == min(losses)
        assert sorted({best, *found}) == sorted({best, 36, 40, 44})
        job.manager.session.policies = (KeepBest("val_los", mode="min"),)
        assert "has no such metric" not in caplog.text
        job.fit(every={"every_steps": 4, "every_epochs": 1}, epochs=5, validation_data=arrays())
    assert caplog.text.count("has no such metric") == 1
    assert "Correct the name; a metric of validation needs validation_data= in fit" in caplog.text


def test_what_is_no_finite_number_is_no_metric(tmp_path: Path) -> None:
    from ckptflow.callbacks.others import finite_metrics

    logs = {"a": 1, "b": np.float32(2), "c": tf.constant(3.0), "d": float("nan"), "e": float("inf"), "f": "text"}
    assert finite_metrics({**logs, "g": np.zeros(2), "h": None}) == {"a": 1.0, "b": 2.0, "c": 3.0}
    assert finite_metrics(None) == {}
