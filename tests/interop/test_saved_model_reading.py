"""SavedModels as the beginning of a run: without code by names, as a tf_keras model, into the user's model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ckptflow
from ckptflow.errors import CorruptCheckpointError, StateMismatchError, UnknownVersionError, UsageError
from ckptflow.interop.tensorflow.saved_model import (
    load_saved_model_into,
    read_keras_saved_model,
    read_saved_model,
    write_saved_model,
)
from ckptflow.state.tree import walk
from tests.interop import models
from tests.interop.named import commit_tensors
from tests.interop.stock import run_stock

pytestmark = pytest.mark.usefixtures("unprobed")


def values_of(state: dict[str, Any]) -> dict[str, Any]:
    """Every variable of the state by its name in a checkpoint."""
    return {name: np.asarray(variable) for name, variable in walk(state).variables.items()}


def differing(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    assert first.keys() == second.keys()
    return sorted(name for name in first if not np.array_equal(first[name], second[name]))


# Our own


@pytest.mark.parametrize(("framework", "name"), [("keras", "text"), ("keras", "subclassed"), ("tf_keras", "text")])
def test_our_own_gives_the_runs_names_back(framework: str, name: str, tmp_path: Path) -> None:
    case = models.CASES[name]
    model = case.make(framework)
    write_saved_model(str(tmp_path / "m"), model, None)
    tensors = read_saved_model(str(tmp_path / "m"))
    tree = walk({"model": model})
    has_optimizer = framework == "tf_keras"
    wanted = {
        leaf.name
        for leaf in tree.leaves
        if not leaf.metric and (has_optimizer or not leaf.name.startswith("model/optimizer/"))
    }
    assert wanted <= tensors.infos.keys() <= {leaf.name for leaf in tree.leaves}
    for each, value in values_of({"model": model}).items():
        if each in tensors.infos:
            assert np.array_equal(tensors.read(each), value), each
    assert tensors.models["model"]["config"]["class_name"]
    assert ("compile_config" in tensors.models["model"]) == has_optimizer
    assert ("model/optimizer" in tensors.models) == has_optimizer
    commit_tensors(str(tmp_path / "run"), 5, tensors)
    again = case.build(framework)
    with ckptflow.CheckpointManager(tmp_path / "run", {"model": again}) as manager:
        restored = manager.restore_latest(partial=not has_optimizer)
    assert restored is not None
    assert restored.step == 5
    np.testing.assert_allclose(case.predict(again), case.predict(model), atol=1e-6)
    if has_optimizer:
        assert int(again.optimizer.iterations.numpy()) == 2


def test_a_run_goes_on_under_the_path_that_it_had(tmp_path: Path) -> None:
    model = models.CASES["dense"].make("keras")
    write_saved_model(str(tmp_path / "m"), model, None, path="net", described={"kind": "model", "note": 1})
    tensors = read_saved_model(str(tmp_path / "m"))
    assert all(name.startswith("net/") for name in tensors.infos)
    assert tensors.models == {"net": {"kind": "model", "note": 1}}


# Others': TensorFlow's objects


class Module(tf.Module):  # type: ignore[misc]
    """Layers in lists and dicts, a name that is stripped, one variable at two places, a table."""

    def __init__(self) -> None:
        super().__init__()
        self._hidden = tf.Variable(tf.random.normal([3, 3]))
        self.blocks = [{"kernel": tf.Variable(tf.random.normal([3]))} for _ in range(2)]
        self.same = self.blocks[0]["kernel"]
        self.table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
        self.fixed = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a"], [1]), 0)

    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def __call__(self, x: Any) -> Any:
        return x @ self._hidden + self.blocks[1]["kernel"] + tf.cast(self.table.lookup(["a"]), tf.float32)


def stock_module(folder: Path, *, is_reusable: bool) -> Module:
    module = Module()
    module.table.insert(["a"], [7])
    if is_reusable:  # as Hub's modules have it: first, and shorter than any path
        reusable = tf.__internal__.tracking.AutoTrackable()
        reusable.variables = [*module.variables]
        for name, child in tf.train.TrackableView.children(module).items():
            reusable._track_trackable(child, name)
        tf.saved_model.save(reusable, str(folder))
    else:
        tf.saved_model.save(module, str(folder))
    return module


@pytest.mark.parametrize("is_reusable", [False, True])
def test_names_are_those_that_the_walk_gives(is_reusable: bool, tmp_path: Path) -> None:
    module = stock_module(tmp_path / "m", is_reusable=is_reusable)
    tensors = read_saved_model(str(tmp_path / "m"))
    assert set(tensors.infos) == {leaf.name for leaf in walk({"model": module}).leaves}
    assert "model/same" in {alias for aliases in tensors.aliases.values() for alias in (*aliases, *tensors.infos)}
    commit_tensors(str(tmp_path / "run"), 0, tensors)
    again = Module()
    with ckptflow.CheckpointManager(tmp_path / "run", {"model": again}) as manager:
        assert manager.restore_latest() is not None
    x = tf.random.normal([2, 3])
    assert np.array_equal(again(x), module(x))


def test_into_a_module(tmp_path: Path) -> None:
    module = stock_module(tmp_path / "m", is_reusable=False)
    again = Module()
    load_saved_model_into(str(tmp_path / "m"), again)
    assert differing(values_of({"model": module}), values_of({"model": again})) == []
    assert int(again.table.lookup("a")) == 7
    again.more = tf.Variable(1.0)
    again._hidden = tf.Variable(tf.zeros([3, 4]))
    before = values_of({"model": again})
    with pytest.raises(StateMismatchError, match="no value was changed") as caught:
        load_saved_model_into(str(tmp_path / "m"), again)
    assert "model/more: in the state, not in the SavedModel" in str(caught.value)
    assert "model/hidden: shape (3, 3) in the SavedModel, (3, 4) in the state" in str(caught.value)
    assert differing(before, values_of({"model": again})) == []


STOCK = """
import sys
sys.path.insert(0, argument["tests"])
import keras, tf_keras, tensorflow as tf
from tests.interop import models

