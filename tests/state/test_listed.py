"""Nothing is lost without a word: what a framework lists is saved or refused by name, and so is what has no name."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import wrapt

from ckptflow.errors import UnsupportedStateError
from ckptflow.state.capture import capture
from ckptflow.state.per_worker import PerWorker
from ckptflow.state.tree import as_mapping, walk
from tests.state import roundtrip
from tests.state.cases_held import Counter, CountingModule, Hidden, Named, Pair, Point, Slotted


def _module(**attributes: Any) -> Any:
    module = tf.Module()
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def _variable(value: float = 0.0) -> Any:
    return tf.Variable(value)


def _table() -> Any:
    return tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0)


class Overridden(tf.Module):  # type: ignore[misc]
    """Lists a variable that no attribute leads to."""

    def __init__(self) -> None:
        super().__init__()
        hidden = tf.Variable(1.0, name="hidden")
        self.read: Callable[[], Any] = lambda: hidden

    @property
    def variables(self) -> Any:
        return (self.read(),)


class Trainable(tf.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        hidden = tf.Variable(1.0, name="hidden")
        self.read: Callable[[], Any] = lambda: hidden

    @property
    def trainable_variables(self) -> Any:
        return (self.read(),)


class OverriddenLayer(keras.layers.Layer):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        hidden = keras.Variable(1.0, name="hidden")
        self.read: Callable[[], Any] = lambda: hidden

    @property
    def variables(self) -> Any:
        return [self.read()]


class InTheOldWay(tf.Module):  # type: ignore[misc]
    def _gather_saveables_for_checkpoint(self) -> Any:
        return {"saveable": lambda name: None}


class Key:
    """A dict's key that reads as its address."""


def _keras_set() -> Any:
    model = keras.Model()
    model.blocks = {keras.layers.Dense(1, name="same") for _ in range(2)}
    for layer in model.blocks:
        layer.build((None, 2))
    return model


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a module's list": (lambda: _module(inner=Overridden()), r"m/inner\.variables lists .*hidden:0 \(\)"),
    "a module's second list": (lambda: [Trainable()], r"m/0\.variables lists .*hidden:0 \(\)"),
    "a layer's list": (lambda: keras.Sequential([OverriddenLayer()]), r"m.*\.variables lists .*hidden \(\)"),
    "a view of a dict": (lambda: _module(view={"a": _variable()}.values()), r"m\.variables lists .*Variable:0 \(\)"),
    "1 and '1'": (lambda: _module(d={1: _variable(), "1": _variable()}), r"m/d/1 would be the name of two objects"),
    "'1' and 1": (lambda: {"1": _variable(), 1: _variable()}, r"m/1 would be the name of two objects"),
    "1.0 and '1.0'": (lambda: _module(d={1.0: _variable(), "1.0": _variable()}), r"m/d/1\.0 would be"),
    "'a' and 'a/'": (lambda: _module(d={"a": _variable(), "a/": _variable()}), r"m/d/a would be"),
    "'' and '_'": (lambda: _module(d={"": _variable(), "_": _variable()}), r"m/d/_ would be"),
    "slashes": (
        lambda: _module(d={"a/b": {"c": _variable()}, "a": {"b/c": _variable()}}),
        r"m/d/a/b/c would be the name of two objects",
    ),
    "a number that was given": (
        lambda: _module(d={"a/b": _variable(), "a": {"b": _variable(), "b_1": _variable()}}),
        r"m/d/a/b_1 would be|m/d/a/b would be",
    ),
    "a table's part": (
        lambda: _module(
            d={"t/keys": _variable(), "t": tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0)}
        ),
        r"m/d/t/keys would be",
    ),
    "keys that are objects": (
        lambda: _module(d={Key(): _variable()}),
        "m.* holds a ResourceVariable .* key of type Key",
    ),
    "keys that are objects, deeper": (lambda: _module(d={Key(): [{"a": _variable()}]}), "m/d holds a ResourceV.* Key"),
    "keys that are references": (
        lambda: {_variable().ref(): _variable()},
        "m.* holds a ResourceVariable .* key of type Reference",
    ),
    "keys that are sets": (
        lambda: _module(d={("x", frozenset("ab")): _variable()}),
        "m.* holds a ResourceVariable .* key of type frozenset",
    ),
    "keys that are text of an address": (
        lambda: _module(d={repr(_KEPT_ALIVE[0]): _variable()}),
        "m.* holds a ResourceVariable .* key of type str",
    ),
    "keys that are bytes of an address": (
        lambda: _module(d={("a", repr(_KEPT_ALIVE[0]).encode()): [_variable()]}),
        "m.* holds a ResourceVariable .* key of type bytes",
    ),
    "keys that hold addresses": (
        lambda: _by_key(lambda v: f"v{id(v)}_m"),
        r"m/(slots|v)/v\d+_m.* key .* address of another",
    ),
    "keys that are addresses": (lambda: _by_key(id), r"m/(slots|v)/\d+.* key .* address of another"),
    "keys that are text of a number": (
        lambda: _by_key(lambda variable: (hex(id(variable)), "momentum")),
        r"m/slots/\('0x.* key .* address of another",
    ),
    "weak keys": (
        lambda: _module(d=_weak_keys()),
        "m.* holds a ResourceVariable .* key of type Key",
    ),
    "layers of one name in a set": (_keras_set, "m/blocks holds a Dense that has no name .*'same'"),
    "modules in a set": (lambda: _module(s={_module(v=_variable()) for _ in range(2)}), "m/s holds a .*'module'"),
    "modules in a frozenset": (
        lambda: [frozenset([Named("same"), Named("same")])],
        "m/0 holds a Named that has no name .*'same'",
    ),
    "PerWorker inside": (lambda: _module(inner=[PerWorker(_variable())]), "m/inner/0 is marked PerWorker"),
    "PerWorker in a dict": (lambda: {"a": PerWorker(_variable())}, "m/a is marked PerWorker"),
    "TensorFlow's old way": (lambda: _module(inner=InTheOldWay()), "m/inner: a InTheOldWay gives .*_gather_saveables"),
    "a variable in a proxy": (
        lambda: _module(inner=_module(v=wrapt.ObjectProxy(_variable()))),
        r"m holds the variable Variable:0 as a wrapt\.\S*ObjectProxy",
    ),
    "a number in a deque": (lambda: collections.deque([_variable(), 3]), "m/1 is a builtins.int"),
}

