"""What code of others takes in a restore: what it cannot take is found before any value is changed, and put back."""

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

from ckptflow import CheckpointManager, StateMismatchError
from tests.manager.refusing import Iterators, Kind, restored, saved
from tests.manager.states import PlainState, Weights

KERASES = {"keras": keras, "tf_keras": tf_keras}
Make = Callable[[], Any]


def words_of_its_own(module: Any, name: str = "StringLookup") -> Make:
    """A lookup with a constructor and a config of its own, made as one of some user's is."""

    class Own(getattr(module.layers, name)):  # type: ignore[misc]
        def __init__(self, where: str) -> None:
            super().__init__(max_tokens=10)
            self.where = where

        def get_config(self) -> dict[str, Any]:
            return {"where": self.where}

    return lambda: Own("here")


class Box(tf.train.experimental.PythonState.__mro__[1]):  # type: ignore[misc]
    """A trackable that tells TensorFlow its one vector, and takes only one of its own length."""

    def __init__(self, value: list[float], *, grows: bool = False) -> None:
        self.value, self.length, self.grows, self.is_stuck = value, len(value), grows, False

    def _serialize_to_tensors(self) -> dict[str, Any]:
        return {"value": tf.constant(self.value)}

    def _restore_from_tensors(self, tensors: dict[str, Any]) -> None:
        found = tensors["value"].numpy().tolist()
        if self.is_stuck:
            raise KeyError("stuck")
        wrong = len(found) != self.length and not self.grows
        self.value = found
        if wrong:
            self.is_stuck = len(found) == 4
            raise KeyError("another length")


@pytest.mark.parametrize("name", ["StringLookup", "IntegerLookup"])
@pytest.mark.parametrize("kit", KERASES)
def test_a_lookup_with_its_own_constructor(tmp_path: Path, kit: str, name: str) -> None:
    make = words_of_its_own(KERASES[kit], name)
    layer, again = make(), make()
    words = ["a", "b"] if name == "StringLookup" else [7, 8]
    layer.set_vocabulary(words)
    saved(tmp_path, layer)
    restored(tmp_path, again)
    assert again.get_vocabulary() == layer.get_vocabulary()


def test_a_lookup_that_cannot_be_made_again_is_written_all_the_same(tmp_path: Path) -> None:
    class Odd(keras.layers.StringLookup):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.output_mode = "its own"

    layer, again = Odd(), Odd()
    layer.set_vocabulary(["a"])
    saved(tmp_path, layer)
    restored(tmp_path, again)
    assert again.get_vocabulary() == layer.get_vocabulary()


def test_a_trackable_that_refuses_another_shape_changes_nothing(tmp_path: Path) -> None:
    saved(tmp_path, Box([1.0, 2.0]))
    box, weights = Box([5.0, 6.0, 7.0]), Weights()
    weights.fill(0)
    with CheckpointManager(tmp_path, {"w": weights, "obj": box}) as manager:
        with pytest.raises(StateMismatchError, match=r"(?s)no value was changed.*obj: value has shape \(3,\), \(2,\)"):
            manager.restore_latest()
    assert weights.value() == 0
    assert box.value == [5.0, 6.0, 7.0]


def test_a_trackable_that_refuses_another_shape_is_left_in_part(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, Box([1.0, 2.0]))
    box = Box([5.0, 6.0, 7.0])
    assert restored(tmp_path, box, partial=True).value() == 1
    assert box.value == [5.0, 6.0, 7.0]
    assert "left as it was: obj: value has shape" in caplog.text


def test_a_trackable_that_grows_takes_any_shape(tmp_path: Path) -> None:
    saved(tmp_path, Box([1.0, 2.0]))
    box = Box([5.0, 6.0, 7.0], grows=True)
    restored(tmp_path, box)
    assert box.value == [1.0, 2.0]


def test_a_trackable_that_refuses_at_last_is_put_back_in_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Late(Box):
        times = 0

        def _restore_from_tensors(self, tensors: dict[str, Any]) -> None:
            super()._restore_from_tensors(tensors)
            self.times += self.value[0] == 1.0
            if self.value[0] == 1.0 and self.times % 2 == 0:  # the rehearsal's is the first
                raise KeyError("never twice")

    saved(tmp_path, Box([1.0, 2.0]))
    late = Late([5.0, 6.0])
    assert restored(tmp_path, late, partial=True).value() == 1
    assert late.value == [5.0, 6.0]
    assert "left as it was: obj does not take its state" in caplog.text
    with pytest.raises(StateMismatchError, match=r"obj does not take its state .*never twice"):
        restored(tmp_path, late)


class KindInPython(tf.train.experimental.PythonState):  # type: ignore[misc]
    def __init__(self, kind: str, number: int) -> None:
        self.kind, self.number = kind, number

    def serialize(self) -> str:
        return f"{self.kind} {self.number}"

    def deserialize(self, text: Any) -> None:
        kind, number = text.decode().split()
        self.number = int(number)
        if kind != self.kind:
            raise ValueError("another kind")


REFUSING: dict[str, Callable[[str, int], Any]] = {"tensors": Kind, "Python": KindInPython}


@pytest.mark.parametrize("name", REFUSING)
def test_a_trackable_that_refuses_the_values_changes_nothing(tmp_path: Path, name: str) -> None:
    make = REFUSING[name]
    saved(tmp_path, make("a", 1))
    obj, weights = make("b", 7), Weights()
    weights.fill(0)
    claims = set((tmp_path / "lineage").iterdir())
    with CheckpointManager(tmp_path, {"w": weights, "obj": obj}) as manager:
        with pytest.raises(StateMismatchError, match=r"(?s)no value was changed.*obj: ValueError: another kind"):
            manager.restore_latest()
    assert (weights.value(), obj.number) == (0, 7)
    assert set((tmp_path / "lineage").iterdir()) == claims


