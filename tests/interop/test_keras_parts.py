"""What Keras saved as several files: read whole, and never a part of it for the whole."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

import ckptflow
from ckptflow.errors import CkptflowError, CorruptCheckpointError, ObjectNotFoundError, UsageError
from ckptflow.interop.keras import parts as keras_parts
from ckptflow.interop.untrusted import budget
from ckptflow.interop.untrusted.hdf5_probe import check_survives
from tests.interop.models import without_graph
from tests.interop.places import Place
from tests.servers import Server
from tests.storage.backends import S3Backend

pytestmark = pytest.mark.usefixtures("unprobed")

GIB = 2**30


def make() -> Any:
    layers = [keras.layers.Dense(16, name="one"), keras.layers.BatchNormalization(), keras.layers.Dense(8, name="two")]
    model = keras.Sequential([keras.Input((8,)), *layers])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return without_graph(model)


@pytest.fixture(scope="module")
def trained() -> Any:
    model = make()
    model.train_on_batch(np.ones((4, 8), "f4"), np.ones((4, 8), "f4"))
    return model


@pytest.fixture(scope="module")
def sharded(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index of weights that stock Keras saved as several files."""
    path: Path = tmp_path_factory.mktemp("sharded") / "w.weights.json"
    trained.save_weights(str(path), max_shard_size=900 / GIB)
    assert len(list(path.parent.glob("*.weights.h5"))) > 2
    return path


@pytest.fixture(scope="module")
def unzipped(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("unzipped") / "model"
    keras.saving.save_model(trained, path, zipped=False)
    return path


def check_same(model: Any, trained: Any) -> None:
    assert all(map(np.array_equal, model.get_weights(), trained.get_weights()))
    assert all(
        np.array_equal(*each) for each in zip(model.optimizer.variables, trained.optimizer.variables, strict=True)
    )


def test_sharded_weights(sharded: Path, trained: Any, tmp_path: Path) -> None:
    for source in (sharded, sharded.parent):  # the index, or the folder
        for is_partial in (False, True):
            model = make()
            url = tmp_path / f"{source.name}-{is_partial}"
            done = ckptflow.import_model(source, url, model=model, partial=is_partial)
            assert done.metadata["imported"]["source"] == str(source)
            check_same(model, trained)
        ckptflow.import_model(source, tmp_path / f"{source.name}-tensors")
        with ckptflow.open_checkpoint(tmp_path / f"{source.name}-tensors") as opened:
            names = {each.name for each in opened.manifest.tensors}
            assert len(names) == len(trained.weights) + len(trained.optimizer.variables)
            assert np.array_equal(opened["layers/dense/0"], trained.layers[0].kernel)


class AsDocumented(keras.optimizers.Optimizer):  # type: ignore[misc]
    """An optimizer as the docstring of Keras's own class says: `build` does not look whether it was called before."""

    def build(self, variables: list[Any]) -> None:
        super().build(variables)
        self.momentums = [self.add_variable_from_reference(each, name="momentum") for each in variables]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        momentum = self.momentums[self._get_variable_index(variable)]
        self.assign(momentum, momentum * 0.9 + gradient)
        self.assign_sub(variable, momentum * learning_rate)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "learning_rate": 0.01}


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "as documented": lambda: AsDocumented(0.01),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)),
    "averaged": lambda: keras.optimizers.SGD(0.01, momentum=0.9, use_ema=True),
    "accumulating": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
}


@pytest.mark.parametrize(
    ("name", "suffix"), [("as documented", "weights.json"), *((name, "weights.h5") for name in OPTIMIZERS)]
)
def test_no_variable_of_an_optimizer_is_there_twice(name: str, suffix: str, tmp_path: Path) -> None:
    """Whether the model was trained before or not, it gets what was saved."""

    def made() -> Any:
        model = make()
        model.compile(OPTIMIZERS[name](), "mse")
        return without_graph(model)

    def train(model: Any) -> Any:
        model.train_on_batch(np.ones((4, 8), "f4"), np.ones((4, 8), "f4"))
        return model

    saved, path = train(made()), tmp_path / f"w.{suffix}"
    saved.save_weights(str(path), **({"max_shard_size": 900 / GIB} if suffix == "weights.json" else {}))
    for number, model in enumerate((made(), train(made()))):
        ckptflow.import_model(path, tmp_path / f"run-{number}", model=model)
        check_same(model, saved)
        train(model)


