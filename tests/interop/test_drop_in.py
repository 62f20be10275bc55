"""A program written for `tf.train.Checkpoint` hands the same object to CheckpointManager, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import ckptflow
from ckptflow import CheckpointManager
from ckptflow.errors import StateMismatchError, UnsupportedStateError, UsageError
from tests.interop import models
from tests.processes import run_python

pytestmark = pytest.mark.usefixtures("unprobed")

# The loop of TensorFlow's guide to training checkpoints, under both Kerases one after the other.
GUIDE = """
import importlib, sys
import numpy as np, tensorflow as tf
import ckptflow


def live(framework, url, first, last, saves):
    keras = importlib.import_module(framework)
    keras.utils.set_random_seed(first)  # the initial values of a later life are others

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden = [keras.layers.Dense(6, activation="tanh"), keras.layers.BatchNormalization()]
            self.head = keras.layers.Dense(5)

        def call(self, x, training=False):
            return self.head(self.hidden[1](self.hidden[0](x), training=training))

    inputs = np.random.default_rng(0).normal(size=(10, 1)).astype("float32")
    labels = inputs * 5 + np.arange(5, dtype="float32")
    data = tf.data.Dataset.from_tensor_slices((inputs, labels)).repeat().shuffle(4, seed=1).batch(2)

    net, optimizer, iterator = Net(), keras.optimizers.Adam(0.1), iter(data)
    net(inputs[:1])
    checkpoint = tf.train.Checkpoint(step=tf.Variable(1), optimizer=optimizer, net=net, iterator=iterator)
    with ckptflow.CheckpointManager(url, checkpoint) as manager:
        manager.restore_latest()
        assert int(checkpoint.step) == first, int(checkpoint.step)
        assert int(checkpoint.save_counter) == saves, int(checkpoint.save_counter)
        while int(checkpoint.step) <= last:
            x, y = next(iterator)
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.abs(net(x, training=True) - y))
            gradients = tape.gradient(loss, net.trainable_variables)
            optimizer.apply_gradients(zip(gradients, net.trainable_variables))
            checkpoint.step.assign_add(1)
            if int(checkpoint.step) % 3 == 1:
                manager.save(int(checkpoint.step))
    variables = [*net.weights, *optimizer.variables, checkpoint.step, checkpoint.save_counter]
    return [np.asarray(variable) for variable in variables] + list(map(np.asarray, next(iterator)))


for framework in ("keras", "tf_keras"):
    out = live(framework, f"{sys.argv[1]}/{framework}", *map(int, sys.argv[2:5]))
    np.savez(f"{sys.argv[1]}/{framework}-{sys.argv[2]}.npz", *out)
"""


def _run_guide(folder: Path, first: int, last: int, saves: int) -> None:
    done = run_python("-c", GUIDE, *map(str, (folder, first, last, saves)))
    assert done.returncode == 0, done.stderr[-5000:]


def test_the_guides_loop_goes_on_in_a_new_process_bit_for_bit(tmp_path: Path) -> None:
    """Layers in a list, slots, the input's position, the user's own step and the count of saves: all go on."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    _run_guide(whole, 1, 12, 0)
    _run_guide(parts, 1, 6, 0)
    _run_guide(parts, 7, 12, 2)
    for framework in models.KERASES:
        with np.load(whole / f"{framework}-1.npz") as expected, np.load(parts / f"{framework}-7.npz") as got:
            assert got.files == expected.files
            assert len(got.files) > 20
            for name in got.files:
                np.testing.assert_array_equal(got[name], expected[name], err_msg=f"{framework} {name}")
        assert [each.step for each in ckptflow.list_checkpoints(parts / framework)] == [4, 7, 10, 13]


def _names(state: Any, folder: Path) -> list[str]:
    with CheckpointManager(folder, state) as manager:
        manager.save(1)
    with ckptflow.open_checkpoint(folder) as opened:
        return sorted(opened)