for name in ("dense", "subclassed", "many_inputs"):
    model = models.CASES[name].make("keras")
    model.export(f"{argument['root']}/keras-{name}", verbose=False)
    model.save_weights(f"{argument['root']}/keras-{name}.weights.h5")
for name in ("dense", "text"):
    model = models.CASES[name].make("tf_keras")
    model.save(f"{argument['root']}/tf_keras-{name}", save_format="tf")
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(f"{argument['root']}/tf_keras-{name}.ckpt")

with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    x = tf.compat.v1.placeholder(tf.float32, [None, 2], name="x")
    w = tf.compat.v1.get_variable("dense/w", initializer=[[1.0], [2.0]])
    session.run(tf.compat.v1.global_variables_initializer())
    tf.compat.v1.saved_model.simple_save(session, f"{argument['root']}/v1", {"x": x}, {"y": x @ w})
answer = None
"""


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stock Keras, tf_keras and TensorFlow 1's API saved, with the same weights in another stock format."""
    root: Path = tmp_path_factory.mktemp("stock")
    run_stock(STOCK, {"root": str(root), "tests": str(Path(__file__).resolve().parents[2])})
    return root


@pytest.mark.parametrize("name", ["dense", "subclassed", "many_inputs"])
def test_what_keras_exports_goes_into_the_model(name: str, stock: Path) -> None:
    case = models.CASES[name]
    model, reference = case.make("keras"), case.build("keras")
    load_saved_model_into(str(stock / f"keras-{name}"), model)
    reference.load_weights(stock / f"keras-{name}.weights.h5")
    np.testing.assert_allclose(case.predict(model), case.predict(reference), atol=1e-6)
    assert case.predict(model).std() > 0
    other = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    with pytest.raises(StateMismatchError, match=r"variables in order.* the model has 2"):
        load_saved_model_into(str(stock / f"keras-{name}"), other)


