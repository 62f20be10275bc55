"""The walk: names, aliases, what makes a tree stale, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ckptflow.errors import UnsupportedStateError, UsageError
from ckptflow.state.assign import match
from ckptflow.state.capture import capture
from ckptflow.state.tree import Tree, as_mapping, walk
from tests.state import roundtrip
from tests.state.cases_keras3 import Blocks, X, Y, functional


def names(state: Any, metrics: bool = False) -> list[str]:
    return [spec.name for spec in walk(as_mapping(state)).specs if metrics or not spec.metric]


def aliases(tree: Tree) -> dict[str, tuple[str, ...]]:
    return {spec.name: spec.aliases for spec in tree.specs}


def test_names_are_readable() -> None:
    model = Blocks()
    model(X)
    found = names(model)
    assert {"model/blocks/0/kernel", "model/named/größe 大/0/seed_generator/state", "model/scales/1"} <= set(found)
    # Where dropping the underscore would make two names one, it stays.
    assert {"model/_private/kernel", "model/private/kernel"} <= set(found)
    assert found == sorted(found)


def test_an_untrained_models_names_are_a_subset_of_a_trained_ones() -> None:
    untrained, trained = functional()["model"], functional()["model"]
    trained.train_on_batch(X, Y)
    fresh = names(untrained)
    assert set(fresh) < set(names(trained))
    assert [name for name in names(trained) if "/optimizer/" not in name] == [
        name for name in fresh if "/optimizer/" not in name
    ]
    assert "model/optimizer/velocity/head/kernel" in names(trained)


def test_a_second_path_is_an_alias() -> None:
    shared = tf.Variable(1.0)
    first, second = tf.Module(), tf.Module()
    first.deep = [shared]
    second.inner = first
    first.parent = second
    tree = walk({"first": first, "second": second, "alone": shared})
    assert aliases(tree) == {"alone": ("first/deep/0",)}
    tree = walk({"first": first, "second": second})
    assert aliases(tree) == {"first/deep/0": ("second/inner/deep/0",)}


def test_an_optimizer_that_is_handed_over_by_itself_too() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(momentum=0.9), "mse")
    model.optimizer.build(model.trainable_variables)
    found = aliases(walk({"model": model, "optimizer": model.optimizer}))
    assert found["optimizer/momentum/model/dense/kernel"] == ("model/optimizer/momentum/dense/kernel",)
    inner = names({"model": model})
    assert "model/optimizer/momentum/dense/kernel" in inner


def test_names_that_would_be_one_are_told_apart() -> None:
    module = tf.Module()
    module.held = {"a/b": tf.Variable(1.0), "a": {"b": tf.Variable(2.0)}, 1: tf.Variable(3.0)}
    assert names({"m": module}) == ["m/held/1", "m/held/a/b", "m/held/a/b_1"]


def test_state_arguments() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    assert as_mapping(model) == {"model": model}
    optimizer = keras.optimizers.SGD()
    assert as_mapping(optimizer) == {"optimizer": optimizer}
    variable = tf.Variable(1.0)
    assert list(as_mapping(variable)) == ["state"]
    checkpoint = tf.train.Checkpoint(net=model, step=variable)
    assert sorted(as_mapping(checkpoint)) == ["net", "save_counter", "step"]
    rooted = tf.train.Checkpoint(model, step=variable)
    assert sorted(as_mapping(rooted)) == ["model", "save_counter", "step"]
    assert list(as_mapping({" größe/大/ ": variable})) == ["größe/大"]


@pytest.mark.parametrize(
    "bad", [{}, {"": 1}, {"/": 1}, {" ": 1}, {3: 1}, {"a": 1, "a/": 2}, {"__metadata__": 1}, {"x" * 2000: 1}]
)
def test_bad_names_are_refused(bad: Any) -> None:
    with pytest.raises(UsageError):
        as_mapping(bad)


def _distributed_iterator() -> Any:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    return iter(strategy.experimental_distribute_dataset(tf.data.Dataset.range(4).batch(2)))


UNSUPPORTED: dict[str, tuple[Callable[[], Any], str]] = {
    "list": (lambda: [tf.Variable(1.0), {"deep": 3}], "1/deep.*get_state"),
    "int": (lambda: 3, "get_state"),
    "lambda": (lambda: lambda: 0, "get_state"),
    "dataset": (lambda: tf.data.Dataset.range(3), "iter"),
    "generator": (
        lambda: iter(tf.data.Dataset.from_generator(lambda: iter([1]), output_signature=tf.TensorSpec((), tf.int32))),
        "from_generator",
    ),
    "py_function": (
        lambda: iter(tf.data.Dataset.range(3).map(lambda x: tf.py_function(lambda y: y, [x], tf.int64))),
        "py_function",
    ),
    "distributed": (_distributed_iterator, "experimental_distribute_values_from_function"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_cannot_be_saved_is_refused_by_name_with_a_way_out(name: str) -> None:
    make, way_out = UNSUPPORTED[name]
    with pytest.raises(UnsupportedStateError, match=rf"(?s)\Aentry.*{way_out}"):
        walk({"entry": make(), "good": tf.Variable(1.0)})


def _grow_list(model: Any) -> None:
    model.blocks.append(keras.layers.Dense(2))


def _grow_nested(model: Any) -> None:
    model.named["größe 大"].append(keras.layers.Dense(2))


def _replace_layer(model: Any) -> None:
    model.private = keras.layers.Dense(1)


def _new_attribute(model: Any) -> None:
    model.extra = keras.layers.Dense(1)


def _build_optimizer(model: Any) -> None:
    model.optimizer.build(model.trainable_variables)


def _recompile(model: Any) -> None:
    model.compile("sgd", "mse")


def _first_batch(model: Any) -> None:
    model.train_on_batch(X, Y)


def _call(model: Any) -> None:
    model(X)


CHANGES = [_grow_list, _grow_nested, _replace_layer, _new_attribute, _call, _build_optimizer, _recompile, _first_batch]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_makes_the_tree_stale(change: Callable[[Any], None]) -> None:
    model = Blocks()
    if change is _build_optimizer or change is _first_batch:
        model(X)  # afterwards Keras lets nothing be added to it
    model.compile("adam", "mse", metrics=["mae"])
    tree = walk({"model": model})
    assert not tree.is_stale()
    change(model)
    assert tree.is_stale()
    assert not walk({"model": model}).is_stale()


def test_training_does_not_make_the_tree_stale() -> None:
    model = Blocks()
    model.compile("adam", "mse", metrics=["mae"])
    model.train_on_batch(X, Y)
    module = tf.Module()
    module.model, module.counts, module.table = (
        model,
        [1, 2],
        tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0),
    )
    tree = walk({"module": module})
    model.fit(X, Y, verbose=0)
    model.predict(X, verbose=0)
    module.table.insert(["a"], [1])
    assert not tree.is_stale()


def test_a_module_notices_its_changes() -> None:
    module = tf.Module()
    module.held = [tf.Variable(1.0), {"a": tf.Variable(2.0)}]
    for change in (
        lambda: module.held.append(tf.Variable(3.0)),
        lambda: module.held[1].update(b=tf.Variable(3.0)),
        lambda: setattr(module, "other", tf.Variable(3.0)),
    ):
        tree = walk({"m": module})
        assert not tree.is_stale()
        change()
        assert tree.is_stale()


def test_five_thousand_variables() -> None:
    module = tf.Module()
    module.held = [tf.Variable(np.full([3], position, np.float32)) for position in range(5_000)]
    tree = walk({"module": module})
    saved = roundtrip.of_snapshot(capture(tree, is_chief=True))
    for place, data in enumerate(saved.data):
        saved.data[place] = (data.view(np.float32) * 2 + 1).view(np.uint8)
    roundtrip.fill(match(tree, saved.offer()), saved)
    assert not tree.is_stale()
    assert [variable.numpy().tolist() for variable in module.held] == [[2.0 * n + 1] * 3 for n in range(5_000)]


class _Words(tf.train.experimental.PythonState):  # type: ignore[misc]
    """Python state in TensorFlow's own way."""

    def __init__(self) -> None:
        super().__init__()
        self.words = "none"

    def serialize(self) -> str:
        return self.words

    def deserialize(self, words: bytes) -> None:
        self.words = words.decode()


def test_another_trackable_that_serializes_itself() -> None:
    state, fresh = {"words": _Words()}, {"words": _Words()}
    state["words"].words = "größe"
    roundtrip.restore(fresh, roundtrip.save(state))
    assert fresh["words"].words == "größe"


def test_a_checkpoint_with_a_root() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    assert names(tf.train.Checkpoint(model, step=tf.Variable(1))) == [
        "model/dense/bias",
        "model/dense/kernel",
        "save_counter",
        "step",
    ]
