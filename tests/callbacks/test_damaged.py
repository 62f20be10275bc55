"""Damage in what only a fit reads: the checkpoint before is taken, and the fit goes on exactly from there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ckptflow
from ckptflow.format.layout import parse_folder
from ckptflow.storage.wrappers import CountingStore
from tests.callbacks.jobs import BATCHES, keras_of
from tests.callbacks.test_fit import Interrupt, Job, interrupt_at
from tests.callbacks.test_several import weights
from tests.manager.states import wrap_store

BATCH_ENDS = 2 * BATCHES


@pytest.fixture(scope="module")
def keras() -> Any:
    return keras_of(False)


def stopping(keras: Any) -> Any:
    """Its best weights are arrays beside the model's."""
    return keras.callbacks.EarlyStopping("loss", patience=9, restore_best_weights=True)


def run(keras: Any, root: Path, *callbacks: Any, before: Callable[[Job], object] = lambda job: None) -> Any:
    """One life; what it comes to, and how many batches it has trained."""
    with Job(keras, root) as job:
        before(job)
        history = job.fit(every={"every_steps": 3}, epochs=2, callbacks=[stopping(keras), *callbacks])
        return [weights(job), history.history, job.seen().tolist()], job.batches


@pytest.fixture(scope="module")
def expected(keras: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(keras, tmp_path_factory.mktemp("reference"))[0]


@pytest.fixture(scope="module")
def interrupted(keras: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a fit that has ended in its second epoch: step 18 is the newest, step 15 the one before."""

    def in_the_second(epoch: int, logs: Any = None) -> None:
        raiser.on_train_batch_end = lambda batch, logs=None: interrupt(batch == 8)

    def interrupt(is_due: bool) -> None:
        if is_due:
            raise Interrupt

    raiser = keras.callbacks.LambdaCallback(on_epoch_end=in_the_second)
    root = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(Interrupt):
        run(keras, root, raiser)
    assert ckptflow.list_checkpoints(root)[-1].step == 18
    return root


@pytest.fixture
def root(interrupted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(interrupted, tmp_path / "run"))


def damage(root: Path, is_meant: Callable[[Any], bool], step: int | None = None) -> None:
    """One byte of one tensor of the newest checkpoint, or that of this step."""
    with ckptflow.open_checkpoint(root, step=step) as checkpoint:
        manifest = checkpoint.manifest
    piece = next(tensor for tensor in manifest.tensors if is_meant(tensor) and tensor.size_bytes).slices[0]
    folder = parse_folder(manifest.folder)
    assert folder is not None
    path = root / folder.key(manifest.shards[piece.shard].name)
    data = bytearray(path.read_bytes())
    data[piece.offset] ^= 1
    path.write_bytes(data)


def named(name: str) -> Callable[[Any], bool]:
    return lambda tensor: tensor.name == name


MEANT: dict[str, Callable[[Any], bool]] = {
    "input": named("ckptflow.fit/input"),
    "callbacks": named("ckptflow.fit/callbacks"),
    "metrics": lambda tensor: tensor.metric and "loss" not in tensor.name,
}


@pytest.mark.parametrize(
    ("meant", "by_hand"), [*((meant, False) for meant in MEANT), ("callbacks", True)], ids=lambda value: str(value)
)
def test_damage_in_what_a_fit_reads_gives_the_one_before(
    keras: Any, root: Path, expected: Any, meant: str, by_hand: bool, caplog: pytest.LogCaptureFixture
) -> None:
    damage(root, MEANT[meant])
    before = (lambda job: job.manager.restore_latest()) if by_hand else (lambda job: None)
    found, batches = run(keras, root, before=before)
    assert "restored step 15 instead" in caplog.text
    assert batches == [BATCH_ENDS - 15]
    assert found == expected


def test_what_only_a_fit_reads_is_read_once(keras: Any, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ckptflow.open_checkpoint(root) as checkpoint:
        folder, shards = checkpoint.manifest.folder, checkpoint.manifest.shards
        (piece,) = checkpoint.spec("ckptflow.fit/callbacks").slices
    stores = wrap_store(monkeypatch, CountingStore)
    run(keras, root)
    assert stores[0].keys("get").count(f"{folder}/{shards[piece.shard].name}") == 1


def test_damage_in_a_checkpoint_that_was_asked_for_is_raised(keras: Any, root: Path) -> None:
    damage(root, MEANT["callbacks"])
    with pytest.raises(ckptflow.CorruptCheckpointError, match=r"ckptflow\.fit/callbacks"):
        run(keras, root, before=lambda job: job.manager.restore(18))


@pytest.mark.parametrize("meant", MEANT)
def test_damage_in_what_only_a_fit_reads_keeps_no_state_from_coming_back(
    keras: Any, root: Path, meant: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A program that fits nothing goes back to that step."""
    with Job(keras, root) as job:  # a newer one, so that it is a step back
        job.manager.restore_latest()
        job.manager.save(20)
    damage(root, MEANT[meant], 18)
    with Job(keras, root) as job:
        restored = job.manager.rollback(18)
        assert restored.step == 18
    newest = ckptflow.list_checkpoints(root)[-1]
    assert newest.step == 18
    with ckptflow.open_checkpoint(newest.url) as checkpoint:
        assert checkpoint.read(list(checkpoint))
    if meant != "metrics":
        assert "is saved again without ckptflow.fit, which is damaged" in caplog.text


@pytest.mark.parametrize("by_hand", [False, True], ids=["by fit", "by hand"])
def test_what_is_saved_again_after_damage_has_its_position(
    keras: Any, root: Path, expected: Any, by_hand: bool
) -> None:
    damage(root, named("model/dense/kernel") if by_hand else MEANT["callbacks"])

    def restore_and_fail(job: Job) -> None:
        job.manager.restore_latest()
        raise Interrupt

    with pytest.raises(Interrupt):  # before it has saved anything
        run(keras, root, interrupt_at(keras, 4), before=restore_and_fail if by_hand else lambda job: None)
    assert ckptflow.list_checkpoints(root)[-1].url.endswith("15-i0002")
    found, batches = run(keras, root)
    assert batches == [BATCH_ENDS - 15]
    assert (found[0], found[2]) == (expected[0], expected[2])  # metrics that were not built are not saved again


def test_what_is_rolled_back_to_between_two_fits_has_its_own_position(keras: Any, root: Path, expected: Any) -> None:
    with Job(keras, root) as job:
        job.fit(every={"every_steps": 3}, epochs=2, callbacks=[stopping(keras)])
        job.manager.rollback(15)
    found, batches = run(keras, root)
    assert batches == [BATCH_ENDS - 15]
    assert found == expected
