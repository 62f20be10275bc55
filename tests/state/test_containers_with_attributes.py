"""A Module or a layer that is a list, a dict or a set as well loses neither its items nor its attributes."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import keras
import pytest
import tensorflow as tf
import tf_keras

from ckptflow.state.tree import walk
from tests.state import roundtrip
from tests.state.cases_held import Named


class ListModule(list[Any], tf.Module):  # type: ignore[misc]
    __hash__ = object.__hash__  # type: ignore[assignment]


class UserListModule(collections.UserList[Any], tf.Module):  # type: ignore[misc]
    __hash__ = object.__hash__  # type: ignore[assignment]

    def __init__(self) -> None:
        tf.Module.__init__(self)
        collections.UserList.__init__(self)


class DequeModule(collections.deque[Any], tf.Module):  # type: ignore[misc]
    __hash__ = object.__hash__  # type: ignore[assignment]


class DictModule(dict[str, Any], tf.Module):  # type: ignore[misc]
    __hash__ = object.__hash__  # type: ignore[assignment]


class SetModule(set[Any], tf.Module):  # type: ignore[misc]
    __hash__ = object.__hash__  # type: ignore[assignment]


class ListLayer(list[Any], tf_keras.layers.Layer):  # type: ignore[misc]
    __hash__ = object.__hash__  # type: ignore[assignment]

    def __init__(self) -> None:
        list.__init__(self)
        tf_keras.layers.Layer.__init__(self)


class Keras3ListLayer(keras.layers.Layer, list[Any]):  # type: ignore[misc]
    __hash__ = object.__hash__  # type: ignore[assignment]


def _fill(obj: Any) -> Any:
    obj.scale = tf.Variable(2.0)
    item = Named("item")
    item.v = tf.Variable(1.0)
    if isinstance(obj, dict):
        obj["item"] = item
    else:
        (obj.add if isinstance(obj, set) else obj.append)(item)
    return obj


CLASSES: list[Callable[[], Any]] = [
    ListModule,
    UserListModule,
    DequeModule,
    DictModule,
    SetModule,
    ListLayer,
    Keras3ListLayer,
]


@pytest.mark.parametrize("where", ["entry", "inside"])
@pytest.mark.parametrize("make", CLASSES)
def test_neither_items_nor_attributes_are_lost(make: Callable[[], Any], where: str) -> None:
    obj = _fill(make())
    holder = tf.Module()
    holder.inner = obj
    state = {"m": obj if where == "entry" else holder}
    tree = walk(state)
    values = sorted(
        float(vars(leaf)["variable"].numpy()) for leaf in tree.leaves if "/v" in leaf.name or "scale" in leaf.name
    )
    assert values[-2:] == [1.0, 2.0], [leaf.name for leaf in tree.leaves]
    assert roundtrip.lost(state) == []
    assert not tree.is_stale()
    _fill(obj)
    assert tree.is_stale()


@pytest.mark.parametrize("make", CLASSES)
def test_items_that_come_later_are_seen(make: Callable[[], Any]) -> None:
    obj = make()
    tree = walk({"m": obj})
    assert not tree.is_stale()
    item = Named("item")
    if isinstance(obj, dict):
        obj["item"] = item
    else:
        (obj.add if isinstance(obj, set) else obj.append)(item)
    assert tree.is_stale()
