"""How much is stored is looked up, not believed: what a model may take goes by it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import keras
import msgspec
import pytest
import tf_keras

import ckptflow
from ckptflow.errors import CorruptCheckpointError, UsageError
from ckptflow.format.layout import MANIFEST_NAME
from ckptflow.format.manifest import Manifest, decode, encode
from ckptflow.interop.tensorflow.saved_model import read_keras_saved_model
from ckptflow.interop.untrusted import budget, probe
from ckptflow.state.limits import machine_bytes
from tests.interop.doors import save
from tests.interop.forged import forge_models

TIB = 2**40
UNITS = 3 * 10**7  # of a layer with three inputs: 480 MB, more than a small checkpoint may have


def widen(models: dict[str, Any]) -> None:
    models["model"]["config"]["config"]["layers"][1]["config"]["units"] = UNITS


def claim(root: Path, size_bytes: int) -> Path:
    """Makes the manifest say that the one shard is so long; returns where that is."""
    (path,) = root.rglob(MANIFEST_NAME)
    manifest = decode(path.read_bytes(), Manifest, str(path))
    (shard,) = manifest.shards
    changed = msgspec.structs.replace(shard, size_bytes=size_bytes)
    path.write_bytes(encode(msgspec.structs.replace(manifest, shards=(changed,))))
    return path.with_name(shard.name)


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A run whose manifest describes a large model, and has the values of a small one."""
    save(str(tmp_path / "run"), {"model": keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])})
    forge_models(tmp_path / "run", widen)
    return tmp_path / "run"


@pytest.mark.parametrize("is_given", [False, True])
def test_a_length_that_is_claimed(is_given: bool, wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is built for it, here or in another process."""
    claim(wide, 2**50)
    monkeypatch.setattr(probe, "start", lambda *_: pytest.fail("a process is started"))
    model = keras.Sequential([keras.layers.Dense(2)]) if is_given else None
    with pytest.raises(CorruptCheckpointError, match="bytes, the manifest says 1,125,899,906,842,624"):
        ckptflow.export_checkpoint(wide, tmp_path / "m.keras", model=model)
    assert model is None or not model.built


def test_a_length_of_holes(wide: Path, tmp_path: Path) -> None:
    os.truncate(claim(wide, TIB), TIB)
    with pytest.raises(UsageError, match=rf"asks for variables of more than 6\d,.*{budget.MEMORY_VARIABLE}"):
        ckptflow.export_checkpoint(wide, tmp_path / "m.keras")


def test_what_lies_beside_the_variables_of_a_saved_model(tmp_path: Path) -> None:
    from tf_keras.protobuf import saved_metadata_pb2

    model = tf_keras.Sequential([tf_keras.layers.Input((3,)), tf_keras.layers.Dense(7771)])
    model.save(tmp_path / "m", save_format="tf")
    path = tmp_path / "m" / "keras_metadata.pb"
    metadata = saved_metadata_pb2.SavedMetadata.FromString(path.read_bytes())
    metadata.nodes[0].metadata = metadata.nodes[0].metadata.replace("7771", str(UNITS))
    path.write_bytes(metadata.SerializeToString())
    (tmp_path / "m" / "variables" / "more").touch()
    os.truncate(tmp_path / "m" / "variables" / "more", TIB)
    with pytest.raises(UsageError, match=r"asks for variables of more than 6\d,"):
        read_keras_saved_model(str(tmp_path / "m"))


def test_the_time_for_a_file_larger_than_memory_is_in_proportion() -> None:
    size_bytes = 8 * machine_bytes()
    assert budget.parser_s(size_bytes) >= size_bytes / 2**22
