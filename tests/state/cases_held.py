"""State that is held in unusual ways: any container, names that Keras uses itself, sets, dicts in another order."""

from __future__ import annotations

import collections
import enum
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import attr
import keras
import numpy as np
import tensorflow as tf
import tf_keras

from tests.state.cases_keras3 import X, Y
from tests.state.roundtrip import Case


def is_fresh() -> bool:
    """Whether the state is made to be restored: then Keras has counted on, and what has no order comes in another."""
    return "--fresh" in sys.argv


def in_any_order(items: list[Any]) -> list[Any]:
    return items[::-1] if is_fresh() else items


class Counter:
    """Plain Python state, which some other object holds."""

    def __init__(self) -> None:
        self.count = 0

    def get_state(self) -> int:
        return self.count

    def set_state(self, count: int) -> None:
        self.count = count


class CountingModule(tf.Module):  # type: ignore[misc]
    """Variables and Python state, and more of that in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.v = tf.Variable(0.0)
        self.count = 0
        self.counters = [Counter(), {"deep": (Counter(),)}]

    def get_state(self) -> dict[str, int]:
        return {"count": self.count}

    def set_state(self, state: dict[str, int]) -> None:
        self.count = state["count"]


@attr.s
class Pair:
    first: Any = attr.ib()
    second: Any = attr.ib(default=None)


@attr.s(slots=True)
class Slotted:
    only: Any = attr.ib()


class Point(NamedTuple):
    x: Any
    y: Any


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Named(tf.Module):  # type: ignore[misc]
    """A module of a name of its own, with a variable."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        self.v = tf.Variable(0.0)


class Hidden(tf.Module):  # type: ignore[misc]
    """Tells TensorFlow itself what it tracks."""

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["_self_store"] = {"hidden": tf.Variable(0.0)}

    def _trackable_children(self, save_type: str = "checkpoint", **options: Any) -> dict[str, Any]:
        children = super()._trackable_children(save_type, **options)
        return {**children, **self.__dict__["_self_store"]}


class Bag(tf.Module, collections.abc.Mapping):  # type: ignore[misc,type-arg]
    """A module that reads like a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.items_of = {"a": tf.Variable(0.0)}
        self.v = tf.Variable(0.0)

    def __getitem__(self, key: str) -> Any:
        return self.items_of[key]

    def __iter__(self) -> Any:
        return iter(self.items_of)

    def __len__(self) -> int:
        return len(self.items_of)


def held() -> dict[str, Any]:
    """A module that holds a variable in every way that counts."""
    module = tf.Module()

    def variable() -> Any:
        return tf.Variable(0.0)

    module.attrs = Pair(variable(), [Slotted(variable()), 3])
    module.attrs_table = Pair(tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0))
    module.deque = collections.deque([variable(), {"a": variable()}, Named("in_deque")])
    module.user_list = collections.UserList([variable()])
    module.user_dict = collections.UserDict({"a": variable()})
    module.ordered = collections.OrderedDict(a=variable())
    module.default = collections.defaultdict(list, a=[variable()])
    module.point = Point(variable(), [variable()])
    module.nested = {"a": [({"b": variable()},)]}
    module.named_set = set(in_any_order([Named("one"), Named("two")]))
    module.frozen = (frozenset(in_any_order([Named("three"), Named("four")])),)
    module.operator = tf.linalg.LinearOperatorDiag(tf.Variable([0.0, 0.0]))
    module.hidden = Hidden()
    module.bag = Bag()
    module.counting = CountingModule()
    module.position = Counter()
    keys = {key: variable() for key in in_any_order([1, "two", (3, "x"), Color.RED, 2.5, None, "a/b"])}
    return {"module": module, "list": [Counter(), {"a": Counter(), "v": variable()}], "keys": [keys]}


def _train_held(state: dict[str, Any]) -> None:
    module = state["module"]
    for place, each in enumerate(_variables(state)):
        each.assign(each + place + 1)
    module.attrs_table.first.insert(["a"], [int(module.attrs_table.first.size()) + 7])
    counters = [module.position, module.counting, *module.counting.counters[:1], module.counting.counters[1]["deep"][0]]
    for place, counter in enumerate([*counters, state["list"][0], state["list"][1]["a"]]):
        counter.count += place + 1
    state["list"][1]["v"].assign_add(5.0)


def _variables(state: dict[str, Any]) -> list[Any]:
    """Every variable, in the order of paths of this test's own."""
    module = state["module"]
    found = [
        ("attrs", module.attrs.first),
        ("slotted", module.attrs.second[0].only),
        *((f"deque {place}", each) for place, each in enumerate((module.deque[0], module.deque[1]["a"]))),
        ("in deque", module.deque[2].v),
        ("user list", module.user_list[0]),
        ("user dict", module.user_dict["a"]),
        ("ordered", module.ordered["a"]),
        ("default", module.default["a"][0]),
        ("x", module.point.x),
        ("y", module.point.y[0]),
        ("nested", module.nested["a"][0][0]["b"]),
        *((f"set {each.name}", each.v) for each in (*module.named_set, *module.frozen[0])),
        ("operator", module.operator.diag),
        ("hidden", module.hidden.__dict__["_self_store"]["hidden"]),
        ("bag", module.bag.v),
        ("in bag", module.bag["a"]),
        ("counting", module.counting.v),
    ]
    found += [(f"key {key}", each) for key, each in state["keys"][0].items()]
    return [each for _, each in sorted(found, key=lambda pair: pair[0])]