def test_a_keras_model_that_tensorflow_saved_goes_by_the_graph(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = models.CASES["dense"]
    model = case.make("keras")
    tf.saved_model.save(model, str(tmp_path / "m"))
    again = case.build("keras")
    load_saved_model_into(str(tmp_path / "m"), again)
    np.testing.assert_allclose(case.predict(again), case.predict(model), atol=1e-6)
    assert int(again.optimizer.iterations) == case.steps
    assert "starts fresh" not in caplog.text


def test_a_source_without_the_optimizer_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = models.CASES["dense"].make("keras")
    write_saved_model(str(tmp_path / "m"), model, None)
    load_saved_model_into(str(tmp_path / "m"), models.CASES["dense"].make("keras"))
    assert "starts fresh" in caplog.text


def test_keras_exports_of_another_shape_are_refused(stock: Path) -> None:
    layers = [keras.Input((8,)), keras.layers.Dense(17), keras.layers.BatchNormalization(), keras.layers.Dropout(0.3)]
    model = keras.Sequential([*layers, keras.layers.Dense(5)])
    before = values_of({"model": model})
    with pytest.raises(StateMismatchError) as caught:
        load_saved_model_into(str(stock / "keras-dense"), model)
    assert "model/dense/kernel: shape (8, 16) in the SavedModel, (8, 17) in the state" in str(caught.value)
    assert differing(before, values_of({"model": model})) == []


@pytest.mark.parametrize("name", ["dense", "text"])
def test_tf_keras_models_come_back_with_their_optimizer(name: str, stock: Path) -> None:
    """Stock tf_keras brings its config alone; the values are in the SavedModel."""
    case = models.CASES[name]
    reference = case.make("tf_keras")
    checkpoint = tf.train.Checkpoint(model=reference, optimizer=reference.optimizer)
    checkpoint.read(str(stock / f"tf_keras-{name}.ckpt")).assert_existing_objects_matched()
    folder = str(stock / f"tf_keras-{name}")
    if name == "text":
        with pytest.raises(UsageError, match=r"authors/vocabulary.* graph .*--unsafe"):
            read_keras_saved_model(folder)
    read = read_keras_saved_model(folder, unsafe=name == "text")
    assert int(read.optimizer.iterations.numpy()) == case.steps
    into = case.build("tf_keras")
    load_saved_model_into(str(stock / f"tf_keras-{name}"), into)
    for model in (read, into):
        np.testing.assert_allclose(case.predict(model), case.predict(reference), atol=1e-6)
        assert int(model.optimizer.iterations.numpy()) == case.steps
        mine, other = values_of({"optimizer": model.optimizer}), values_of({"optimizer": reference.optimizer})
        assert len(mine) == 2 + 2 * len(model.trainable_variables)
        assert differing(mine, other) == []


def test_a_saved_model_of_tensorflow_1(stock: Path) -> None:
    tensors = read_saved_model(str(stock / "v1"))
    assert list(tensors.infos) == ["model/dense/w"]
    assert tensors.read("model/dense/w").tolist() == [[1.0], [2.0]]


# Code


def test_lambda_layers_are_refused(tmp_path: Path) -> None:
    inner = tf_keras.Sequential([tf_keras.Input((2,)), tf_keras.layers.Lambda(lambda x: x * 3.0)])
    model = tf_keras.Sequential([tf_keras.Input((2,)), inner])
    model.compile("sgd", "mse")
    model.save(tmp_path / "m", save_format="tf")
    with pytest.raises(UsageError, match=r"Lambda layer .* unsafe=True"):
        read_keras_saved_model(str(tmp_path / "m"))
    read = read_keras_saved_model(str(tmp_path / "m"), unsafe=True)
    assert read(tf.ones([1, 2])).numpy().tolist() == [[3.0, 3.0]]


# Bad input


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("whole") / "m"
    model = tf_keras.Sequential([tf_keras.Input((50,)), tf_keras.layers.Dense(40)])
    model.compile("adam", "mse")
    write_saved_model(str(folder), model, None)
    return folder


READERS: dict[str, Callable[[str], Any]] = {
    "by names": lambda folder: [read_saved_model(folder).read(name) for name in read_saved_model(folder).infos],
    "as a model": read_keras_saved_model,
    "into a model": lambda folder: load_saved_model_into(
        folder, tf_keras.Sequential([tf_keras.Input((50,)), tf_keras.layers.Dense(40)])
    ),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("saved_model.pb", flip),
        ("saved_model.pb", cut),
        ("variables/variables.data-00000-of-00001", flip),
        ("variables/variables.data-00000-of-00001", cut),
        ("variables/variables.data-00000-of-00001", Path.unlink),
        ("variables/variables.index", flip),
        ("variables/variables.index", cut),
        ("variables/variables.index", Path.unlink),
        ("variables", shutil.rmtree),
        ("fingerprint.pb", cut),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_damage_is_found(name: str, damage: Callable[[Path], None], reader: str, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(whole, folder)
    READERS[reader](str(folder))
    damage(folder / name)
    with pytest.raises(CorruptCheckpointError) as caught:
        READERS[reader](str(folder))
    assert str(folder) in str(caught.value)


def test_damage_of_what_lies_beside(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(whole, folder)
    names = folder / "assets.extra" / "ckptflow-model.json"
    good = names.read_text()
    for bad in (good[: len(good) // 2], "[]", good.replace('"path":"model"', '"path":3'), "[" * 100_000):
        names.write_text(bad)
        with pytest.raises(CorruptCheckpointError, match=r"ckptflow-model\.json"):
            read_saved_model(str(folder))
    names.write_text(good.replace("layer_with_weights-0/kernel/", "layer_with_weights-0/nothing/"))
    with pytest.raises(CorruptCheckpointError, match="model/dense/kernel"):
        read_saved_model(str(folder))
    names.write_text(good.replace('"version":1', '"version":2'))
    with pytest.raises(UnknownVersionError, match="upgrade"):
        read_saved_model(str(folder))


def test_what_is_no_saved_model(tmp_path: Path) -> None:
    (tmp_path / "variables").mkdir()
    for reader in READERS.values():
        with pytest.raises(UsageError, match="is no SavedModel"):
            reader(str(tmp_path))
        with pytest.raises(UsageError, match="is no SavedModel"):
            reader(str(tmp_path / "nowhere"))


def test_a_model_without_variables(tmp_path: Path) -> None:
    module = tf.Module()
    module.f = tf.function(lambda x: x, input_signature=[tf.TensorSpec([])])
    tf.saved_model.save(module, str(tmp_path / "m"))
    assert dict(read_saved_model(str(tmp_path / "m")).infos) == {}


def test_our_own_tf_keras_model_comes_back_by_the_graph(tmp_path: Path) -> None:
    """Layers count as TensorFlow counts them: stock `load_weights`, and the optimizer, go by that."""
    case = models.CASES["text"]
    model = case.make("tf_keras")
    write_saved_model(str(tmp_path / "m"), model, None)
    read = read_keras_saved_model(str(tmp_path / "m"))
    mine, other = values_of({"optimizer": read.optimizer}), values_of({"optimizer": model.optimizer})
    assert differing(mine, other) == []
    stock = case.make("tf_keras")
    stock.load_weights(str(tmp_path / "m")).assert_existing_objects_matched()
    np.testing.assert_allclose(case.predict(stock), case.predict(model), atol=1e-6)
