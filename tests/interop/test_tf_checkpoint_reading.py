"""tf-checkpoint, the way in: what stock wrote, by name and by graph, with the program's objects and without."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ckptflow
from ckptflow.errors import StateMismatchError
from ckptflow.interop.tensorflow.bundle import TensorBundle
from ckptflow.interop.tensorflow.checkpoint import names_of, read_bundle, restore_objects
from ckptflow.state.tree import walk
from tests.interop.named import commit_tensors
from tests.interop.test_tf_checkpoint import content, save, trained
from tests.interop.tf_states import STATES, train_step

pytestmark = pytest.mark.usefixtures("unprobed")


def imported(prefix: str, url: Path) -> None:
    commit_tensors(url, 0, read_bundle(prefix))


def restore(url: Path, state: Any, **how: Any) -> None:
    with ckptflow.CheckpointManager(url, state) as manager:
        assert manager.restore_latest(**how) is not None


# Names


@pytest.mark.parametrize("name", ["everything", "variables", "tf_keras legacy custom loop"])
def test_names_are_those_of_the_walk(name: str, tmp_path: Path) -> None:
    """Where the walk follows TensorFlow's graph; layers by position are all that it calls otherwise."""
    state = trained(name)
    found = read_bundle(tf.train.Checkpoint(**state).write(str(tmp_path / "stock")))
    expected = {leaf.name for leaf in walk(state).leaves if not leaf.metric}
    layers = {"dense": "layer_with_weights-0", "batch_normalization": "layer_with_weights-1",
              "dense_1": "layer_with_weights-2"}  # fmt: skip
    expected = {re.sub(r"\b(dense_1|dense|batch_normalization)\b", lambda m: layers[m[0]], each) for each in expected}
    assert set(found.infos) == expected
    assert found.left_out == ()
    if name == "everything":
        assert found.aliases["module/again"] == ("module/nested/a/b/0",)


def test_slots_of_a_keras_3_optimizer_are_called_by_their_variables(tmp_path: Path) -> None:
    prefix = tf.train.Checkpoint(**trained("keras custom loop")).write(str(tmp_path / "stock"))
    names = set(read_bundle(prefix).infos)
    assert {"optimizer/iterations", "optimizer/velocity/net/functional/operations/1/kernel", "step"} <= names


def test_a_checkpoint_by_names_keeps_them(tmp_path: Path) -> None:
    """As `tf.compat.v1.train.Saver` writes it."""
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "v1"), tensor_names=["dense/kernel", "/odd/", "step"], shape_and_slices=["", "", ""],
        tensors=[tf.ones([2, 3]), tf.constant(1), tf.constant(7, tf.int64)],
    )  # fmt: skip
    found = read_bundle(str(tmp_path / "v1"))
    assert set(found.infos) == {"dense/kernel", "odd", "step"}
    assert found.object_graph is None
    assert found.read("step").tolist() == 7
    module = tf.Module()
    module.kernel = tf.Variable(tf.zeros([2, 3]), name="dense/kernel")
    imported(str(tmp_path / "v1"), tmp_path / "run")
    restore(tmp_path / "run", {"m": module}, partial=True, rename={"dense": "m"})
    assert module.kernel.numpy().tolist() == [[1, 1, 1]] * 2


def test_names_of_a_proto_alone(tmp_path: Path) -> None:
    state = trained("everything")
    bundle = TensorBundle(tf.train.Checkpoint(root=state["module"]).write(str(tmp_path / "stock")))
    names = names_of(bundle.object_graph(), prefix="model")
    assert names["table/.ATTRIBUTES/table-keys"] == ("model/table/keys",)
    assert names["iterator/.ATTRIBUTES/ITERATOR_STATE"] == ("model/iterator/position",)
    assert names == names_of(bundle.object_graph(), bundle.infos, prefix="model")


# Without the program's objects


@pytest.mark.parametrize("name", STATES)
def test_a_restore_finds_the_objects_by_the_graph(name: str, tmp_path: Path) -> None:
    state = trained(name)
    stock = tf.train.Checkpoint(**state).save(str(tmp_path / "stock"))
    imported(stock, tmp_path / "run")
    fresh = STATES[name].make()
    restore(tmp_path / "run", fresh)
    assert content(tf.train.Checkpoint(**fresh).write(str(tmp_path / "again"))) == content(stock)


def _model(framework: Any, *, built: bool) -> Any:
    model = framework.Sequential([framework.Input((4,)), framework.layers.Dense(3), framework.layers.Dense(2)])
    model.compile(framework.optimizers.Adam(0.1), "mse")
    if built:
        train_step(model, model.optimizer)
    return model