def test_the_name_of_an_optimizer_comes_along(sharded: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Adam's slots fit AdamW's by their shapes."""
    model = make()
    model.compile(keras.optimizers.AdamW(0.5), "mse")
    ckptflow.import_model(sharded, tmp_path / "run", model=model)
    assert "it is that of Adam, another class than the model's AdamW" in caplog.text
    assert float(model.optimizer.learning_rate) == 0.5
    assert int(model.optimizer.iterations) == 0


def test_a_part_is_not_the_whole(sharded: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sharded.parent, tmp_path / "copy")
    for shard in sorted(folder.glob("*.weights.h5")):
        for model in (None, make()):
            with pytest.raises(UsageError, match=r"a part of the weights.*w\.weights\.json"):
                ckptflow.import_model(shard, tmp_path / "run", model=model, partial=model is not None)
    (folder / "w_00001.weights.h5").rename(folder / "elsewhere.h5")
    with pytest.raises(ObjectNotFoundError, match=r"w_00001\.weights\.h5"):
        ckptflow.import_model(folder / "w.weights.json", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    make_epoch = tmp_path / "epoch_00003.weights.h5"  # a number that is no shard's
    make().save_weights(str(make_epoch))
    ckptflow.import_model(make_epoch, tmp_path / "epoch")


@pytest.mark.parametrize("name", ["m.weights.v2.weights.json", "best_weights.json", "m.weights.json"])
def test_a_part_is_known_by_any_index_beside_it(name: str, trained: Any, tmp_path: Path) -> None:
    """Keras leaves each `.weights` out of the names of the parts."""
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "unlike_weights.json").write_text("{}")
    trained.save_weights(str(folder / name), max_shard_size=900 / GIB)
    for source in (folder / name, folder):
        model = make()
        ckptflow.import_model(source, tmp_path / f"run-{source.name}", model=model)
        check_same(model, trained)
    shards = sorted(folder.glob("*.weights.h5"))
    assert len(shards) > 2
    for shard in shards:
        with pytest.raises(UsageError, match=f"a part of the weights of {name}: name that"):
            ckptflow.import_model(shard, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_what_may_be_a_part_is_said_to_be(sharded: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Alone, nothing but its name tells: it may be that of an epoch. All weights of a model are in none of them."""
    folder = tmp_path / "alone"
    folder.mkdir()
    shutil.copy(sharded.parent / "w_00000.weights.h5", folder)
    for number, source in enumerate((folder / "w_00000.weights.h5", folder)):
        for is_partial in (False, True):
            caplog.clear()
            model = make() if is_partial else None
            ckptflow.import_model(source, tmp_path / f"run-{number}-{is_partial}", model=model, partial=is_partial)
            assert "w_00000.weights.h5 may have a part of the weights alone" in caplog.text
        with pytest.raises(CkptflowError, match="does not fit"):
            ckptflow.import_model(source, tmp_path / "none", model=make())
    whole = tmp_path / "epoch_00003.weights.h5"
    make().save_weights(str(whole))
    caplog.clear()
    ckptflow.import_model(whole, tmp_path / "epoch", model=make())
    assert "may have a part" not in caplog.text


@pytest.mark.parametrize(
    "index",
    [
        b" ", b"[]", b"{}", b"{", b'{"weight_map": 3}', b'{"weight_map": {}}', b'{"weight_map": {"/a/vars": 3}}',
        b'{"weight_map": {"/a/vars": []}}', b'{"weight_map": {"/a/vars": ["../w_00000.weights.h5"]}}',
        b'{"weight_map": {"/a/vars": "/etc/passwd"}}', b'{"weight_map": {"/nothing/vars": "w_00000.weights.h5"}}',
        b"\xff\xfe" * 9,
    ],
)  # fmt: skip
def test_an_index_that_is_wrong(index: bytes, sharded: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sharded.parent, tmp_path / "copy")
    (folder / "w.weights.json").write_bytes(index)
    with pytest.raises(CorruptCheckpointError):
        ckptflow.import_model(folder / "w.weights.json", tmp_path / "run")


def test_shards_that_are_wrong(sharded: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sharded.parent, tmp_path / "copy")
    first, second = folder / "w_00000.weights.h5", folder / "w_00001.weights.h5"
    data = first.read_bytes()
    first.write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptCheckpointError, match="w_00000"):
        ckptflow.import_model(folder / "w.weights.json", tmp_path / "run")
    first.write_bytes(data)
    with h5py.File(first) as one, h5py.File(second, "r+") as other:
        found: list[str] = []
        one.visititems(lambda name, obj: found.append(name) if isinstance(obj, h5py.Dataset) else None)
        other[found[0]] = np.zeros(3)
    with pytest.raises(CorruptCheckpointError, match="in another shard as well"):
        ckptflow.import_model(folder / "w.weights.json", tmp_path / "run")
    shutil.copy(sharded.parent / second.name, second)
    with h5py.File(second, "r+") as other:
        other["layers/away"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(CorruptCheckpointError, match="ExternalLink"):
        ckptflow.import_model(folder / "w.weights.json", tmp_path / "run")


def test_a_model_that_was_not_zipped(unzipped: Path, trained: Any, tmp_path: Path) -> None:
    ckptflow.import_model(unzipped, tmp_path / "run")
    again, filled = make(), make()
    with ckptflow.CheckpointManager(tmp_path / "run", {"model": again}) as manager:
        manager.restore_latest()
    check_same(again, trained)
    ckptflow.import_model(unzipped, tmp_path / "filled", model=filled)
    check_same(filled, trained)
    (tmp_path / "named").symlink_to(unzipped)  # by the user
    ckptflow.import_model(tmp_path / "named", tmp_path / "by a link")
    config = json.loads((unzipped / "config.json").read_text())
    config["config"]["layers"][1]["module"] = "os"
    shutil.copytree(unzipped, tmp_path / "changed")
    (tmp_path / "changed" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CkptflowError):
        ckptflow.import_model(tmp_path / "changed", tmp_path / "none")


def cached(model: Path, entry: Path) -> Path:
    """A model's folder as Hugging Face's cache holds it: each file a link to one that is named by its content."""
    snapshot = entry / "snapshots" / "abc"
    (entry / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in model.rglob("*") if path.is_file())):
        blob = entry / "blobs" / f"{number:040x}"
        shutil.copy(path, blob)
        link = snapshot / path.relative_to(model)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_a_folder_of_links(unzipped: Path, trained: Any, tmp_path: Path) -> None:
    model = shutil.copytree(unzipped, tmp_path / "model")
    (model / "assets" / "layer").mkdir(parents=True)
    (model / "assets" / "layer" / "vocabulary.txt").write_text("a\nb")
    snapshot = cached(model, tmp_path / "models--a--b")
    filled = make()
    ckptflow.import_model(snapshot, tmp_path / "run", model=filled)
    check_same(filled, trained)
    keras_parts.zip_model(str(snapshot), str(tmp_path / "m.keras"))
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        assert archive.read("assets/layer/vocabulary.txt") == b"a\nb"
        assert archive.read("config.json") == (model / "config.json").read_bytes()
    (snapshot / "config.json").resolve().unlink()
    with pytest.raises(ObjectNotFoundError, match=r"abc/config\.json"):
        ckptflow.import_model(snapshot, tmp_path / "no run")