_KEPT_ALIVE: list[Key] = [Key()]


def _by_key(key: Callable[[Any], Any]) -> Any:
    variable = _variable()
    return _module(v=variable, slots={key(variable): [_variable()]})


def _weak_keys() -> Any:
    import weakref

    found: Any = weakref.WeakKeyDictionary()
    found[_KEPT_ALIVE[0]] = _variable()
    return found


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_lost_or_mixed_up_is_refused_by_name(name: str) -> None:
    make, said = REFUSED[name]
    with pytest.raises(UnsupportedStateError, match=rf"(?s)\A{said}"):
        walk({"m": make()})


def _in_two_ways() -> Any:
    same = {Named("same"), Named("same")}
    return _module(by_set=same, by_list=sorted(same, key=id), by_key={Key(): next(iter(same))})


def _proxied(variable: Any) -> Any:
    return _module(v=wrapt.ObjectProxy(variable), itself=variable)


def _named_besides() -> Any:
    variables = [_variable() for _ in range(2)]
    return _module(a_list=variables, by_key={id(each): each for each in variables}, none={id(variables): [1]})


NOT_REFUSED: dict[str, Callable[[], Any]] = {
    "in a set and in a list": _in_two_ways,
    "one module in a set": lambda: _module(s={_module(v=_variable())}),
    "keys of no state": lambda: _module(d={Key(): 1, "1": 2, 1: 3}, e={Key(): [Point(1, [])]}, v=_variable()),
    "a key with a slash, and deeper": lambda: _module(d={"a/b": _variable(), "a": {"b": _variable()}}),
    "a variable in a proxy, and itself": lambda: _proxied(_variable()),
    "keys that are numbers": lambda: _module(
        d={2**40 + 5: _variable(), 7: _variable(), "0xdeadbeef": _variable(), f"{2**50} at 3": _variable()}
    ),
    "addresses of what has a name": _named_besides,
    "a model not yet built": lambda: tf_keras.Sequential([tf_keras.layers.Dense(1)]),
    "a layer with words": lambda: keras.Sequential([keras.layers.TextVectorization(output_mode="tf_idf")]),
    "a property that raises": lambda: _Raising(),
    "another library's state": lambda: _module(random=np.random.RandomState(1), v=_variable()),
    "a get_state of another meaning": lambda: _module(env=_Environment(), v=_variable()),
}


