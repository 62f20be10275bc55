"""What takes without end where Keras, or what builds a model here, would go on without it: refused, not tried again."""

from __future__ import annotations

import json
import resource
import shutil
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import pytest
import tf_keras

from ckptflow.errors import CorruptCheckpointError, UsageError
from ckptflow.interop.keras import files as keras_files
from ckptflow.interop.tensorflow.saved_model import read_keras_saved_model
from ckptflow.interop.untrusted import budget
from ckptflow.interop.untrusted.model_probe import check_builds
from ckptflow.state.configs import describe
from ckptflow.state.tree import walk
from tests.interop.keras_readers import ORIGIN
from tests.interop.models import KERASES

FEW, MANY = "7771", "100000000"  # thresholds, which a metric makes as a list
REFUSED = rf"{budget.MEMORY_VARIABLE}|its config asks for variables of"  # which tf_keras makes before that list


@pytest.fixture(autouse=True)
def little_may_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than usual is less work; `test_probe_keras` takes what a small file may take."""
    monkeypatch.setenv(budget.MEMORY_VARIABLE, str(2**27))


def compiled(framework: str) -> Any:
    kit = {"keras": keras, "tf_keras": tf_keras}[framework]
    model = kit.Sequential([kit.layers.Input((3,)), kit.layers.Dense(1)])
    metric = kit.metrics.SensitivityAtSpecificity(0.5, num_thresholds=int(FEW))
    model.compile("sgd", "mse", metrics=[metric])
    return model


def in_keras(path: Path) -> None:
    changed = path.with_suffix(".changed")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, data.replace(FEW.encode(), MANY.encode()) if name == "config.json" else data)
    shutil.move(changed, path)


def in_h5(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        text = str(file.attrs["training_config"])
        assert FEW in text
        file.attrs["training_config"] = text.replace(FEW, MANY)


@pytest.mark.parametrize("kind", ["keras", "h5"])
@pytest.mark.parametrize("framework", KERASES)
def test_a_metric_of_a_file(framework: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"m.{kind}"
    write, change = {"keras": (keras_files.write_keras, in_keras), "h5": (keras_files.write_h5, in_h5)}[kind]
    write(str(path), compiled(framework), ORIGIN)
    change(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((CorruptCheckpointError, UsageError), match=REFUSED):
        keras_files.read_model(str(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


def test_a_metric_of_a_saved_model(tmp_path: Path) -> None:
    from tf_keras.protobuf import saved_metadata_pb2

    compiled("tf_keras").save(tmp_path / "m", save_format="tf")
    path = tmp_path / "m" / "keras_metadata.pb"
    metadata = saved_metadata_pb2.SavedMetadata.FromString(path.read_bytes())
    assert FEW in metadata.nodes[0].metadata
    metadata.nodes[0].metadata = metadata.nodes[0].metadata.replace(FEW, MANY)
    path.write_bytes(metadata.SerializeToString())
    with pytest.raises((CorruptCheckpointError, UsageError), match=REFUSED):
        read_keras_saved_model(str(tmp_path / "m"))


def test_a_metric_of_a_manifest() -> None:
    described = json.loads(json.dumps(describe(walk({"model": compiled("keras")}))["model"]).replace(FEW, MANY))
    with pytest.raises(CorruptCheckpointError, match=rf"the config of model .*{budget.MEMORY_VARIABLE}"):
        check_builds({"model": described}, "model", None, 2**23, imports=())
