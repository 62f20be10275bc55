"""Numbers that JSON lacks in the configs of models: in the checkpoint, and in the model that is made from it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import keras
import pytest
import tf_keras

from ckptflow import CheckpointManager, CorruptCheckpointError, export_checkpoint, open_checkpoint
from ckptflow.interop.keras.config import build_model
from ckptflow.state.configs import part_of

KERASES: dict[str, Any] = {"keras": keras, "tf_keras": tf_keras}


def saved(root: Path, kit: Any) -> dict[str, Any]:
    """What the manifest says of a model with such numbers in its layers and its optimizer."""
    model = kit.Sequential(
        [
            kit.Input((2, 3)),
            kit.layers.Masking(mask_value=math.nan, name="mask"),
            kit.layers.ReLU(max_value=math.inf, name="relu"),
            kit.layers.Dense(2, name="dense", bias_initializer=kit.initializers.Constant(-math.inf)),
        ]
    )
    model.compile(kit.optimizers.SGD(clipvalue=math.inf), "mse")
    with CheckpointManager(root, {"model": model}) as manager:
        manager.save(1)
    with open_checkpoint(root) as opened:
        described: dict[str, Any] = opened.manifest.models["model"]
    return described


def check(model: Any) -> None:
    mask, relu, dense = model.layers
    assert math.isnan(mask.mask_value)
    assert relu.max_value == math.inf
    assert dense.bias_initializer.get_config()["value"] == -math.inf


@pytest.mark.parametrize("kit", KERASES)
def test_a_model_made_again_has_them(tmp_path: Path, kit: str) -> None:
    made = build_model(saved(tmp_path, KERASES[kit]), "model")
    check(made)
    assert made.optimizer.clipvalue == math.inf


@pytest.mark.parametrize("kit", KERASES)
def test_an_export_has_them(tmp_path: Path, kit: str) -> None:
    saved(tmp_path / "run", KERASES[kit])
    export_checkpoint(tmp_path / "run", tmp_path / "out.keras")
    check(KERASES[kit].models.load_model(tmp_path / "out.keras"))


def test_a_build_config_has_them(tmp_path: Path) -> None:
    class Built(keras.Model):  # type: ignore[misc]
        """Makes a variable of a length that its build config tells."""

        def __init__(self) -> None:
            super().__init__()
            self.limit = 0.0

        def build(self, input_shape: Any) -> None:
            self.limit, self.start = math.inf, self.add_weight(shape=(2,), name="start")

        def call(self, inputs: Any) -> Any:
            return inputs + self.start

        def get_build_config(self) -> dict[str, Any]:
            return {"limit": self.limit, "$limit": "with a dollar"}

        def build_from_config(self, config: dict[str, Any]) -> None:
            assert config == {"limit": math.inf, "$limit": "with a dollar"}
            self.build(None)
            self.built = True

    model, fresh = Built(), Built()
    model(keras.ops.zeros((1, 2)))
    model.start.assign([3.0, 4.0])
    with CheckpointManager(tmp_path, {"model": model}) as manager:
        manager.save(1)
    with CheckpointManager(tmp_path, {"model": fresh}) as manager:
        manager.restore_latest()
    assert fresh.start.numpy().tolist() == [3.0, 4.0]


def test_a_config_that_is_read_is_json_and_such_numbers_alone() -> None:
    """What looks configs over before anything is made of them knows nothing else."""
    assert part_of({"config": {"a": {"$tuple": [{"$int": "0x1"}]}}}, "config") == {"a": [1]}
    for value in ({"$bytes": "AA=="}, {"$dict": [[{"$bytes": "AA=="}, 1]]}, {"$odd": 1}, {"$float": "1"}):
        with pytest.raises(CorruptCheckpointError, match="config"):
            part_of({"config": {"a": value}}, "config")
