"""One run that moves through every setting: each restores what the one before it has saved, trains a step, and saves.

All pairs are behind `make matrix`; what that printed is docs/matrix.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.matrix.launch import Visit, differences, read, run_group, steps_of
from tests.matrix.page import EQUAL, PAGE, PAIRS, tables
from tests.matrix.run import compare
from tests.matrix.settings import EXTRAS, GROUPS, SQUARE, TENSORS, Group

# (group, the settings that its processes are in, in turn): each setting restores once and is restored from once.
JOURNEY = (
    ("local", ("none",)),
    ("workers-2", ("workers-2",)),
    ("servers", ("servers-2", "servers-3", "servers-min", "servers-max")),
    ("workers-3", ("workers-3",)),
    ("mesh", ("mesh-2x2", "mesh-4x1", "mesh-replicated", "mesh-1d")),
    ("clients-2", ("clients-2",)),
    ("local", ("mirrored", "one-device", "tpu", "tpu-spmd", "none")),
)
STOPS = [(number, setting) for number, setting in enumerate(name for _, names in JOURNEY for name in names)]
FIRST_STEP = 3


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the run's root, `root`, and what was held at each stop, `dumps/NUMBER`."""
    base = tmp_path_factory.mktemp("journey")
    groups: dict[str, Group] = {group.name: group for group in GROUPS}
    stops = iter(STOPS)
    for group, settings in JOURNEY:
        visits = []
        for _ in settings:
            number, setting = next(stops)
            dumps = str(base / "dumps" / str(number))
            visits.append(Visit(setting, str(base / "root"), dumps, seed=number, first_steps=FIRST_STEP))
        run_group(groups[group], visits, base)
    return base


@pytest.mark.parametrize(("number", "setting"), STOPS, ids=[f"{number}-{name}" for number, name in STOPS])
def test_a_run_moves_through_every_setting(journey: Path, number: int, setting: str) -> None:
    step = FIRST_STEP + number
    dumps = journey / "dumps" / str(number)
    saved = read(journey / "root", step)
    assert differences(saved, dumps / "saved") == []
    assert saved["optimizer/iterations"] == saved["model/steps"] == step
    if number:
        before = read(journey / "root", step - 1)
        assert differences(before, dumps / "restored") == []
        assert not any(np.array_equal(before[name], saved[name]) for name in TENSORS if "rate" not in name)
    else:
        assert not (dumps / "restored").exists()
        assert all(np.any(saved[f"optimizer/velocity/model/{name}"]) for name in ("kernel", "embedding"))


def test_the_journey_misses_nothing(journey: Path) -> None:
    settings = [name for _, names in JOURNEY for name in names]
    assert set(settings) == {*SQUARE, *EXTRAS}
    assert steps_of(journey / "root") == [FIRST_STEP + number for number in range(len(settings))]


def test_a_wrong_bit_a_missing_block_and_a_stale_copy_are_found(tmp_path: Path) -> None:
    oracle = {name: np.ones(shape, dtype) for name, (shape, dtype) in TENSORS.items()}
    pieces: dict[str, Any] = {
        f"{name}|{','.join('0' * array.ndim)}|0": array.view(f"u{array.itemsize}") for name, array in oracle.items()
    }
    for process in (0, 1):
        np.savez(tmp_path / f"{process}.npz", **pieces)
    assert differences(oracle, tmp_path) == []

    flipped = pieces["model/odd|0,0|0"].copy()
    flipped[6, 3] ^= 1
    np.savez(tmp_path / "1.npz", **{**pieces, "model/odd|0,0|0": flipped})
    assert differences(oracle, tmp_path) == ["model/odd: piece 0 of process 1 at [0, 0] differs"]

    (tmp_path / "1.npz").unlink()
    part = pieces.pop("model/odd|0,0|0")[1:]
    np.savez(tmp_path / "0.npz", **{**pieces, "model/odd|1,0|0": part})
    assert differences(oracle, tmp_path) == ["model/odd: not all of it was held"]

    np.savez(tmp_path / "0.npz", **{**pieces, "model/odd|1,0|0": part, "model/odd|0,0|1": part.astype("u8")})
    assert "does not fit" in differences(oracle, tmp_path)[0]
    assert "model/steps: not in the checkpoint" in differences({"other": np.zeros(1)}, tmp_path)
    assert "other: only in the checkpoint" in differences({"other": np.zeros(1)}, tmp_path)


def test_a_pair_without_a_checkpoint_is_not_equal(tmp_path: Path) -> None:
    visit = Visit("none", str(tmp_path / "copy"), str(tmp_path / "dumps"), seed=0)
    assert compare(tmp_path / "root", tmp_path / "dumps", visit)


def test_the_page_holds_every_pair_and_all_are_equal() -> None:
    text = PAGE.read_text()
    assert tables(dict.fromkeys(PAIRS, EQUAL)) in text
    assert len(SQUARE) == 9
