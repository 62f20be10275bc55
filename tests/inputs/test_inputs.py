"""Input positions: nothing is seen twice and nothing left out, over kills; no silent yes to other workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

import ckptflow
from ckptflow.errors import StateMismatchError, UnsupportedStateError
from ckptflow.format.layout import own_name
from ckptflow.format.offer import offer_of
from ckptflow.state.assign import match
from ckptflow.state.tree import walk
from tests.inputs import programs
from tests.processes import run_workers, start_workers
from tests.state import roundtrip
from tests.waiting import HANG_S

ITERATORS_ARE_TUNED = True  # see tests.untuned

PROGRAM = "tests.inputs.programs:read_and_save"


def lines(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def uninterrupted(worker: int, world_size: int) -> list[list[int]]:
    """Each step's batch, where nothing is ever killed or saved."""
    batches = programs.dataset(worker, world_size).take(programs.STEPS)
    return [batch.tolist() for batch in batches.as_numpy_iterator()]


def test_no_element_is_repeated_or_dropped_over_a_kill(tmp_path: Path) -> None:
    env = {"ROOT": str(tmp_path / "root")}
    with start_workers(PROGRAM, 2, env=env, folder=tmp_path) as workers:
        workers[1].wait_for_output('"step": 14', HANG_S)
        for process in workers:
            process.kill()
        first = [lines(process.output()) for process in workers]
    second = [lines(result.output) for result in run_workers(PROGRAM, 2, env=env)]
    for worker in range(2):
        resumed = second[worker][0]["first"]
        assert resumed % programs.SAVE_EVERY == 1
        assert resumed > 12  # the checkpoint of step 12 was committed before step 13 began
        kept = [line["seen"] for line in first[worker][1:] if line["step"] < resumed]
        seen = kept + [line["seen"] for line in second[worker][1:]]
        expected = uninterrupted(worker, 2)
        assert seen == expected
        assert second[worker][0]["files"] == (resumed - 1) * (1 + worker)

    # Another number of workers: an iterator is refused by name, a position that can be dealt out anew is.
    (refused, *_) = run_workers(PROGRAM, 1, env=env)
    assert "own: it was kept by each of 2 workers for itself, and there are 1 now" in refused.output
    assert "position:" not in refused.output
    alone = run_workers(PROGRAM, 1, env=env | {"WITHOUT_ITERATORS": "1"})
    assert "refused: " in alone[0].output  # the checkpoint has what the state has not
    assert "own/worker-0/position: in the checkpoint, not in the state" in alone[0].output


def test_positions_in_python_are_dealt_out_to_another_number_of_workers(tmp_path: Path) -> None:
    env = {"ROOT": str(tmp_path), "WITHOUT_ITERATORS": "1"}
    run_workers(PROGRAM, 2, env=env)  # the last save: step 28, 28 and 56 files
    results = run_workers(PROGRAM, 3, env=env)
    assert [lines(result.output)[0] for result in results] == [{"first": 29, "files": 28}] * 3
    with ckptflow.open_checkpoint(tmp_path, step=28) as checkpoint:
        assert checkpoint.manifest.per_worker == ("position",)
        assert checkpoint.python_state == {
            f"position/worker-{worker}": {"files": 28 * (1 + worker)} for worker in (0, 1)
        }


def test_the_strategys_own_iterator_goes_on_where_it_was(tmp_path: Path) -> None:
    seen: list[list[list[int]]] = []
    for _ in range(2):
        (result,) = run_workers("tests.inputs.programs:replicas", 1, env={"ROOT": str(tmp_path)})
        seen += lines(result.output)[0]["seen"]
    assert [first for first, _ in seen] == uninterrupted(0, 2)
    assert [second for _, second in seen] == uninterrupted(1, 2)


def test_an_unmarked_iterator_of_several_workers_is_refused_at_once(tmp_path: Path) -> None:
    for result in run_workers("tests.inputs.programs:unmarked", 2, env={"ROOT": str(tmp_path)}):
        assert "refused: data: with 2 workers each worker has its own input position" in result.output
        assert "ckptflow.PerWorker(iterator)" in result.output


def test_iterators_that_cannot_be_saved_are_named_at_the_start(tmp_path: Path) -> None:
    signature = tf.TensorSpec((), tf.int64)
    generator = iter(tf.data.Dataset.from_generator(lambda: iter(range(3)), output_signature=signature))
    for obj, name in [(generator, "data"), (ckptflow.PerWorker(generator), "data/worker-0")]:
        with pytest.raises(UnsupportedStateError, match=f"^{name}: this tf.data iterator cannot be saved"):
            ckptflow.CheckpointManager(tmp_path, {"data": obj})
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    distributed = iter(strategy.experimental_distribute_dataset(tf.data.Dataset.range(3).batch(1)))
    with pytest.raises(UnsupportedStateError, match=r"prefetches to the devices.*PerWorker"):
        ckptflow.CheckpointManager(tmp_path, {"data": ckptflow.PerWorker(distributed)}, strategy=strategy)
    with pytest.raises(ValueError, match="once is enough"):
        ckptflow.PerWorker(ckptflow.PerWorker(generator))


def test_what_is_each_workers_own_goes_back_to_it_alone() -> None:
    """Three workers in one process, as far as names and comparing go."""
    saved = [
        roundtrip.of_tree(walk({"v": tf.Variable(7.0), "own": ckptflow.PerWorker(tf.Variable(float(worker)))},
                               worker=worker, world_size=3))
        for worker in range(3)
    ]  # fmt: skip
    manifest = roundtrip.together(saved, per_worker=("own",))
    names = {tensor.name for tensor in manifest.tensors}
    assert names == {"v", *(f"{own_name('own', worker)}" for worker in range(3))}
    for worker in range(3):
        tree = walk({"v": tf.Variable(0.0), "own": ckptflow.PerWorker(tf.Variable(0.0))}, worker=worker, world_size=3)
        restoring = match(tree, offer_of(manifest))
        wanted = sorted(manifest.tensors[each.tensor].name for each in restoring.wanted)
        assert wanted == [own_name("own", worker), "v"]
    fewer = walk({"v": tf.Variable(0.0), "own": ckptflow.PerWorker(tf.Variable(0.0))}, worker=0, world_size=2)
    with pytest.raises(StateMismatchError, match="own: it was kept by each of 3 workers for itself, and there are 2"):
        match(fewer, offer_of(manifest))
    warm = match(fewer, offer_of(manifest), partial=True)
    assert (warm.missing, warm.unexpected) == (("own/worker-0",), ())
    renamed = walk({"v": tf.Variable(0.0), "new": ckptflow.PerWorker(tf.Variable(0.0))}, worker=1, world_size=3)
    restoring = match(renamed, offer_of(manifest), rename={"own": "new"})
    assert own_name("own", 1) in {manifest.tensors[each.tensor].name for each in restoring.wanted}
    with pytest.raises(StateMismatchError) as error:
        match(walk({"v": tf.Variable(0.0)}, world_size=3), offer_of(manifest))
    assert "own/worker-0: in the checkpoint, not in the state" in str(error.value)
    assert "worker-1" not in str(error.value)