@pytest.mark.parametrize("name", REFUSING)
def test_a_trackable_that_refuses_the_values_is_left_in_part(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    make = REFUSING[name]
    saved(tmp_path, make("a", 1))
    obj = make("b", 7)
    assert restored(tmp_path, obj, partial=True).value() == 1
    assert obj.number == 7
    assert "left as it was: obj: ValueError: another kind" in caplog.text


class Empty(tf.train.experimental.PythonState):  # type: ignore[misc]
    """Its first state is none that it would take."""

    number: int | None = None

    def serialize(self) -> str:
        return "" if self.number is None else str(self.number)

    def deserialize(self, text: Any) -> None:
        self.number = int(text)


def test_a_trackable_that_does_not_take_its_first_state_is_restored(tmp_path: Path) -> None:
    full, empty = Empty(), Empty()
    full.number = 3
    saved(tmp_path, full)
    restored(tmp_path, empty)
    assert empty.number == 3


def test_it_is_told_with_another_one_that_refuses(tmp_path: Path) -> None:
    full, empty, weights = Empty(), Empty(), Weights()
    full.number = 3
    with CheckpointManager(tmp_path, {"w": weights, "a": full, "obj": Kind("a", 1)}) as manager:
        manager.save(1)
    with CheckpointManager(tmp_path, {"w": weights, "a": empty, "obj": Kind("b", 1)}) as manager:
        with pytest.raises(StateMismatchError, match="obj: ValueError: another kind") as raised:
            manager.restore_latest()
    assert "no value was changed" not in str(raised.value)


@pytest.mark.parametrize("partial", [False, True])
def test_what_cannot_be_put_back_is_said(tmp_path: Path, partial: bool) -> None:
    saved(tmp_path, Box([1.0, 2.0, 3.0, 4.0]))
    with pytest.raises(StateMismatchError, match=r"(?s)obj: its previous state cannot be restored: KeyError") as raised:
        restored(tmp_path, Box([5.0]), partial=partial)
    assert "no value was changed" not in str(raised.value)


def test_an_iterator_that_fails_in_any_way_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, iter(tf.data.Dataset.range(5)))
    iterator = Iterators(monkeypatch, lambda number: number == 0).iterator
    next(iterator)
    with pytest.raises(StateMismatchError, match=r"(?s)no value was changed.*obj: .*another TensorFlow"):
        restored(tmp_path, iterator)
    assert int(next(iterator)) == 1


@pytest.mark.parametrize("partial", [False, True])
def test_an_iterator_that_is_not_put_back_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partial: bool
) -> None:
    saved(tmp_path, iter(tf.data.Dataset.range(5)))
    iterator = Iterators(monkeypatch, lambda number: number == 1).iterator
    with pytest.raises(StateMismatchError, match="obj: its previous state cannot be restored") as raised:
        restored(tmp_path, iterator, partial=partial)
    assert "no value was changed" not in str(raised.value)


def test_python_state_that_does_not_tell_what_it_holds_is_named(tmp_path: Path) -> None:
    class Mute(PlainState):
        def get_state(self) -> Any:
            raise RuntimeError("not yet")

    saved(tmp_path, PlainState())
    with pytest.raises(StateMismatchError, match="obj does not report its state to put back: RuntimeError: not yet"):
        restored(tmp_path, Mute(), partial=True)


def test_python_state_that_does_not_take_its_own_back_is_said(tmp_path: Path) -> None:
    class Once(PlainState):
        def set_state(self, state: Any) -> None:
            raise RuntimeError("no more")

    saved(tmp_path, PlainState())
    with pytest.raises(StateMismatchError, match=r"obj does not take .*; and does not accept its previous state"):
        restored(tmp_path, Once(), partial=True)


ADAPTED: dict[str, tuple[Callable[[Any], Any], Any, Callable[[Any], Any]]] = {
    "words": (lambda k: k.layers.StringLookup(), ["a", "b"], lambda layer: layer.get_vocabulary()),
    "numbers": (lambda k: k.layers.IntegerLookup(), [7, 8], lambda layer: layer.get_vocabulary()),
    "many": (lambda k: k.layers.StringLookup(output_mode="multi_hot"), ["a"], lambda layer: layer.vocabulary_size()),
    "weighted": (
        lambda k: k.layers.StringLookup(output_mode="tf_idf"),
        ["a", "b"],
        lambda layer: layer.vocabulary_size(),
    ),
    "text": (lambda k: k.layers.TextVectorization(), ["a b", "b"], lambda layer: layer.get_vocabulary()),
    "bins": (
        lambda k: k.layers.Discretization(num_bins=2),
        np.array([1.0, 2.0, 3.0, 4.0], np.float32),
        lambda layer: list(layer.bin_boundaries or []),
    ),
}


@pytest.mark.parametrize("name", ADAPTED)
@pytest.mark.parametrize("kit", KERASES)
def test_what_was_saved_before_it_was_adapted_stays_adapted_and_that_is_said(
    tmp_path: Path, kit: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, data, tell = ADAPTED[name]
    layer, weights = make(KERASES[kit]), Weights()
    with CheckpointManager(tmp_path, {"w": weights, "obj": layer}) as manager:
        weights.fill(1)
        manager.save(1).result()
        manager.restore(1)
        assert "has no" not in caplog.text
        layer.adapt(data)
        adapted = tell(layer)
        weights.fill(2)
        manager.save(2).result()
        manager.restore(1)
        assert (weights.value(), tell(layer)) == (1, adapted)
        assert re.search("the checkpoint has no (vocabulary|boundaries) of it", caplog.text)
        manager.restore(2)
        assert (weights.value(), tell(layer)) == (2, adapted)