@pytest.mark.parametrize("framework", models.KERASES)
def test_the_names_are_those_of_the_dict_and_each_form_restores_the_other(framework: str, tmp_path: Path) -> None:
    case = models.CASES["dense"]
    model = case.make(framework)
    wrapped = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
    names = _names(wrapped, tmp_path / "wrapped")
    assert set(names) - set(_names({"model": model, "optimizer": model.optimizer}, tmp_path / "dict")) == {
        "save_counter"
    }
    rooted = set(_names(tf.train.Checkpoint(model), tmp_path / "rooted"))
    assert rooted - set(_names(model, tmp_path / "alone")) == {"save_counter"}

    for source, make in (
        ("wrapped", lambda model: {"model": model, "optimizer": model.optimizer}),
        ("dict", lambda model: tf.train.Checkpoint(model=model, optimizer=model.optimizer)),
        ("rooted", lambda model: model),
        ("alone", lambda model: tf.train.Checkpoint(model)),
    ):
        other = case.build(framework)  # its optimizer is not built yet
        with CheckpointManager(tmp_path / source, make(other), read_only=True) as manager:
            assert manager.restore_latest() is not None
        np.testing.assert_array_equal(case.predict(other), case.predict(model), err_msg=source)
        assert int(other.optimizer.iterations.numpy()) == case.steps, source
        for got, want in zip(other.optimizer.variables, model.optimizer.variables, strict=True):
            np.testing.assert_array_equal(got.numpy(), want.numpy(), err_msg=source)


class _Epoch(tf.train.experimental.PythonState):  # type: ignore[misc]
    """Python state in the way of TensorFlow."""

    def __init__(self, number: int) -> None:
        self.number = number

    def serialize(self) -> str:
        return str(self.number)

    def deserialize(self, string_value: bytes) -> None:
        self.number = int(string_value)


def _everything(value: float) -> tf.train.Checkpoint:
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
    table.insert(["key"], [int(value)])
    constant = tf.lookup.KeyValueTensorInitializer(["fixed"], tf.constant([1], tf.int64))
    return tf.train.Checkpoint(
        listed=[tf.Variable(value), [tf.Variable(value)]],
        named={"a": tf.Variable(value), "b": [tf.Variable(value), tf.Variable(value)]},
        pair=(tf.Variable(value), tf.Variable(value)),
        inner=tf.train.Checkpoint(variable=tf.Variable(value)),
        epoch=_Epoch(int(value)),
        generator=tf.random.Generator.from_seed(int(value)),
        table=table,
        fixed=tf.lookup.StaticHashTable(constant, -1),  # has nothing that changes
        compute=tf.function(lambda x: x),
    )


def test_lists_dicts_nested_checkpoints_and_whatever_tensorflow_tracks(tmp_path: Path) -> None:
    saved = _everything(3.0)
    assert _names(saved, tmp_path) == [
        "epoch/py_state",
        "generator/state_var",
        "inner/variable",
        "listed/0",
        "listed/1/0",
        "named/a",
        "named/b/0",
        "named/b/1",
        "pair/0",
        "pair/1",
        "save_counter",
        "table/keys",
        "table/values",
    ]
    restored = _everything(5.0)
    with CheckpointManager(tmp_path, restored) as manager:
        manager.restore_latest()
    assert restored.epoch.number == 3
    held = [*restored.listed[:1], *restored.listed[1], *restored.named["b"], *restored.pair, restored.inner.variable]
    assert [float(each) for each in held] == [3.0] * 7
    assert int(restored.table.lookup(tf.constant(["key"]))[0]) == 3
    np.testing.assert_array_equal(restored.generator.state, saved.generator.state)


def test_what_is_assigned_after_the_manager_was_made_is_saved_and_restored(tmp_path: Path) -> None:
    checkpoint = tf.train.Checkpoint(first=tf.Variable(1.0), listed=[tf.Variable(1.0)])
    with CheckpointManager(tmp_path, checkpoint) as manager:
        manager.save(1)
        checkpoint.late = tf.Variable(2.0)
        checkpoint.listed.append(tf.Variable(2.0))
        checkpoint.first = tf.Variable(3.0)
        manager.save(2)
        del checkpoint.late
        manager.save(3)
        manager.wait()
    contents = {}
    for step in (1, 2, 3):
        with ckptflow.open_checkpoint(tmp_path, step) as opened:
            contents[step] = {name: float(array) for name, array in opened.items()}
    assert contents == {
        1: {"first": 1.0, "listed/0": 1.0, "save_counter": 1.0},
        2: {"first": 3.0, "listed/0": 1.0, "listed/1": 2.0, "late": 2.0, "save_counter": 2.0},
        3: {"first": 3.0, "listed/0": 1.0, "listed/1": 2.0, "save_counter": 3.0},
    }
    empty = tf.train.Checkpoint()
    with CheckpointManager(tmp_path, empty, read_only=True) as manager:
        with pytest.raises(StateMismatchError, match="listed/1: in the checkpoint, not in the state"):
            manager.restore_latest()
        empty.first, empty.listed = tf.Variable(0.0), [tf.Variable(0.0), tf.Variable(0.0)]
        manager.restore_latest()
    assert (float(empty.first), float(empty.listed[1]), int(empty.save_counter)) == (3.0, 2.0, 3)