def _answer_held(state: dict[str, Any]) -> list[Any]:
    module = state["module"]
    values = [np.asarray(each) for each in _variables(state)]
    inner = module.counting.counters
    counters = [module.position, module.counting, inner[0], inner[1]["deep"][0], state["list"][0]]
    return [*values, np.array([each.count for each in counters]), module.attrs_table.first.lookup(["a"]).numpy()]


def _train(state: dict[str, Any]) -> None:
    state["model"].train_on_batch(X, Y)


class Sets(keras.Model):  # type: ignore[misc]
    """Layers in sets, of which Keras tracks all; called in the order in which they were made."""

    def __init__(self) -> None:
        super().__init__()
        layers = [keras.layers.Dense(4) for _ in range(6)]
        more = [keras.layers.Dense(4, name="by_name"), keras.layers.BatchNormalization()]
        self.blocks = set(in_any_order(layers))
        self.others = {"inner": set(in_any_order(more))}
        self.order: Callable[[], list[Any]] = lambda: [*layers, *more]

    def call(self, x: Any) -> Any:
        for place, layer in enumerate(self.order()):
            x = x + layer(x) * (place + 1)
        return keras.ops.sum(x, axis=-1, keepdims=True)


def sets() -> dict[str, Any]:
    for _ in range(3 if is_fresh() else 0):
        keras.layers.Dense(1)
    model = Sets()
    model.compile(keras.optimizers.SGD(0.001, momentum=0.9), "mse")
    return {"model": model}


class ByPath(keras.optimizers.Optimizer):  # type: ignore[misc]
    """An optimizer of a user's own, which keeps its slots in a dict, by names in which Keras counts; and more."""

    def __init__(self) -> None:
        super().__init__(learning_rate=0.01, name="by_path")
        self.slots: dict[str, Any] = {}
        self.seen = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0)

    def build(self, variables: list[Any]) -> None:
        if self.built:
            return
        super().build(variables)
        for variable in variables:
            self.slots[variable.path] = self.add_variable_from_reference(variable, "average")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        slot = self.slots[self._trainable_variables[self._get_variable_index(variable)].path]
        slot.assign(0.9 * slot + gradient)
        variable.assign(variable - keras.ops.cast(learning_rate, variable.dtype) * slot)


def by_path() -> dict[str, Any]:
    for _ in range(2 if is_fresh() else 0):
        keras.layers.Dense(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    model.compile(ByPath(), "mse")
    return {"model": model}


def _train_by_path(state: dict[str, Any]) -> None:
    _train(state)
    state["model"].optimizer.seen.insert(["steps"], [int(state["model"].optimizer.iterations)])


class LikeKeras(keras.layers.Layer):  # type: ignore[misc]
    """A layer whose attributes are called as those of a Keras model are."""

    def __init__(self) -> None:
        super().__init__()
        self.optimizer = keras.optimizers.Adam(0.1)
        self.optimizer.build([keras.Variable(np.zeros(3, np.float32), name="trained")])
        self.history = tf.Variable(0.0)
        self.loss = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0)
        self.compiled = Named("inner")
        self._functional = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        self._loss_tracker = tf.random.Generator.from_seed(1)
        self._compile_metrics = [tf.Variable(0.0)]
        self._nodes = keras.Variable(0.0)
        self.train_function = Counter()


class OldLikeKeras(tf_keras.layers.Layer):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.optimizer = tf_keras.optimizers.Adam(0.1)
        self.optimizer.build([tf.Variable(np.zeros(3, np.float32))])
        self.history = tf.Variable(0.0)
        self.train_function = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0)


class MoreThanWords(keras.layers.StringLookup):  # type: ignore[misc]
    """A layer with a vocabulary, and a weight beside it."""

    def __init__(self) -> None:
        super().__init__(vocabulary=["a", "b"])
        self.extra = self.add_weight(shape=(2,), dtype="float32", name="extra")
        self.table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0)


def like_keras() -> dict[str, Any]:
    return {"layer": LikeKeras(), "old": OldLikeKeras(), "words": MoreThanWords()}


def _train_like_keras(state: dict[str, Any]) -> None:
    layer, old, words = state["layer"], state["old"], state["words"]
    layer.optimizer.apply([np.ones(3, np.float32)])
    for variable in (layer.history, layer.compiled.v, layer._compile_metrics[0], layer._nodes, old.history):
        variable.assign(variable + 1.0)
    for table in (layer.loss, old.train_function, words.table):
        table.insert(["a"], [int(table.size()) + 3])
    for variable in (*layer._functional.variables, words.extra):
        variable.assign(variable + 2.0)
    old.optimizer.iterations.assign_add(1)
    layer._loss_tracker.normal([3])
    layer.train_function.count += 1


def _answer_like_keras(state: dict[str, Any]) -> list[Any]:
    layer, old, words = state["layer"], state["old"], state["words"]
    variables = [layer.history, layer.compiled.v, layer._compile_metrics[0], layer._nodes, old.history, words.extra]
    variables += [layer.optimizer.iterations, old.optimizer.iterations, *layer._functional.variables]
    tables = [table.lookup(["a"]).numpy() for table in (layer.loss, old.train_function, words.table)]
    return [
        *map(np.asarray, variables),
        *tables,
        layer._loss_tracker.state.numpy(),
        np.array(layer.train_function.count),
    ]


CASES: dict[str, Case] = {
    "held in containers": Case(held, _train_held, _answer_held),
    "keras layers in sets": Case(sets, _train, lambda state: state["model"].predict(X, verbose=0)),
    "keras optimizer with slots in a dict": Case(by_path, _train_by_path),
    "attributes called as Keras's own": Case(like_keras, _train_like_keras, _answer_like_keras),
}
