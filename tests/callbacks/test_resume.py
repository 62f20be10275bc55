"""A fit that crashes at any batch and is begun again, over every kind of data: against one that was left alone.

The crash is an exception in another callback, and the next life has a new model and a new manager: real kills, of which
there are fewer, are in test_killed.py.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import ckptflow
from ckptflow.storage.wrappers import CountingStore
from tests.callbacks.jobs import BATCH, BATCHES, ELEMENTS, EPOCHS, Job, arrays, dataset, run_under
from tests.manager.states import wrap_store


def seeded() -> Any:
    return dataset().shuffle(16, seed=3)


def of_unknown_size() -> Any:
    return seeded().filter(lambda x, y: True).batch(BATCH).prefetch(1)


def generated() -> Any:
    def rows() -> Any:
        yield from zip(*arrays(), strict=True)

    signature = (tf.TensorSpec((5,), tf.float32), tf.TensorSpec((1,), tf.float32))
    return tf.data.Dataset.from_generator(rows, output_signature=signature).batch(BATCH)


def stoppers(keras: Any) -> list[Any]:
    return [
        keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=1, min_delta=9.0, factor=0.3),
        keras.callbacks.EarlyStopping(monitor="val_loss", patience=1, min_delta=2.5, restore_best_weights=True),
    ]


def scheduler(keras: Any) -> list[Any]:
    """Keras calls it once more where an epoch goes on."""
    return [keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.6)]


def one(value: Any) -> Any:
    return lambda _: value


EPOCH = {"every_steps": BATCHES}  # the save is at an epoch's last batch, before validation
VALIDATED = {"validation_data": tuple(array[:20] for array in arrays()), "epochs": 6}
REPEATED = {"steps_per_epoch": 7}
JOBS = [
    Job("arrays", data=arrays, fit={"shuffle": False}),
    Job("repeated", data=lambda: seeded().batch(BATCH).repeat(), fit=REPEATED),
    Job("repeated-exactly", data=lambda: seeded().batch(BATCH).repeat(), fit={"steps_per_epoch": BATCHES}, every=EPOCH),
    Job("parts", data=lambda: seeded().batch(BATCH), fit={"steps_per_epoch": 4, "epochs": 7}),
    Job("unknown", data=of_unknown_size),
    Job("unknown-at-end", data=of_unknown_size, every=EPOCH),
    Job("generated", data=generated),
    Job("validated", fit=VALIDATED, callbacks=stoppers, every=EPOCH),
    Job("scheduled", callbacks=scheduler),
    Job("executions", compile={"steps_per_execution": one(4)}),
    Job("executions-repeated", data=lambda: seeded().batch(BATCH).repeat(), fit=REPEATED,
        compile={"steps_per_execution": one(4)}),
    Job("accumulated", compile={"optimizer": lambda keras: keras.optimizers.Adam(gradient_accumulation_steps=3)},
        every={"every_steps": 2}),
    Job("initial", fit={"initial_epoch": 1}),
    Job("seconds", every={"every_seconds": 0.001}),
    Job("old-arrays", old=True, data=arrays, fit={"shuffle": False}),
    Job("old-repeated", old=True, data=lambda: seeded().batch(BATCH).repeat(), fit=REPEATED),
    Job("old-unknown", old=True, data=of_unknown_size),
    Job("old-unknown-at-end", old=True, data=of_unknown_size, every=EPOCH),
    Job("old-generated", old=True, data=generated),
    Job("old-validated", old=True, fit=VALIDATED, callbacks=stoppers, every=EPOCH),
    Job("old-scheduled", old=True, callbacks=scheduler),
    Job("old-executions", old=True, compile={"steps_per_execution": one(4)}),
    Job("old-eager", old=True, compile={"run_eagerly": one(True)}, every=EPOCH),
]  # fmt: skip


SHORT = {"unknown-at-end", "validated", "executions-repeated", "old-validated", "old-eager"}


class Crash(Exception):  # noqa: N818
    """Of a training job."""


def crash() -> None:
    raise Crash


def live(job: Job, root: Path, crash_after: int | None) -> dict[str, Any]:
    """One life; it crashes after so many batch ends, or at the first one that finds a checkpoint."""
    return run_under(tf.distribute.get_strategy(), job, root, crash_after, crash)


def crash_and_resume(job: Job, root: Path, batch_ends: int, crashes: int = 1) -> dict[str, Any]:
    for _ in range(crashes):
        at = random.SystemRandom().randint(1, batch_ends)
        print(f"{job.name}: crashes at batch end {at}")
        try:
            found = live(job, root, at)
        except Crash:
            continue
        assert crashes > 1, "it came to its end: nothing was tried"
        return found
    return live(job, root, None)


@pytest.mark.parametrize("job", [job for job in JOBS if job.name in SHORT], ids=lambda job: str(job.name))
def test_a_resumed_fit_ends_like_an_uninterrupted_one(job: Job, tmp_path: Path) -> None:
    expected = live(job, tmp_path / "reference", None)
    found = crash_and_resume(job, tmp_path / "run", _batch_ends(expected) - BATCHES // job.execution - 1)
    _compare(found, expected)
    batches = [hook for hook in found["hooks"] if hook[0] == "batch"]
    assert found["hooks"][1 - len(batches) :] == expected["hooks"][1 - len(batches) :], "callbacks see other batches"


def test_a_fit_that_goes_on_reads_its_manifest_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the values, for its position, and for metrics."""
    job = Job("one reader")
    with pytest.raises(Crash):
        live(job, tmp_path, BATCHES + 5)
    newest = ckptflow.list_checkpoints(tmp_path)[-1]
    stores = wrap_store(monkeypatch, CountingStore)
    live(job, tmp_path, None)
    assert stores[0].keys("get").count(f"{newest.step:012}-i0001/manifest.json") == 1


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("job", JOBS, ids=lambda job: str(job.name))
def test_a_fit_that_crashes_again_and_again(job: Job, tmp_path: Path) -> None:
    expected = live(job, tmp_path / "reference", None)
    for attempt in range(6):
        root = tmp_path / str(attempt)
        _compare(crash_and_resume(job, root, _batch_ends(expected) + 1, crashes=3), expected)
        again = live(job, root, None)
        assert again["values"] == expected["values"]
        assert _batch_ends(again) == 0


@pytest.mark.parametrize(
    "job",
    [
        Job("unseeded", data=lambda: dataset().shuffle(ELEMENTS).batch(BATCH)),
        pytest.param(Job("arrays-shuffled", data=arrays), marks=pytest.mark.chaos),
        pytest.param(
            Job("old-unseeded", old=True, data=lambda: dataset().shuffle(ELEMENTS).batch(BATCH)),
            marks=pytest.mark.chaos,
        ),
    ],
    ids=lambda job: str(job.name),
)
def test_without_a_seed_each_element_is_seen_once_an_epoch(job: Job, tmp_path: Path) -> None:
    found = crash_and_resume(job, tmp_path, 2 * BATCHES)
    seen = np.array(found["seen"])[: EPOCHS * BATCHES].reshape(EPOCHS, BATCHES, ELEMENTS)
    np.testing.assert_array_equal(seen.sum(axis=1), np.ones((EPOCHS, ELEMENTS)))


def _batch_ends(result: dict[str, Any]) -> int:
    return sum(kind == "batch" for kind, _ in result["hooks"])


def _compare(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in ("seen", "values", "history", "epochs", "others"):
        assert found[name] == expected[name], name