def test_no_attribute_hides_the_root_and_a_nested_roots_lists_are_there(tmp_path: Path) -> None:
    model = models.CASES["subclassed"].make("keras")
    beside = _names(tf.train.Checkpoint(model, model=tf.Variable(1.0)), tmp_path / "beside")
    assert "model" in beside
    assert {f"root/blocks/{number}/kernel" for number in range(3)} < set(beside)
    inside = _names({"nested": tf.train.Checkpoint(model)}, tmp_path / "inside")
    assert {f"nested/model/blocks/{number}/kernel" for number in range(3)} < set(inside)
    rooted = tf.train.Checkpoint(tf.train.Checkpoint(variable=tf.Variable(1.0)), step=tf.Variable(1))
    assert _names(rooted, tmp_path / "rooted") == ["save_counter", "step", "variable"]
    of_version_1 = tf.compat.v1.train.Checkpoint(variable=tf.Variable(1.0))
    assert _names(of_version_1, tmp_path / "v1") == ["save_counter", "variable"]


def test_the_count_of_saves_goes_on_with_either_manager(tmp_path: Path) -> None:
    variable = tf.Variable(1.0)
    checkpoint = tf.train.Checkpoint(variable=variable)
    stock = tf.train.CheckpointManager(checkpoint, str(tmp_path / "stock"), max_to_keep=3)
    assert stock.save().endswith("ckpt-1")
    with CheckpointManager(tmp_path / "run", checkpoint) as manager:
        manager.save(10)
        manager.save(20)
        manager.wait()
        assert int(checkpoint.save_counter) == 3
        assert manager.rollback(10).step == 10  # saved again as this life's own: that counts for nothing
        assert int(checkpoint.save_counter) == 2
    with ckptflow.open_checkpoint(tmp_path / "run") as opened:
        assert int(opened["save_counter"]) == 2
    assert stock.save().endswith("ckpt-3")
    with CheckpointManager(tmp_path / "run", {"variable": variable, "step": tf.Variable(0)}, read_only=True) as manager:
        with pytest.raises(StateMismatchError) as error:
            manager.restore_latest()
    assert "step: in the state" in str(error.value)
    assert "save_counter" not in str(error.value)


def test_under_a_strategy_and_in_fit(tmp_path: Path) -> None:
    import keras

    def make() -> tuple[Any, tf.train.Checkpoint]:
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2), keras.layers.Dropout(0.2)])
        model.compile(keras.optimizers.Adam(), "mse")
        return model, tf.train.Checkpoint(model=model)

    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    x, y = np.ones((8, 4), np.float32), np.ones((8, 2), np.float32)
    for life in (1, 2):
        with strategy.scope():
            model, checkpoint = make()
        with CheckpointManager(tmp_path, checkpoint, strategy=strategy) as manager:
            callback = ckptflow.CheckpointCallback(manager, every_epochs=1)
            model.fit(x, y, batch_size=4, epochs=life, verbose=0, callbacks=[callback])
            assert int(checkpoint.save_counter) == life
            assert int(model.optimizer.iterations.numpy()) == 2 * life


def test_what_cannot_be_a_state_is_refused_with_what_to_do(tmp_path: Path) -> None:
    variable = tf.Variable(1.0)
    with pytest.raises(UsageError, match="takes the URL first"):
        CheckpointManager(tf.train.Checkpoint(variable=variable), str(tmp_path))
    with pytest.raises(UnsupportedStateError, match=r"data: .*iter\(dataset\)"):
        CheckpointManager(tmp_path, tf.train.Checkpoint(data=tf.data.Dataset.range(3)))
    with pytest.raises(UnsupportedStateError, match=r"epochs/1 is a builtins\.int"):
        CheckpointManager(tmp_path, {"epochs": [variable, 3]})
    assert list(tmp_path.iterdir()) == []
