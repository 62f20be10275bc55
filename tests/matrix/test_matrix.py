"""Two runs that move from setting to setting: each restores what the one before it saved, trains a step, and saves.

All pairs are behind `make matrix`; what that printed is docs/matrix.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.matrix.launch import Visit, differences, read, run_group, steps_of
from tests.matrix.page import EQUAL, PAGE, PAIRS, tables
from tests.matrix.run import compare, unchanged
from tests.matrix.settings import EXTRAS, FIRST_STEP, GROUPS, SQUARE, TENSORS

# Which processes are started, and which run comes to which setting there. Of the module's run every setting restores,
# and every setting is restored from: hence the second stops at "none" and "mesh-2x2".
LEGS = (
    ("local", {"module": ["none", "mirrored", "none", "one-device", "tpu", "tpu-spmd"], "net": ["none", "mirrored"]}),
    ("workers-2", {"module": ["workers-2"]}),
    ("servers", {"module": ["servers-2", "servers-3", "servers-min", "servers-max"], "net": ["servers-2"]}),
    ("workers-3", {"module": ["workers-3"]}),
    ("clients-2", {"module": ["clients-2"]}),
    ("mesh", {"module": ["mesh-2x2", "mesh-4x1", "mesh-replicated", "mesh-1d", "mesh-2x2"], "net": ["mesh-2x2"]}),
)
STOPS = [
    (leg, what, number, name)
    for what in TENSORS
    for number, (leg, name) in enumerate(
        (leg, name) for leg, (_, runs) in enumerate(LEGS) for name in runs.get(what, ())
    )
]


class Journey:
    """Both runs; each leg is made when the first of its stops is asked for."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._legs_done = 0
        self._failure: RuntimeError | None = None

    def root(self, what: str) -> Path:
        return self._base / what / "root"

    def dumps(self, what: str, number: int) -> Path:
        """What was held at a stop: `restored` and `saved`."""
        return self._base / what / str(number)

    def go(self, leg: int) -> None:
        """Makes the legs up to this one, unless they are made; a failure ends the journey for all that comes after."""
        while self._legs_done <= leg:
            if self._failure is not None:
                raise self._failure
            name = LEGS[self._legs_done][0]
            visits = [
                Visit(setting, what, str(self.root(what)), str(self.dumps(what, number)), seed=number)
                for of_leg, what, number, setting in STOPS
                if of_leg == self._legs_done
            ]
            try:
                run_group(next(group for group in GROUPS if group.name == name), visits, self._base)
            except RuntimeError as error:
                self._failure = error
                raise
            self._legs_done += 1


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Journey:
    return Journey(tmp_path_factory.mktemp("journey"))


@pytest.mark.parametrize(
    ("leg", "what", "number"),
    [stop[:3] for stop in sorted(STOPS)],
    ids=[f"{what}-{number}-{name}" for _, what, number, name in sorted(STOPS)],
)
def test_a_run_moves_through_every_setting(journey: Journey, leg: int, what: str, number: int) -> None:
    journey.go(leg)
    root, dumps, step = journey.root(what), journey.dumps(what, number), FIRST_STEP + number
    saved = read(root, step)
    assert differences(saved, dumps / "saved", TENSORS[what]) == []
    assert saved["optimizer/iterations" if what == "module" else "net/optimizer/iterations"] == step
    if number:
        before = read(root, step - 1)
        assert differences(before, dumps / "restored", TENSORS[what]) == []
        assert unchanged(before, saved) == []
    else:
        assert not (dumps / "restored").exists()
        assert all(np.any(array) for name, array in saved.items() if "velocity" in name)


def test_the_journeys_miss_nothing(journey: Journey) -> None:
    names = [name for _, what, _, name in STOPS if what == "module"]
    assert set(names) == {*SQUARE, *EXTRAS} == set(names[1:]) == set(names[:-1])
    journey.go(len(LEGS) - 1)
    for what in TENSORS:
        count = sum(stop[1] == what for stop in STOPS)
        assert steps_of(journey.root(what)) == [FIRST_STEP + number for number in range(count)]


def test_a_wrong_bit_a_missing_block_and_another_shape_are_found(tmp_path: Path) -> None:
    expected = TENSORS["module"]
    oracle = {name: np.ones(shape, dtype) for name, (shape, dtype) in expected.items()}
    pieces: dict[str, Any] = {
        f"{name}|{','.join('0' * array.ndim)}|0": array.view(f"u{array.itemsize}") for name, array in oracle.items()
    }
    for process in (0, 1):
        np.savez(tmp_path / f"{process}.npz", **pieces)
    assert differences(oracle, tmp_path, expected) == []

    flipped = pieces["model/odd|0,0|0"].copy()
    flipped[6, 3] ^= 1
    np.savez(tmp_path / "1.npz", **{**pieces, "model/odd|0,0|0": flipped})
    assert differences(oracle, tmp_path, expected) == ["model/odd: piece 0 of process 1 at [0, 0] differs"]

    (tmp_path / "1.npz").unlink()
    part = pieces.pop("model/odd|0,0|0")[1:]
    np.savez(tmp_path / "0.npz", **{**pieces, "model/odd|1,0|0": part})
    assert differences(oracle, tmp_path, expected) == ["model/odd: not all of it was held"]

    np.savez(tmp_path / "0.npz", **{**pieces, "model/odd|1,0|0": part, "model/odd|0,0|1": part.astype("u8")})
    assert "does not fit" in differences(oracle, tmp_path, expected)[0]
    found = differences({"model/odd": np.ones((7, 5), "f4"), "other": np.zeros(1)}, tmp_path, expected)
    assert "model/steps: not in the checkpoint" in found
    assert "other: only in the checkpoint" in found
    assert "model/odd: (7, 5) float32 in the checkpoint" in found


def test_a_pair_without_a_checkpoint_is_not_equal(tmp_path: Path) -> None:
    visit = Visit("none", "module", str(tmp_path / "copy"), str(tmp_path / "dumps"), seed=0)
    assert compare(tmp_path / "root", tmp_path / "dumps", visit)


def test_the_page_holds_every_pair_and_all_are_equal() -> None:
    assert tables(dict.fromkeys(PAIRS, EQUAL)) in PAGE.read_text()
    assert len(SQUARE) == 9