class _Raising(tf.Module):  # type: ignore[misc]
    @property
    def variables(self) -> Any:
        raise RuntimeError("not now")


class _Environment:
    def get_state(self, player: int) -> int:
        return player

    def set_state(self, player: int, state: int) -> None: ...


@pytest.mark.parametrize("name", NOT_REFUSED)
def test_no_false_alarm(name: str) -> None:
    state = {"m": NOT_REFUSED[name]()}
    tree = walk(state)
    assert not tree.is_stale()
    assert tree.python == {}
    assert [spec.name for spec in walk(state).specs] == [spec.name for spec in tree.specs]


def test_python_state_is_named_by_its_place() -> None:
    tree = walk(
        {
            "m": CountingModule(),
            "d": [Counter(), Pair({"a": Counter()}, tf.Variable(1.0))],
            "own": PerWorker([Counter()]),
        }
    )
    assert set(tree.python) == {
        "m",
        "m/counters/0",
        "m/counters/1/deep/0",
        "d/0",
        "d/1/first/a",
        "own/worker-0/0",
    }
    assert tree.own_names == {"own/worker-0", "own/worker-0/0"}
    assert capture(tree, is_chief=True).python_state["m"] == {"count": 0}


class Slots(tf.Module):  # type: ignore[misc]
    __slots__ = ("kept",)


class OwnCheckpoint(tf.train.Checkpoint):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(v=_variable())
        self.__dict__["_self_store"] = {"hidden": _variable()}

    def _trackable_children(self, save_type: str = "checkpoint", **options: Any) -> dict[str, Any]:
        return {**super()._trackable_children(save_type, **options), **self.__dict__["_self_store"]}


