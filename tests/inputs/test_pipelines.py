"""A position goes into the pipeline that it was saved in, made by another process, and into no other one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptflow import CheckpointManager, StateMismatchError
from ckptflow.state.pipelines import pipeline_of
from tests.inputs.pipelines import BATCHED, CHANGED, EQUAL, TAKEN, drawn, iterators, same
from tests.processes import run_python

ITERATORS_ARE_TUNED = True  # see tests.untuned


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines")
    result = run_python("-m", "tests.inputs.pipelines", str(folder))
    assert result.returncode == 0, result.stderr
    return folder


def test_the_same_pipelines_go_on(saved: Path) -> None:
    made = iterators(same(saved))
    with CheckpointManager(saved / "same", made, read_only=True) as manager:
        manager.restore_latest()
    expected = json.loads((saved / "expected.json").read_text())
    random = {"shuffled without a seed"}  # of the buffer that is there now: in another order the next time
    assert {n: drawn(made[n]) for n in expected.keys() - random} == {n: expected[n] for n in expected.keys() - random}


def test_other_data_are_no_other_pipeline(tmp_path: Path) -> None:
    before = {name: pipeline_of(each) for name, each in iterators(same(tmp_path)).items()}
    assert {name: pipeline_of(each) for name, each in iterators(same(tmp_path, more=2)).items()} == before
    assert all(before.values())


def test_a_change_that_tensorflow_goes_on_with_exactly_is_none(tmp_path: Path) -> None:
    pairs = EQUAL | BATCHED
    before = iterators({name: before for name, (before, _) in pairs.items()}, TAKEN)
    after = iterators({name: after for name, (_, after) in pairs.items()})
    with CheckpointManager(tmp_path, before) as manager:
        manager.save(1)
    with CheckpointManager(tmp_path, after, read_only=True) as manager:
        manager.restore_latest()
    rest = [[(name, numbers_in(made[name], name in BATCHED)) for name in pairs] for made in (before, after)]
    assert rest[0] == rest[1]


def numbers_in(iterator: Any, is_flat: bool) -> list[Any]:
    """What is still to come; flat: however it is batched, and without the zeros of padding."""
    found = [np.asarray(each).tolist() for each in iterator]
    return [number for each in found for number in np.ravel(each) if number] if is_flat else found


def test_a_changed_pipeline_is_refused_before_anything_is_put_into_it(saved: Path) -> None:
    made = iterators({name: after for name, (_, after) in CHANGED.items()})
    with CheckpointManager(saved / "changed", made, read_only=True) as manager:
        with pytest.raises(StateMismatchError, match="no value was changed") as caught:
            manager.restore_latest()
        assert [name for name in CHANGED if f"  {name}: the position" not in str(caught.value)] == []
        assert "Interleave(cycle_length=4, block_length=1)" in str(caught.value)
        assert manager.restore_latest(partial=True) is not None
    expected = iterators({name: after for name, (_, after) in CHANGED.items()})
    assert {name: drawn(each) for name, each in made.items()} == {name: drawn(each) for name, each in expected.items()}
