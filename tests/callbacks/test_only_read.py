"""`restore(step)` before a fit: the fit goes on from there, and the root changes with its first save, not before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.callbacks.jobs import BATCH, BATCHES, keras_of
from tests.callbacks.test_fit import Interrupt, Job, interrupt_at


@pytest.fixture(params=[False, True], ids=["keras3", "tf_keras"])
def keras(request: pytest.FixtureRequest) -> Any:
    return keras_of(request.param)


def test_a_fit_goes_on_from_there_in_a_new_process(keras: Any, tmp_path: Path) -> None:
    with Job(keras, tmp_path) as job:
        job.fit(epochs=2)
        expected, before = job.seen(), job.steps()
    with Job(keras, tmp_path) as job:
        job.manager.restore(8)
        assert job.seen().sum() == 8 * BATCH
        assert job.steps() == before
        job.fit(epochs=2)
        assert job.batches == [2 * BATCHES - 8]
        np.testing.assert_array_equal(job.seen(), expected)
        assert {checkpoint.incarnation for checkpoint in job.manager.checkpoints() if checkpoint.step > 8} == {2}
        job.fit(epochs=1)  # the next one, not that one again
        assert job.batches[-1] == BATCHES


def test_one_that_is_interrupted_before_it_saves_changes_nothing_and_begins_there_again(
    keras: Any, tmp_path: Path
) -> None:
    with Job(keras, tmp_path) as job:
        job.fit(epochs=2)
        expected, before = job.seen(), job.steps()
        job.manager.restore(8)
        for _ in range(2):
            with pytest.raises(Interrupt):
                job.fit(epochs=2, callbacks=[interrupt_at(keras, 9)])
            assert job.steps() == before
        job.fit(epochs=2)
        assert job.batches[-1] == 2 * BATCHES - 8
        np.testing.assert_array_equal(job.seen(), expected)


def test_an_evaluation_changes_nothing(keras: Any, tmp_path: Path) -> None:
    with Job(keras, tmp_path) as job:
        job.fit(epochs=1)
        before = job.steps()
    with Job(keras, tmp_path) as job:
        job.manager.restore(4)
        job.model.evaluate(np.zeros((BATCH, 5), np.float32), np.zeros((BATCH, 1), np.float32), verbose=0)
    with Job(keras, tmp_path) as job:
        assert getattr(job.manager.restore_latest(), "step", None) == before[-1]
        assert job.steps() == before