def _subclassed() -> Any:
    class Net(tf_keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.rest = tf_keras.layers.Dense(3), [tf_keras.layers.Dense(2)]

        def call(self, inputs: Any) -> Any:
            return self.rest[0](self.first(inputs))

    net = Net()
    net(tf.ones([1, 4]))
    return net


FORMS: dict[str, tuple[Callable[[], Any], Callable[[Any, str], str], Callable[[Any], Any]]] = {
    "optimizer not built": (
        lambda: _model(keras, built=True),
        lambda model, prefix: tf.train.Checkpoint(model=model).save(prefix),
        lambda model: {"model": model},
    ),
    "another entry's name": (
        lambda: _model(keras, built=True),
        lambda model, prefix: tf.train.Checkpoint(net=model).write(prefix),
        lambda model: {"trained": model},
    ),
    "the root is the model": (
        lambda: _model(keras, built=True),
        lambda model, prefix: tf.train.Checkpoint(model).write(prefix),
        lambda model: model,
    ),
    "save_weights of tf_keras": (
        lambda: _model(tf_keras, built=True),
        lambda model, prefix: model.save_weights(prefix) or prefix,
        lambda model: {"model": model},
    ),
    "save_weights of a subclassed model": (
        _subclassed,
        lambda model, prefix: model.save_weights(prefix) or prefix,
        lambda model: {"net": model},
    ),
    "a tf.train.Checkpoint": (
        lambda: _model(tf_keras, built=True),
        lambda model, prefix: tf.train.Checkpoint(model=model).save(prefix),
        lambda model: tf.train.Checkpoint(model=model),
    ),
}


def _fresh(model: Any) -> Any:
    if type(model).__name__ == "Net":
        return _subclassed()
    return _model(tf_keras if isinstance(model, tf_keras.Model) else keras, built=False)


@pytest.mark.parametrize("with_objects", [False, True], ids=["by graph", "with objects"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_stock_checkpoint(form: str, with_objects: bool, tmp_path: Path) -> None:
    make, write, state_of = FORMS[form]
    model = make()
    stock = write(model, str(tmp_path / "stock"))
    fresh = _fresh(model)
    state = state_of(fresh)
    if with_objects:
        from ckptflow.state.tree import as_mapping

        restore_objects(stock, as_mapping(state))
    else:
        imported(stock, tmp_path / "run")
        restore(tmp_path / "run", state)
    if isinstance(state, tf.train.Checkpoint):
        assert int(state.save_counter) == 1
    expected = content(tf.train.Checkpoint(model=model).write(str(tmp_path / "expected")))
    assert content(tf.train.Checkpoint(model=fresh).write(str(tmp_path / "again"))) == expected


def test_what_the_graph_lacks_is_said_and_partial_does_without(tmp_path: Path) -> None:
    def make() -> Any:
        layers = [keras.layers.Dense(3), keras.layers.Dropout(0.5), keras.layers.Dense(2)]
        return keras.Sequential([keras.Input((4,)), *layers])

    model, other = make(), make()
    imported(tf.train.Checkpoint(model=model).save(str(tmp_path / "stock")), tmp_path / "run")
    with pytest.raises(StateMismatchError) as caught:
        restore(tmp_path / "run", {"model": other})
    assert re.findall(r"^  (\S+):", str(caught.value), re.MULTILINE) == ["model/dropout/seed_generator/state"]
    restore(tmp_path / "run", {"model": other}, partial=True)
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), other.get_weights(), strict=True))


def test_shapes_are_compared_and_new_names_can_be_renamed(tmp_path: Path) -> None:
    model = _model(keras, built=True)
    imported(tf.train.Checkpoint(model=model).save(str(tmp_path / "stock")), tmp_path / "run")
    wider = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(5)])
    with pytest.raises(StateMismatchError, match=r"model/dense_1/kernel: shape \(3, 2\) in the checkpoint, \(3, 5\)"):
        restore(tmp_path / "run", {"model": wider})
    backbone = tf.Module()
    backbone.kernel = tf.Variable(tf.zeros([4, 3]))
    name = "model/functional/operations/1/kernel"
    restore(tmp_path / "run", {"backbone": backbone}, partial=True, rename={name: "backbone/kernel"})
    assert np.array_equal(backbone.kernel, model.layers[0].kernel)


def test_what_was_restored_by_graph_is_saved_under_its_own_names(tmp_path: Path) -> None:
    model = _model(keras, built=True)
    imported(tf.train.Checkpoint(model=model).save(str(tmp_path / "stock")), tmp_path / "run")
    other = _model(keras, built=False)
    with ckptflow.CheckpointManager(tmp_path / "run", {"model": other}) as manager:
        manager.restore_latest()
        manager.save(1)
    with ckptflow.open_checkpoint(tmp_path / "run") as opened:
        assert opened.manifest.object_graph is not None
        assert not opened.manifest.object_graph.gives_names
        assert np.array_equal(opened["model/optimizer/momentum/dense/kernel"], model.optimizer._momentums[0])


