"""Every kind of state comes back bit for bit, in a new process, before the first training step, and goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import pytest

from ckptflow.errors import UsageError
from ckptflow.state.build import build_missing, most_bytes
from ckptflow.state.configs import describe
from ckptflow.state.per_worker import PerWorker
from ckptflow.state.tree import walk
from tests.state import roundtrip
from tests.state.cases import CASES
from tests.state.cases_keras3 import OPTIMIZERS
from tests.state.roundtrip import answer_bytes, assert_equal
from tests.waiting import HANG_S

ROOT = Path(__file__).resolve().parents[2]
ITERATORS_ARE_TUNED = True  # see tests.untuned


class Trained:
    """A case's state after some training, what a checkpoint held of it, and what one more step made of it."""

    def __init__(self, name: str) -> None:
        case = CASES[name]
        state = case.make()
        case.train(state)
        case.train(state)
        self.saved = roundtrip.save(state)
        self.expected = case.answer(state) if case.answer else None
        case.train(state)
        self.after = roundtrip.save(state)


@pytest.fixture(scope="module")
def trained() -> dict[str, Trained]:
    return {name: Trained(name) for name in CASES}


@pytest.fixture(scope="module")
def in_new_process(trained: dict[str, Trained], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a new process has restored every case, trained it on, and saved both."""
    folder = tmp_path_factory.mktemp("cases")
    for position, each in enumerate(trained.values()):
        each.saved.write(folder / f"{position}-saved")
    run = subprocess.run(
        [sys.executable, "-m", "tests.state.restore_all", str(folder), "--fresh"],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "77", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    return folder


@pytest.mark.parametrize("name", CASES)
def test_it_comes_back(name: str, trained: dict[str, Trained], in_new_process: Path) -> None:
    position = list(CASES).index(name)
    problem = in_new_process / f"{position}-problem.txt"
    assert not problem.exists(), problem.read_text()
    if CASES[name].answer:
        answer = (in_new_process / f"{position}-answer.bin").read_bytes()
        assert answer == answer_bytes(trained[name].expected)
    if not CASES[name].exact_bytes:
        return
    restored, after = (roundtrip.read(in_new_process / f"{position}-{what}") for what in ("restored", "after"))
    assert_equal(trained[name].saved, restored)
    assert_equal(trained[name].after, after)


def test_every_optimizer_of_keras_is_a_case() -> None:
    classes = {
        name
        for name, cls in vars(keras.optimizers).items()
        if isinstance(cls, type) and issubclass(cls, keras.optimizers.Optimizer)
    }
    assert classes - {"Optimizer"} <= set(OPTIMIZERS)


def test_a_model_of_its_own_is_built_on_every_worker() -> None:
    """The chief describes its `PerWorker` model; the others build theirs by it."""

    def make() -> Any:
        return keras.Sequential([keras.layers.Dense(3)])

    built = make()
    built.build((None, 2))
    models = describe(walk({"own": PerWorker(built)}, worker=0, world_size=2))
    mine = make()
    tree = build_missing(walk({"own": PerWorker(mine)}, worker=1, world_size=2), models)
    assert [tuple(variable.shape) for variable in mine.variables] == [(2, 3), (3,)]
    assert all(leaf.name.startswith("own/worker-1") for leaf in tree.leaves)


def test_a_model_larger_than_memory_is_restored_if_it_is_stored() -> None:
    """Its variables are on parameter servers, or on GPUs. What asks for much more than is stored is refused."""
    gib = 2**30
    assert most_bytes(500 * gib, memory_bytes=16 * gib) >= 2 * 500 * gib
    assert most_bytes(gib, memory_bytes=16 * gib) <= 17 * gib
    assert most_bytes(2**10, memory_bytes=16 * gib) < 2 * gib


def test_what_inputs_ask_for_is_not_allocated() -> None:
    built = keras.Sequential([keras.layers.Dense(3)])
    built.build((None, 2))
    models = json.loads(json.dumps(describe(walk({"model": built}))).replace("[null, 2]", f"[null, {10**12}]"))
    with pytest.raises(UsageError, match="asks for variables of more than"):
        build_missing(walk({"model": keras.Sequential([keras.layers.Dense(3)])}), models, stored_bytes=2**40)
