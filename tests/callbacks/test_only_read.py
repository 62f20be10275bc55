"""`restore(step)` before a fit: the fit goes on from there, and the root changes with its first save, not before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptflow import CheckpointManager
from ckptflow.errors import SaveFailedError, StorageUnavailableError
from ckptflow.testing import FaultyStore
from tests.callbacks.jobs import BATCH, BATCHES, keras_of
from tests.callbacks.test_fit import KEEP_ALL, Interrupt, Job, interrupt_at
from tests.manager.states import PlainState, wrap_store


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


@pytest.mark.parametrize("wait", [True, False])
def test_where_its_first_save_fails_it_begins_there_again(
    keras: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: bool
) -> None:
    """The last save of a fit is waited for, or the next save raises: nothing was committed that goes on from there."""
    with Job(keras, tmp_path) as job:
        job.fit(epochs=2)
        expected, before = job.seen(), job.steps()
    stores = wrap_store(monkeypatch, FaultyStore)
    every = {"every_epochs": 2} if wait else {"every_steps": 4}
    with Job(keras, tmp_path) as job:
        job.manager.restore(8)
        for _ in range(2):
            stores[0].fail("put", StorageUnavailableError("503"), key="shard")
            with pytest.raises(SaveFailedError, match="503"):
                job.fit(every=every, epochs=2)
            assert job.steps() == before
        job.fit(every=every, epochs=2)
        assert job.batches[-1] == 2 * BATCHES - 8
        np.testing.assert_array_equal(job.seen(), expected)
        assert {checkpoint.incarnation for checkpoint in job.manager.checkpoints() if checkpoint.step > 8} == {4}


def test_once_a_save_of_it_is_committed_it_goes_on_from_that(keras: Any, tmp_path: Path) -> None:
    with Job(keras, tmp_path) as job:
        job.fit(epochs=2)
        expected = job.seen()
        job.manager.restore(8)
        with pytest.raises(Interrupt):
            job.fit(epochs=2, callbacks=[interrupt_at(keras, 3)])
        job.fit(epochs=2)
        assert job.batches[-1] == 2 * BATCHES - 12
        np.testing.assert_array_equal(job.seen(), expected)


@pytest.mark.parametrize("looks", [True, False])
def test_where_its_position_cannot_be_read_at_first_it_goes_on_all_the_same(
    keras: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: bool
) -> None:
    stores = wrap_store(monkeypatch, FaultyStore)
    with Job(keras, tmp_path) as job:
        job.fit(epochs=2)
        expected, epochs = job.seen(), 2 if looks else 3
        if looks:
            job.manager.restore(8)
        with pytest.raises(Interrupt):
            job.fit(epochs=epochs, callbacks=[interrupt_at(keras, 9)])
        read = job.manager.session.rereading.read_attached

        def fails(*arguments: Any) -> Any:
            monkeypatch.setattr(job.manager.session.rereading, "read_attached", read)
            stores[0].fail("get", StorageUnavailableError("503"))
            return read(*arguments)

        monkeypatch.setattr(job.manager.session.rereading, "read_attached", fails)
        with pytest.raises(StorageUnavailableError):
            job.fit(epochs=epochs)
        job.fit(epochs=epochs)
        if looks:
            assert job.batches[-1] == 2 * BATCHES - 8
            np.testing.assert_array_equal(job.seen(), expected)
        else:
            assert job.batches[-1] < 3 * BATCHES


class Stubborn(PlainState):
    """Takes no state while it `refuses`, and shows it only when all else has got its values."""

    refuses = False

    def set_state(self, state: Any) -> None:
        if self.refuses:
            raise ValueError("not now")
        super().set_state(state)


@pytest.mark.parametrize("looks", [True, False])
def test_after_a_restore_that_failed_in_the_middle_it_trains_on_no_mixture(
    keras: Any, tmp_path: Path, looks: bool
) -> None:
    other = Stubborn()
    with Job(keras, tmp_path) as job:
        job.manager.close()
        job.manager = CheckpointManager(tmp_path, {"model": job.model, "other": other}, keep=KEEP_ALL)
        job.fit(epochs=2)
        expected = job.seen()
        if looks:
            job.manager.restore(8)
        other.refuses = True
        with pytest.raises(Exception, match="mixture"):
            job.manager.restore(4)
        other.refuses = False
        job.fit(epochs=2 if looks else 3)
        assert job.batches[-1] == (2 * BATCHES - 8 if looks else BATCHES)
        if looks:
            np.testing.assert_array_equal(job.seen(), expected)