def test_a_dense_table_goes_in_and_not_out(tmp_path: Path) -> None:
    def make() -> Any:
        table = tf.lookup.experimental.DenseHashTable(tf.int64, tf.float32, -1.0, empty_key=-1, deleted_key=-2)
        module = tf.Module()
        module.table, module.v = table, tf.Variable(1.0)
        return module

    module, other = make(), make()
    module.table.insert([5, 6], [50.0, 60.0])
    imported(tf.train.Checkpoint(m=module).save(str(tmp_path / "stock")), tmp_path / "run")
    other.table.insert([7], [70.0])
    restore(tmp_path / "run", {"m": other})
    assert other.table.lookup(tf.constant([5, 6, 7], tf.int64)).numpy().tolist() == [50, 60, -1]
    save(tmp_path / "own", {"m": module})
    exported = ckptflow.export_checkpoint(tmp_path / "own", tmp_path / "ours", format="tf-checkpoint")
    assert exported.left_out == ("m/table/keys", "m/table/values")


# With the program's objects


@pytest.mark.parametrize(
    ("name", "with_objects"),
    [
        *((name, False) for name in STATES),
        *((name, True) for name in ("everything", "keras", "tf_keras custom loop", "tf_keras legacy")),
    ],
)
def test_our_own_export_comes_back(name: str, with_objects: bool, tmp_path: Path) -> None:
    state = trained(name)
    if "model" in state:
        state = {**state, "step": tf.Variable(7)}
    save(tmp_path / "run", state)
    ours = str(tmp_path / "ours")
    ckptflow.export_checkpoint(tmp_path / "run", ours, format="tf-checkpoint")
    fresh: dict[str, Any] = STATES[name].make()
    if "model" in state:
        fresh["step"] = tf.Variable(0)
    if with_objects:
        restore_objects(ours, fresh)
    else:
        imported(ours, tmp_path / "again")
        restore(tmp_path / "again", fresh)
    assert content(tf.train.Checkpoint(**fresh).write(str(tmp_path / "expected"))) == content(ours)


@pytest.mark.parametrize("name", STATES)
def test_stock_restores_into_live_objects(name: str, tmp_path: Path) -> None:
    state = trained(name)
    stock = tf.train.Checkpoint(**state).save(str(tmp_path / "stock"))
    fresh = STATES[name].make()
    restore_objects(stock, fresh)
    assert content(tf.train.Checkpoint(**fresh).write(str(tmp_path / "again"))) == content(stock)


def test_the_count_of_saves_of_a_model_that_is_the_root_is_not_the_models(tmp_path: Path) -> None:
    model, other = _model(keras, built=True), _model(keras, built=False)
    restore_objects(tf.train.Checkpoint(model).save(str(tmp_path / "stock")), {"model": other})
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), other.get_weights(), strict=True))
    assert int(other.optimizer.iterations) == int(model.optimizer.iterations) == 1


def test_every_difference_is_listed_and_nothing_is_changed(tmp_path: Path) -> None:
    stock = tf.train.Checkpoint(model=_model(keras, built=True), old=tf.Variable(1.0)).save(str(tmp_path / "stock"))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(5), keras.layers.Dense(1)])
    before = model.get_weights()
    with pytest.raises(StateMismatchError) as caught:
        restore_objects(stock, {"model": model, "new": tf.Variable(2)})
    lines = dict(re.findall(r"^  (\S+): (.*)$", str(caught.value), re.MULTILINE))
    assert lines["new"] == "in the state, not in the checkpoint"
    assert lines["old"] == "in the checkpoint, not in the state"
    assert lines["model/optimizer/iterations"] == "in the checkpoint, not in the state"
    assert lines["model/dense_2/kernel"] == "in the state, not in the checkpoint"
    assert lines["model/dense_1/bias"] == "shape (2) in the checkpoint, (5) in the state"
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), before, strict=True))


def test_layers_that_no_checkpoint_of_tensorflow_holds_are_not_passed_over(tmp_path: Path) -> None:
    """Stock restore passes its asserts here and leaves the layer in the list as it was made."""

    class Net(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.head = [keras.layers.Dense(3)], keras.layers.Dense(2)

        def call(self, inputs: Any) -> Any:
            return self.head(self.blocks[0](inputs))

    nets = [Net(), Net()]
    for net in nets:
        net(tf.ones([1, 4]))
    stock = tf.train.Checkpoint(model=nets[0]).save(str(tmp_path / "stock"))
    with pytest.raises(StateMismatchError, match="model/blocks/0/kernel: in the state, not in the checkpoint"):
        restore_objects(stock, {"model": nets[1]})