@pytest.mark.parametrize("away", ["assets", "assets/file", "assets/inner", "assets/inner/file"])
@pytest.mark.parametrize("is_cached", [False, True])
def test_a_link_below_assets_brings_nothing_from_elsewhere(
    away: str, is_cached: bool, unzipped: Path, tmp_path: Path
) -> None:
    """What a folder from somebody else would have in the checkpoint is any file that its importer may read."""
    secret = tmp_path / "entry" / "blobs beside" / "secret"
    secret.parent.mkdir(parents=True)
    secret.write_text("x")
    folder = tmp_path / "entry" / ("snapshots/abc" if is_cached else "model")
    shutil.copytree(unzipped, folder)
    shutil.rmtree(folder / "assets")
    (folder / away).parent.mkdir(parents=True, exist_ok=True)
    (folder / away).symlink_to(secret if away.endswith("file") else secret.parent)
    with pytest.raises(UsageError, match=rf"{away} is a link to .*blobs beside.*outside of the model's folder"):
        ckptflow.import_model(folder, tmp_path / "run")
    (tmp_path / "entry" / "blobs").symlink_to(secret.parent)
    with pytest.raises(UsageError, match="outside of the model's folder"):
        ckptflow.import_model(folder, tmp_path / "run")


def test_both_from_elsewhere(sharded: Path, unzipped: Path, trained: Any, seaweedfs: Server, tmp_path: Path) -> None:
    place = Place("s3", S3Backend(seaweedfs, "fsspec"), seaweedfs.storage_options)
    for folder, name in ((sharded.parent, f"shards/{sharded.name}"), (unzipped, "folder")):
        place.upload(folder, name.partition("/")[0])
        model = make()
        ckptflow.import_model(place.url(name), tmp_path / name, model=model, source_options=place.options)
        check_same(model, trained)
    part = place.url("shards/w_00000.weights.h5")
    with pytest.raises(UsageError, match="a part of the weights"):
        ckptflow.import_model(part, tmp_path / "part", source_options=place.options)


