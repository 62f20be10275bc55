"""State that only plain Python objects lead to is not saved, and the manager says so by name."""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import types
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ckptflow import CheckpointManager
from ckptflow.state import unseen
from ckptflow.state.kinds import kind_of
from ckptflow.state.tree import walk

Record = collections.namedtuple("Record", "first second")


@dataclasses.dataclass
class Data:
    """No record of TensorFlow's, and tracked by nobody."""

    held: Any


class Slotted:
    __slots__ = ("held", "never")

    def __init__(self, held: Any) -> None:
        self.held = held


class Keeper:
    """It tells its state itself."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def get_state(self) -> Any:
        return self.held.numpy().tolist()

    def set_state(self, state: Any) -> None:
        self.held.assign(state)


class Shared(tf.Module):  # type: ignore[misc]
    of_all = tf.Variable(1.0, name="of_all")


def module(**attributes: Any) -> Any:
    found = tf.Module()
    for name, value in attributes.items():
        setattr(found, name, value)
    return found


def variable() -> Any:
    return tf.Variable(0.0, name="hidden")


def averages() -> Any:
    of, by = variable(), tf.train.ExponentialMovingAverage(0.5)
    by.apply([of])
    return module(of=of, by=by)


def compiled(kit: Any, **options: Any) -> Any:
    model = kit.Sequential([kit.Input((1,)), kit.layers.Dense(1)])
    model.compile(**{"optimizer": "sgd", "loss": "mse"} | options)
    return model


def with_schedule(kit: Any) -> Any:
    class Schedule(kit.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
        def __init__(self) -> None:
            self.held = variable()

        def __call__(self, step: Any) -> Any:
            return self.held

        def get_config(self) -> dict[str, Any]:
            return {}

    return compiled(kit, optimizer=kit.optimizers.SGD(Schedule()))


def with_loss(kit: Any) -> Any:
    class Loss(kit.losses.Loss):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.held = tf.Variable(0.0, name="hidden")

        def call(self, true: Any, predicted: Any) -> Any:
            return true - predicted - self.held

    return compiled(kit, loss=Loss())


def in_a_closure() -> Any:
    rate = variable()
    return compiled(keras, optimizer=keras.optimizers.SGD(lambda: rate))


def held_by_layer(make: Callable[[Any], Any]) -> Any:
    layer = keras.layers.Layer(name="outer")
    inner = keras.layers.Dense(1, name="inner")
    inner.build((None, 1))
    layer.held = make(inner)
    return layer


def table() -> Any:
    return tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0)


KEPT = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0)
HIDDEN: dict[str, tuple[Callable[[], Any], str, str]] = {
    "a dataclass": (lambda: module(data=Data(variable())), "entry.data", "hidden:0 ()"),
    "a namespace": (lambda: module(space=types.SimpleNamespace(x=[variable()])), "entry.space", "hidden:0 ()"),
    "slots": (lambda: module(slotted=Slotted({"x": variable()})), "entry.slotted", "hidden:0 ()"),
    "in a list": (lambda: module(items=[1, Data(variable())]), "entry.items", "hidden:0 ()"),
    "a table": (
        lambda: module(data=Data(tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0))),
        "entry.data",
        "a MutableHashTable",
    ),
    "a generator": (lambda: module(data=Data(tf.random.Generator.from_seed(1))), "entry.data", "StateVar:0 (3,)"),
    "averages of TensorFlow": (averages, "entry.by", "hidden/ExponentialMovingAverage:0 ()"),
    "a class": (Shared, "entry.of_all", "of_all:0 ()"),
    "a schedule": (lambda: with_schedule(keras), "entry/optimizer._learning_rate", "hidden:0 ()"),
    "a schedule of tf_keras": (lambda: with_schedule(tf_keras), "entry/optimizer._learning_rate", "hidden:0 ()"),
    "a loss": (lambda: with_loss(keras), "entry.loss", "hidden:0 ()"),
    "a loss of tf_keras": (lambda: with_loss(tf_keras), "entry.loss", "hidden:0 ()"),
    "a closure": (in_a_closure, "entry/optimizer._learning_rate", "hidden:0 ()"),
    "a layer in a namespace": (
        lambda: held_by_layer(lambda inner: types.SimpleNamespace(inner=inner)),
        "entry.held",
        "bias (1,), kernel (1, 1)",
    ),
    "a deque of a layer": (
        lambda: held_by_layer(lambda inner: collections.deque([inner])),
        "entry.held",
        "bias (1,), kernel (1, 1)",
    ),
    "an array of objects": (
        lambda: module(array=np.array([[variable(), None]], object)),
        "entry.array",
        "hidden:0 ()",
    ),
    "a weak set": (lambda: module(all=weakref.WeakSet([KEPT])), "entry.all", "a MutableHashTable"),
    "values of a dict": (
        lambda: held_by_layer(lambda inner: {"inner": inner}.values()),
        "entry.held",
        "bias (1,), kernel (1, 1)",
    ),
    "items of a dict": (lambda: module(held={"a": table()}.items()), "entry.held", "a MutableHashTable"),
    "keys of a dict": (lambda: module(held={table(): 1}.keys()), "entry.held", "a MutableHashTable"),
    "values of an ordered dict": (
        lambda: module(held=collections.OrderedDict(a=table()).values()),
        "entry.held",
        "a MutableHashTable",
    ),
    "values of a UserDict": (
        lambda: module(held=collections.UserDict(a=table()).values()),
        "entry.held",
        "a MutableHashTable",
    ),
    "Python state": (lambda: module(data=Data(Keeper(variable()))), "entry.data", "a Keeper"),
    "a method": (lambda: held_by_layer(lambda inner: inner.call), "entry.held", "bias (1,), kernel (1, 1)"),
    "a partial": (
        lambda: held_by_layer(lambda inner: functools.partial(inner, training=True)),
        "entry.held",
        "bias (1,), kernel (1, 1)",
    ),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_it_is_told_by_name_and_once(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make, path, names = HIDDEN[name]
    with CheckpointManager(tmp_path, {"entry": make(), "other": tf.Variable(1.0)}) as manager:
        assert f"{path}: {names}, which nothing tracks, is not saved" in caplog.text
        caplog.clear()
        manager.save(1)
    assert "not saved" not in caplog.text


def test_what_has_a_name_elsewhere_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "ckptflow")
    shared = variable()
    state = {
        "data": module(
            views=[{"a": shared}.values(), {"a": 1}.items()],
            data=Data(shared),
            of=Record(variable(), [variable()]),
            ring=Data(None),
        ),
        "shared": shared,
        "keeper": module(keeper=Keeper(variable())),
        "model": compiled(keras, metrics=["mae"]),
        "old": compiled(tf_keras, metrics=["mae"]),
        "words": keras.layers.TextVectorization(vocabulary=["a"]),
        "edges": keras.layers.Discretization(bin_boundaries=[0.0]),
        "rounds": tf.Variable(0),
    }
    state["data"].ring.held = state["data"]  # it goes round
    for name in ("model", "old"):
        state[name].fit(tf.zeros((2, 1)), tf.zeros((2, 1)), verbose=0)
    with CheckpointManager(tmp_path, state) as manager:
        manager.save(1)
        state["model"].evaluate(tf.zeros((2, 1)), tf.zeros((2, 1)), verbose=0)
        manager.save(2)
    assert [record for record in caplog.records if record.name.startswith("ckptflow")] == []


def test_what_is_long_or_cannot_be_looked_into_is_passed_over() -> None:
    class Closed(collections.UserDict):  # type: ignore[type-arg]
        def __len__(self) -> int:
            raise ValueError("closed")

    class Lazy(Mapping[str, Any]):
        def __getitem__(self, key: Any) -> Any:
            raise AssertionError("read")

        def __iter__(self) -> Any:
            return iter(["x"])

        def __len__(self) -> int:
            return 1

    memory = [Data(each) for each in range(100_000)]
    hidden = {"data": Data(memory), "closed": Data(Closed()), "lazy": Data(Lazy()), "slots": Slotted(1)}
    assert walk({"module": module(**hidden)}).unseen == {}


def test_data_are_not_read_and_no_code_of_others_keeps_a_manager_from_being_made(tmp_path: Path) -> None:
    """The search only warns."""

    class Files(collections.UserDict):  # type: ignore[type-arg]
        def __getitem__(self, key: Any) -> Any:
            raise AssertionError("read")

        def items(self) -> Any:
            raise AssertionError("read")

    class Fussy(dict):  # type: ignore[type-arg]
        def items(self) -> Any:
            raise AssertionError("read")

        values = __iter__ = __len__ = items

    np.savez(tmp_path / "d.npz", x=np.zeros(3))
    closed, opened = np.load(tmp_path / "d.npz"), np.load(tmp_path / "d.npz")
    closed.close()
    rows = [[[0] * 50 for _ in range(50)] for _ in range(50)]
    tracked = {"closed": closed, "opened": opened, "rows": rows}
    hidden = tracked | {"files": Files(), "fussy": Fussy(a=variable())}
    held = module(**tracked, data=Data(hidden), open_shape=Data(tf.Variable([1.0], shape=tf.TensorShape(None))))
    tree = walk({"module": held})
    assert set(tree.unseen) == {"module.data", "module.open_shape"}
    assert tree.unseen["module.data"].startswith("hidden")
    opened.close()


def test_the_look_ends_however_much_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Any] = []

    def look(obj: Any) -> Any:
        looked.append(obj)
        return kind_of(obj)

    monkeypatch.setattr("ckptflow.state.unseen.kind_of", look)
    walk({"module": module(data=Data([[[Data(None)] * 300 for _ in range(300)] for _ in range(300)]))})
    assert len(looked) < 3 * unseen._MAX_LOOKS


def test_optimizers_that_one_chooses_from_are_its_own_once_it_is_built(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def model() -> Any:
        ones = {"kernel": keras.optimizers.Adam(), "bias": keras.optimizers.SGD(momentum=0.5)}
        found = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        found.compile(keras.optimizers.MultiOptimizer(lambda each: ones[each.name]), "mse")
        return found

    trained, again = model(), model()
    trained.fit(tf.zeros((2, 1)), tf.zeros((2, 1)), verbose=0)
    with CheckpointManager(tmp_path, {"model": trained}) as manager:
        manager.save(1)
    with CheckpointManager(tmp_path, {"model": again}) as manager:
        manager.restore_latest()
        manager.save(2)
    assert len(again.optimizer.variables) == len(trained.optimizer.variables)
    assert "not saved" not in caplog.text


def test_an_optimizer_that_is_not_its_own_is_told_once_it_is_built(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = keras.optimizers.Adam()
    model = compiled(keras, optimizer=keras.optimizers.SGD(lambda: other.learning_rate))
    with CheckpointManager(tmp_path, {"model": model}) as manager:
        model.fit(tf.zeros((2, 1)), tf.zeros((2, 1)), verbose=0)
        manager.save(1)
    assert "model/optimizer._learning_rate: learning_rate" in caplog.text


def test_optimizers_with_moments_below_one_that_is_never_built_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Around(keras.optimizers.Optimizer):  # type: ignore[misc]
        def __init__(self, inner: Any) -> None:
            super().__init__(0.0)
            self.data = Data(inner)

        def apply_gradients(self, grads_and_vars: Any, **kwargs: Any) -> Any:
            return self.data.held.apply_gradients(grads_and_vars, **kwargs)

    variable, optimizer = keras.Variable([1.0], name="w"), Around(keras.optimizers.SGD(momentum=0.5))
    optimizer.apply_gradients([(tf.ones(1), variable)])
    with CheckpointManager(tmp_path, {"w": variable, "optimizer": optimizer}) as manager:
        manager.save(1)
    assert not optimizer.built
    assert "optimizer.data" in caplog.text
    assert "momentum" in caplog.text
