"""Errors and log lines of an import or export name what the user gave, never what stands in for it for a while."""

from __future__ import annotations

import logging
import tarfile
import tempfile
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ckptflow import CheckpointManager, export_checkpoint, import_model
from ckptflow.errors import CkptflowError
from tests.interop.models import without_graph

pytestmark = pytest.mark.usefixtures("unprobed")

GIB = 2**30
OPTIMIZERS = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}


def make(optimizer: str = "adam", units: int = 16) -> Any:
    layers = [keras.layers.Dense(units, name="one"), keras.layers.Dense(8, name="two")]
    model = keras.Sequential([keras.Input((8,)), *layers])
    model.compile(OPTIMIZERS[optimizer](0.01, **({"momentum": 0.9} if optimizer == "sgd" else {})), "mse")
    without_graph(model).train_on_batch(np.ones((4, 8), "f4"), np.ones((4, 8), "f4"))
    return model


def sharded(model: Any, folder: Path) -> Path:
    path = folder / "w.weights.json"
    model.save_weights(str(path), max_shard_size=900 / GIB)
    return path


def unzipped(model: Any, folder: Path) -> Path:
    keras.saving.save_model(model, folder / "unzipped", zipped=False)
    return folder / "unzipped"


def saved(name: str) -> Callable[[Any, Path], Path]:
    def save(model: Any, folder: Path) -> Path:
        path = folder / name
        (model.save_weights if "weights" in name else model.save)(path)
        return path

    return save


KINDS = {
    "keras": saved("my model.keras"),
    "h5": saved("m.h5"),
    "weights": saved("m.weights.h5"),
    "unzipped": unzipped,
    "sharded": sharded,
}


@pytest.fixture
def private(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The folder in which whatever stands in for something lies; its name is short enough for a socket in it."""
    with tempfile.TemporaryDirectory(prefix="stand-ins-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield folder


def to_memory(path: Path) -> str:
    """The same, elsewhere; with what lies beside it, for what needs that."""
    files = fsspec.filesystem("memory")
    base = f"/{uuid.uuid4().hex}"
    files.put(str(path.parent), base, recursive=True)
    return f"memory:/{base}/{path.name}"


@pytest.fixture(params=["here", "elsewhere"])
def placed(request: pytest.FixtureRequest) -> Callable[[Path], str]:
    return str if request.param == "here" else to_memory


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def check_named(text: str, given: str, private: str) -> None:
    assert private not in text.replace(f'File "{private}', ""), text
    assert given in text, text
    assert not any(name in text for name in ("whole.weights", "unzipped/", "m.h5/", "weights.h5/")), text


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_logged(
    kind: str, placed: Callable[[Path], str], private: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    given = placed(KINDS[kind](make(), folder))
    with caplog.at_level(logging.DEBUG):
        import_model(given, tmp_path / "run", model=make("sgd"))  # whose optimizer starts anew, which is logged
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("ckptflow")]
    check_named("\n".join(ours), given, private)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_raised(kind: str, placed: Callable[[Path], str], private: str, tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    path = KINDS[kind](make(), folder)
    with pytest.raises(CkptflowError) as raised:
        import_model(placed(path), tmp_path / "run", model=make(units=7))
    assert private not in shown(raised.value), shown(raised.value)
    for file in [path] if path.suffix in (".keras", ".h5") else [*path.glob("*.h5"), *folder.glob("*.h5")]:
        data = bytearray(file.read_bytes())
        data[len(data) // 3 : len(data) // 2] = b"\xff" * (len(data) // 2 - len(data) // 3)
        file.write_bytes(data)
    given = placed(path)
    for model in (None, make()):
        with pytest.raises(CkptflowError) as raised:
            import_model(given, tmp_path / "run", model=model)
        assert private not in shown(raised.value), shown(raised.value)
        assert given.rpartition("/")[0] in str(raised.value)


def test_a_packed_module(placed: Callable[[Path], str], private: str, tmp_path: Path) -> None:
    module = tf.Module()
    module.v = tf.Variable([1.0, 2.0])
    tf.saved_model.save(module, str(tmp_path / "module"))
    (tmp_path / "module" / "variables" / "variables.index").write_bytes(b"no index")
    (tmp_path / "given").mkdir()
    path = tmp_path / "given" / "m.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tmp_path / "module", ".")
    given = placed(path)
    with pytest.raises(CkptflowError) as raised:
        import_model(given, tmp_path / "run")
    check_named(shown(raised.value), given, private)


class Refuses(tf_keras.layers.Layer):  # type: ignore[misc]
    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError


def test_what_an_export_cannot_write(private: str, tmp_path: Path) -> None:
    """The staging folder is beside the destination."""
    model = tf_keras.Sequential([tf_keras.layers.Input((3,)), Refuses(), tf_keras.layers.Dense(2)])
    with CheckpointManager(tmp_path / "run", {"model": model}) as manager:
        manager.save(1)
    for suffix in ("keras", "h5"):
        with pytest.raises(CkptflowError) as raised:
            export_checkpoint(tmp_path / "run", tmp_path / f"out.{suffix}", model=model)
        assert "ckptflow-" not in shown(raised.value).replace("/ckptflow/", ""), shown(raised.value)
