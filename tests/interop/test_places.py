"""Each format both ways between a disk, S3 and GCS: at one end what stock reads or wrote, at the other a run.

What a format is does not matter to a storage, whether it is a file, a folder or a name's beginning does: each way is
gone by each of these kinds, and by a third of the formats that are a file. `make chaos` goes each way with all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptflow
from ckptflow import CheckpointManager, export_checkpoint, import_model
from ckptflow.errors import CkptflowError, ObjectExistsError
from tests.interop.both_ways import NAMES, WRITTEN, build, facts, in_stock
from tests.interop.models import CASES
from tests.interop.places import Place, all_places
from tests.servers import Server

CASE = CASES["dense"]
NOT_ONE_FILE = ("saved-model", "tf-checkpoint")
ALL = pytest.mark.parametrize("turns", [3, pytest.param(1, marks=pytest.mark.chaos)])


def of_turn(forms: Sequence[str], turn: int, turns: int) -> list[str]:
    """The folder and the checkpoint, and of the files those whose turn it is."""
    files = [form for form in forms if form not in NOT_ONE_FILE]
    return [*NOT_ONE_FILE, *files[turn % turns :: turns]]


@pytest.fixture
def places(tmp_path: Path, seaweedfs: Server, fake_gcs: Server) -> list[Place]:
    folder = tmp_path / "disk"
    folder.mkdir()
    return all_places(folder, seaweedfs, fake_gcs)


@pytest.mark.usefixtures("unprobed")
@ALL
def test_a_run_anywhere_becomes_every_format_elsewhere(turns: int, places: list[Place], tmp_path: Path) -> None:
    model = CASE.make("keras")
    expected = CASE.predict(model)
    exported_to: dict[Path, list[str]] = {}
    for turn, (place, target) in enumerate(zip(places, places[1:] + places[:1], strict=True)):
        with CheckpointManager(place.url("run"), {"model": model}, storage_options=place.options) as manager:
            manager.save(9)
        ends: dict[str, Any] = {"storage_options": place.options, "destination_options": target.options}
        forms = of_turn(list(NAMES), turn, turns)
        for form in forms:
            url = target.url(f"exports/{CASE.name}/{NAMES[form]}")
            exported = export_checkpoint(place.url("run"), url, format=form, **ends)
            assert (exported.url, exported.step) == (url, 9)
        with pytest.raises(ObjectExistsError):
            export_checkpoint(place.url("run"), target.url(f"exports/{CASE.name}/{NAMES['saved-model']}"),
                              format="saved-model", **ends)  # fmt: skip
        here = tmp_path / "got" / target.name
        target.download("exports", here)
        exported_to[here] = forms
    assert {form for forms in exported_to.values() for form in forms} == set(NAMES)
    for here, forms in exported_to.items():
        assert in_stock("read", "keras", {CASE.name: forms}, here) == {}
        for form in forms:
            with np.load(here / CASE.name / f"{form}.npz") as arrays:
                if form == "safetensors":
                    np.testing.assert_array_equal(arrays["model/dense/kernel"], model.layers[0].kernel.numpy())
                else:
                    tolerance = 1e-5 if form == "tflite" else 1e-6
                    np.testing.assert_allclose(arrays["predictions"], expected, rtol=0, atol=tolerance)


@pytest.mark.usefixtures("unprobed")
@ALL
def test_every_format_anywhere_begins_a_run_elsewhere(turns: int, places: list[Place], tmp_path: Path) -> None:
    stock = tmp_path / "stock"
    assert in_stock("write", "keras", {CASE.name: WRITTEN}, stock) == {}
    with np.load(stock / CASE.name / "expected.npz") as arrays:
        expected = dict(arrays)
    for turn, (place, target) in enumerate(zip(places, places[1:] + places[:1], strict=True)):
        place.upload(stock / CASE.name, "stock")
        ends: dict[str, Any] = {"source_options": place.options, "storage_options": target.options}
        for form in of_turn(WRITTEN, turn, turns):
            given = {"model": build(CASE, "keras")} if form in ("weights", "saved-model", "hub") else None
            root = target.url(f"from/{form}")
            made = import_model(place.url(f"stock/{NAMES[form]}"), root, model=given, step=2, **ends)
            assert made.url.startswith(root)
            model = build(CASE, "keras")
            state = {"model": model, "optimizer": model.optimizer} if form == "tf-checkpoint" else {"model": model}
            with CheckpointManager(root, state, storage_options=target.options) as manager:
                restored = manager.restore_latest(partial=form == "tf-checkpoint")  # it has no seeds
            assert restored is not None
            assert restored.step == 2
            assert restored.metadata["imported"]["source"] == place.url(f"stock/{NAMES[form]}")
            np.testing.assert_allclose(facts(CASE, model)["predictions"], expected["predictions"], rtol=0, atol=1e-6)
            if form not in ("saved-model", "hub"):
                assert int(model.optimizer.iterations.numpy()) == CASE.steps


def test_what_is_not_there_is_named_without_credentials(places: list[Place], tmp_path: Path) -> None:
    for place in places:
        with pytest.raises(CkptflowError, match=r"nothing\.keras") as caught:
            import_model(place.url("nothing.keras"), tmp_path / "run", source_options=place.options)
        assert "secret" not in str(caught.value)
        assert ckptflow.list_checkpoints(tmp_path / "run") == []
