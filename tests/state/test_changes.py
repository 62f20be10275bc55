"""What is not stale has the names that a new walk would give: a value never goes under another's name."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from typing import Any

import keras
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptflow.errors import UnsupportedStateError
from ckptflow.state.leaves import VariableLeaf
from ckptflow.state.tree import Tree, walk
from tests.state.cases_held import Counter, Hidden, Pair


class Layer(keras.layers.Layer):  # type: ignore[misc]
    pass


class TrainedLayer(tf_keras.layers.Layer):  # type: ignore[misc]
    pass


class CountingList(list[Any]):
    """A list that is Python state as well."""

    def get_state(self) -> int:
        return 1

    def set_state(self, state: int) -> None: ...


def found(tree: Tree) -> dict[str, int]:
    """All names, and what each is the name of."""
    leaves = {
        name: id(leaf.variable)
        for leaf in tree.leaves
        if isinstance(leaf, VariableLeaf)
        for name in (leaf.name, *leaf.aliases)
    }
    return leaves | {name: id(part) for name, part in tree.python.items()}


def is_honest(tree: Tree) -> bool:
    """Whether the tree is stale, or a new walk finds the same."""
    if tree.is_stale():
        return True
    try:
        return found(walk(tree.state)) == found(tree)
    except UnsupportedStateError:
        return False


def _variables(library: Any) -> list[Any]:
    return [library.Variable(float(n)) for n in range(2)]


def _swap_attributes(obj: Any) -> None:
    one, two = obj.one, obj.two
    del obj.one, obj.two
    obj.two, obj.one = one, two


def _swap_keys(obj: Any) -> None:
    obj.nets = {"target": obj.nets["online"], "online": obj.nets["target"]}


def _rename_key(obj: Any) -> None:
    obj.nets["third"] = obj.nets.pop("online")


def _of(obj: Any, **attributes: Any) -> Any:
    for name, value in attributes.items():
        setattr(obj, name, value)
    return obj


def _made(put: Callable[[Any, Any], Any], make: Callable[[], Any], library: Any) -> Any:
    return put(make(), library)


def _nets(obj: Any, library: Any) -> Any:
    return _of(obj, nets=dict(zip(("online", "target"), _variables(library), strict=True)))


def _pair(obj: Any, library: Any) -> Any:
    return _of(obj, **dict(zip(("one", "two"), _variables(library), strict=True)))


def _swap_hidden(obj: Any) -> None:
    store = obj.__dict__["_self_store"]
    (one, child), *others = store.items()
    store.clear()
    store.update({f"{one}_renamed": child, **dict(others)})


def _swap_fields(obj: Any) -> None:
    obj.pair = Pair(obj.pair.second, obj.pair.first)


def _rename_layer(model: Any) -> None:
    model.layers[-1].name = "renamed"


_SHARED = tf.Variable(1.0)
CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    **{
        f"{name}: {what}": (functools.partial(_made, put, make, library), change)
        for name, make, library in (
            ("module", tf.Module, tf),
            ("checkpoint", tf.train.Checkpoint, tf),
            ("Keras 3 layer", Layer, keras),
            ("tf_keras layer", TrainedLayer, tf),
        )
        for what, put, change in (
            ("keys swapped", _nets, _swap_keys),
            ("key renamed", _nets, _rename_key),
            ("attributes swapped", _pair, _swap_attributes),
        )
        if what != "key renamed" or name != "checkpoint"  # TensorFlow refuses to save what it wraps there then
    },
    "entry: key renamed": (lambda: {"a": tf.Variable(1.0)}, lambda obj: obj.update(b=obj.pop("a"))),
    "keys that are equal": (lambda: {1: tf.Variable(1.0)}, lambda obj: obj.update({True: obj.pop(1)})),
    "a place in a list": (
        lambda: _of(tf.Module(), items=[tf.Variable(1.0)]),
        lambda obj: setattr(obj, "items", [3, *obj.items]),
    ),
    "other nesting": (
        lambda: _of(tf.Module(), items=[[tf.Variable(1.0)], []]),
        lambda obj: setattr(obj, "items", [[], obj.items[0]]),
    ),
    "fields of a record": (lambda: _of(tf.Module(), pair=Pair(*_variables(tf))), _swap_fields),
    "own children": (Hidden, _swap_hidden),
    "an underscore that is no longer left out": (
        lambda: _of(tf.Module(), _items=[tf.Variable(1.0)]),
        lambda obj: setattr(obj, "items", []),
    ),
    "tracked by name": (tf.Module, lambda obj: obj._track_trackable(tf.Variable(1.0), "hidden")),
    "a layer's name": (lambda: keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]), _rename_layer),
    "a list that is Python state": (
        lambda: _of(tf.Module(), items=CountingList()),
        lambda obj: setattr(obj, "items", CountingList()),
    ),
    "a list that TensorFlow tracks": (
        lambda: _of(tf.Module(), _a=[], a=collections.UserList([_SHARED, _SHARED])),
        lambda obj: setattr(obj, "a", [_SHARED, _SHARED]),
    ),
    "user dict": (
        lambda: _of(tf.Module(), nets=collections.UserDict(a=tf.Variable(1.0))),
        lambda obj: obj.nets.update(b=obj.nets.pop("a")),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_would_give_another_name_is_seen(name: str) -> None:
    make, change = CHANGES[name]
    state = {"m": make()}
    tree = walk(state)
    assert not tree.is_stale()
    change(state["m"])
    assert tree.is_stale()
    assert not walk(state).is_stale()


_POOL = [*_variables(tf), tf.Variable(2.0), Counter(), Counter()]
_KEYS = st.sampled_from(["a", "_a", "a/", "b", "", 1, True, 1.0, "1", (1, "a"), (True, "a"), b"a", None])
_THINGS = st.recursive(
    st.integers(0, len(_POOL) - 1).map(_POOL.__getitem__) | st.sampled_from([None, 3, "text"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(_KEYS, inner, max_size=3)
        | st.lists(inner, max_size=2).map(collections.UserList)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=6,
)
_NAMES = st.sampled_from(["a", "_a", "__a", "b", "c"])
_HELD = st.dictionaries(_NAMES, _THINGS, max_size=4)


@settings(max_examples=400, deadline=None)
@given(_HELD, _HELD)
def test_what_is_not_stale_has_the_names_that_a_new_walk_gives(before: dict[str, Any], after: dict[str, Any]) -> None:
    module = tf.Module()
    for name, value in before.items():
        setattr(module, name, value)
    try:
        tree = walk({"m": module})
    except UnsupportedStateError:
        return  # names that would be one
    assert not tree.is_stale()
    for name in before.keys() - after.keys():
        delattr(module, name)
    for name, value in after.items():
        setattr(module, name, value)
    assert is_honest(tree)