class Serialized(keras.layers.Layer):  # type: ignore[misc]
    """A layer that gives TensorFlow a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.words = "none"

    def _serialize_to_tensors(self) -> dict[str, Any]:
        return {"words": tf.constant(self.words)}

    def _restore_from_tensors(self, tensors: dict[str, Any]) -> None:
        self.words = tensors["words"].numpy().decode()


def test_what_a_layer_gives_tensorflow_itself_is_saved() -> None:
    state, fresh = {"m": keras.Sequential([Serialized()])}, {"m": keras.Sequential([Serialized()])}
    state["m"].layers[0].words = "größe"
    roundtrip.restore(fresh, roundtrip.save(state))
    assert fresh["m"].layers[0].words == "größe"


class Layer(keras.layers.Layer):  # type: ignore[misc]
    pass


def _put(obj: Any, name: str, value: Any) -> None:
    setattr(obj, name, value)


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "deque": (lambda: _module(x=collections.deque()), lambda m: m.x.append(_variable())),
    "user list": (lambda: _module(x=collections.UserList()), lambda m: m.x.append(_variable())),
    "user dict": (lambda: _module(x=collections.UserDict()), lambda m: m.x.update(a=_variable())),
    "attrs": (lambda: _module(x=Pair(None)), lambda m: _put(m.x, "first", _variable())),
    "attrs with slots": (lambda: _module(x=Slotted(None)), lambda m: _put(m.x, "only", _variable())),
    "set": (lambda: _module(x=set()), lambda m: m.x.add(Named("new"))),
    "Python state": (lambda: _module(x=Counter()), lambda m: _put(m, "x", Counter())),
    "Python state in a list": (lambda: _module(x=[]), lambda m: m.x.append(Counter())),
    "own children": (Hidden, lambda m: m.__dict__["_self_store"].update(more=_variable())),
    "an attribute called as TensorFlow's": (_module, lambda m: _put(m, "_self_cache", _variable())),
    "a checkpoint's own children": (
        OwnCheckpoint,
        lambda c: c.__dict__["_self_store"].update(more=_variable()),
    ),
    "slots": (Slots, lambda m: _put(m, "kept", _variable())),
    **{
        f"layer.{name}": (Layer, functools.partial(lambda name, layer: _put(layer, name, _variable()), name))
        for name in ("optimizer", "history", "loss", "_functional", "_loss_tracker")
    },
    "layer in a set": (
        lambda: _keras_with(keras.layers.Dense(1)),
        lambda model: model.blocks.add(keras.layers.Dense(2)),
    ),
}


def _keras_with(*layers: Any) -> Any:
    model = keras.Model()
    model.blocks = set(layers)
    return model


def _functional(keras_: Any) -> Any:
    inputs = keras_.Input((2,))
    return keras_.Model(inputs, keras_.layers.Dense(1)(inputs))


HOSTS: dict[str, Callable[[], Any]] = {
    "module": tf.Module,
    "checkpoint": tf.train.Checkpoint,
    **{
        f"{keras_.__name__} {name}": functools.partial(make, keras_)
        for keras_ in (keras, tf_keras)
        for name, make in {
            "layer": lambda k: k.layers.Layer(),
            "model": lambda k: k.Model(),
            "sequential": lambda k: k.Sequential([k.Input((2,)), k.layers.Dense(1)]),
            "functional": _functional,
            "optimizer": lambda k: k.optimizers.SGD(momentum=0.9),
            "metric": lambda k: k.metrics.Mean(),
            "words": lambda k: k.layers.StringLookup(vocabulary=["a"]),
            "text": lambda k: k.layers.TextVectorization(),
        }.items()
    },
    "tf_keras legacy optimizer": lambda: tf_keras.optimizers.legacy.SGD(),
}
NAMES = (
    *("optimizer", "history", "loss", "compiled", "loss_tracker", "compile_metrics", "compiled_loss", "keras_api"),
    *("_loss_tracker", "_compile_metrics", "_eval_epoch_iterator", "_self_x", "_x", "train_function", "_states"),
)
THINGS: tuple[Callable[[], Any], ...] = (
    _variable,
    _table,
    lambda: Named("inner"),
    lambda: [_variable()],
    lambda: {"a": (_variable(),)},
    lambda: tf_keras.optimizers.Adam(),
    lambda: tf.random.Generator.from_seed(1),
)


@pytest.mark.parametrize("host", HOSTS)
def test_what_an_attribute_is_called_decides_nothing(host: str) -> None:
    """All things under all names, on objects of all sorts: what the frameworks list of them is found."""
    for turn in range(len(THINGS)):
        obj = HOSTS[host]()
        for place, name in enumerate(NAMES):
            setattr(obj, name, THINGS[(place + turn) % len(THINGS)]())
        assert roundtrip.lost({"m": obj}) == [], turn


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_added_later_is_seen(name: str) -> None:
    make, change = CHANGES[name]
    state = {"m": make()}
    tree = walk(state)
    before = len(tree.leaves) + len(tree.python)
    assert not tree.is_stale()
    change(state["m"])
    assert tree.is_stale()
    after = walk(state)
    is_unbuilt = name == "layer in a set"
    is_replaced = name == "Python state"
    assert len(after.leaves) + len(after.python) == before + (0 if is_unbuilt or is_replaced else 1)
    assert not after.is_stale()


def test_order_of_keys_and_attributes_decides_nothing() -> None:
    """A dict that is made again in another order has the same names, and shared objects the same names in all."""
    shared = [_variable() for _ in range(3)]

    def names(order: int) -> dict[str, Any]:
        keys = {f"{key}{n}": shared[n] for n in range(3) for key in "abcdefgh"}
        module = _module(d=dict(list(keys.items())[::order]), e={"x": [_variable(), _variable()], 7: _variable()})
        tree = walk(as_mapping({"m": module}))
        return {name: leaf for leaf in tree.leaves for name in (leaf.name, *leaf.aliases)}

    forward, backward = names(1), names(-1)
    for n, variable in enumerate(shared):
        found = [
            {name for name, leaf in each.items() if getattr(leaf, "variable", None) is variable}
            for each in (forward, backward)
        ]
        assert found[0] & found[1], n
