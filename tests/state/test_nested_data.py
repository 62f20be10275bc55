"""Plain data in lists and dicts costs each save no step of Python for each element, and hides no state in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import pytest
import tensorflow as tf
import tf_keras

from ckptflow.state.kinds import kind_of
from ckptflow.state.settings import settings_of
from ckptflow.state.tree import walk

COUNT = 2_000
DATA: dict[str, Callable[[], Any]] = {
    "lists": lambda: [[i, i + 1] for i in range(COUNT)],
    "tuples": lambda: [(i, i + 1) for i in range(COUNT)],
    "dicts": lambda: {f"word{i}": {"id": i} for i in range(COUNT)},
    "deep": lambda: {f"word{i}": [(i, [i, {"a": i}])] for i in range(COUNT)},
}


def make_module() -> Any:
    module = tf.Module()
    module.v = tf.Variable(1.0)
    return module


def make_layer(library: Any) -> Any:
    layer = library.layers.Dense(2)
    layer.build((None, 2))
    return layer


HOLDERS: dict[str, Callable[[], Any]] = {
    "module": make_module,
    "keras": lambda: make_layer(keras),
    "tf_keras": lambda: make_layer(tf_keras),
}


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("holder", HOLDERS)
def test_a_save_takes_no_step_for_each_element(holder: str, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    obj = HOLDERS[holder]()
    names = [leaf.name for leaf in walk({"obj": obj}).leaves]
    obj.table = DATA[data]()
    tree = walk({"obj": obj})
    assert [leaf.name for leaf in tree.leaves] == names
    asked: list[object] = []

    def counting(value: object) -> Any:
        asked.append(value)
        return kind_of(value)

    monkeypatch.setattr("ckptflow.state.children.kind_of", counting)
    assert not tree.is_stale()
    assert len(asked) < COUNT / 4


@pytest.mark.parametrize("holder", ["module", "tf_keras"])  # Keras 3 takes nothing new once it is built
def test_what_comes_into_it_later_is_found(holder: str) -> None:
    obj = HOLDERS[holder]()
    obj.table = {"a": [[1, 2], [3]], "b": {"c": []}}
    tree = walk({"obj": obj})
    obj.table["b"]["c"].append(tf.Variable(2.0))
    assert tree.is_stale()


def test_settings_pass_over_data_however_it_is_nested() -> None:
    layer = make_layer(keras)
    before = len(settings_of(walk({"layer": layer})))
    layer.table = [[i] * 500 for i in range(500)]
    assert len(settings_of(walk({"layer": layer}))) < before + 5_000


@dataclasses.dataclass(slots=True)
class Slotted:
    rate: float = 0.5

    def get_config(self) -> dict[str, Any]:
        return {"rate": self.rate}


class Hostile:
    """Has no attributes of its own, and raises where anyone looks."""

    __slots__ = ("never_set",)

    def serialize(self) -> bytes:
        return b""


class HostileList(list[Any]):
    def __len__(self) -> int:
        raise RuntimeError("not now")


def test_settings_look_at_whatever_a_layer_holds() -> None:
    layer = make_layer(keras)
    layer.config, layer.hostile = Slotted(), Hostile()
    layer.__dict__["items"] = HostileList()
    tree = walk({"layer": layer})
    before = settings_of(tree)
    assert settings_of(tree) == before
    layer.config.rate = 0.25
    assert settings_of(tree) != before