def test_files_of_a_checkpoint_of_tensorflow(tmp_path: Path) -> None:
    import tensorflow as tf

    prefix = tf.train.Checkpoint(v=tf.Variable(1.0)).write(str(tmp_path / "model.ckpt-7"))
    (tmp_path / "model.ckpt-7.meta").write_bytes(b"a graph")
    for name in ("model.ckpt-7.meta", "model.ckpt-7.data-00000-of-00001"):
        for kind in (None, "tf-checkpoint"):
            with pytest.raises(UsageError, match=r"by its prefix: .*/model\.ckpt-7$"):
                ckptflow.import_model(tmp_path / name, tmp_path / "run", format=kind)
    ckptflow.import_model(f"{prefix}.index", tmp_path / "run")


def test_sharded_weights_are_measured_by_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by their index, which is a small file whatever the weights are."""
    path = tmp_path / "w.weights.json"
    layers = [keras.layers.Dense(2**10, use_bias=False, name=f"layer_{number}") for number in range(3)]
    keras.Sequential([keras.Input((2**10,)), *layers]).save_weights(str(path), max_shard_size=6 * 2**20 / GIB)
    monkeypatch.setattr(budget, "UNPACKED_FREE_BYTES", 2**16)
    ckptflow.import_model(path, tmp_path / "run")
    with ckptflow.open_checkpoint(tmp_path / "run") as opened:
        assert sum(each.size_bytes for each in opened.manifest.tensors) == 3 * 2**22


@pytest.mark.parametrize("beside", ["{}", "[1]", '{"weight_map": {"a": 3}}', "<html>", ""])
def test_a_file_is_not_refused_for_what_lies_beside_it(beside: str, trained: Any, tmp_path: Path) -> None:
    """A name with a number may be that of an epoch, and a web server may have a page for any name."""
    path = tmp_path / "model_00012.weights.h5"
    trained.save_weights(str(path))
    (tmp_path / "model.weights.json").write_text(beside)
    model = make()
    ckptflow.import_model(path, tmp_path / "run", model=model)
    check_same(model, trained)


def test_shards_are_read_as_they_were_checked(
    sharded: Path, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever changes a shard once the other process has read it changes nothing."""
    folder = shutil.copytree(sharded.parent, tmp_path / "copy")

    def check_then_change(path: str) -> None:
        check_survives(path)
        (folder / Path(path).name).write_bytes(b"another")

    monkeypatch.setattr(keras_parts, "check_survives", check_then_change)
    model = make()
    ckptflow.import_model(folder / sharded.name, tmp_path / "run", model=model)
    check_same(model, trained)
