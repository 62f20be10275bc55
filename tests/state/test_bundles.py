"""Trackables that tell TensorFlow themselves what they are made of: every tensor is saved under a name of its own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from ckptflow.errors import UnsupportedStateError
from ckptflow.state.bundles import FactoriesBundle, bundle_of
from ckptflow.state.tree import walk
from tests.state import roundtrip


class Alike(tf.__internal__.tracking.AutoTrackable):  # type: ignore[misc]
    """Its tensors have names that differ only by what joins them to something else."""

    NAMES = ("x", "_x", "-x", "y_", "/", "")

    def __init__(self, first: float) -> None:
        self.tensors = {name: first + place for place, name in enumerate(self.NAMES)}

    def _serialize_to_tensors(self) -> dict[str, Any]:
        return {name: tf.constant(self.tensors[name]) for name in self.NAMES}

    def _restore_from_tensors(self, restored: dict[str, Any]) -> None:
        self.tensors = {name: float(restored[name]) for name in self.NAMES}


def test_tensors_of_names_that_are_alike_keep_their_values() -> None:
    obj, fresh = Alike(1.0), Alike(100.0)
    tree = walk({"m": obj})
    assert len({leaf.name for leaf in tree.leaves}) == len(Alike.NAMES)
    assert "m/y" in {leaf.name for leaf in tree.leaves}
    roundtrip.restore({"m": fresh}, roundtrip.save({"m": obj}))
    assert fresh.tensors == obj.tensors


class Old:
    """What saves an object in TensorFlow's old way, and refuses what is too large."""

    def __init__(self, obj: Any) -> None:
        self.obj = obj

    @property
    def specs(self) -> list[Any]:
        return [SimpleNamespace(name="number", tensor=tf.constant(self.obj.number))]

    def restore(self, tensors: list[Any], shapes: Any) -> None:
        self.obj.number = int(tensors[0])
        if self.obj.number > 5:
            raise ValueError("too large")


def test_what_factories_make_is_asked_before_anything_is_changed() -> None:
    obj = tf.__internal__.tracking.AutoTrackable()
    obj.number = 1
    obj._maybe_initialize_trackable()
    obj._self_saveable_object_factories = {"old": lambda name: Old(obj)}
    bundle = bundle_of(obj, "m")
    assert isinstance(bundle, FactoriesBundle)
    assert bundle.misfit({"number": np.array(5, np.int32)}) == ""
    assert bundle.misfit({"number": np.array(6, np.int32)}) == "ValueError: too large"
    assert obj.number == 1


def test_what_a_bundle_holds_is_told_bit_for_bit() -> None:
    obj = tf.__internal__.tracking.AutoTrackable()
    values = {"texts": np.array([b"a", b"b"], object), "floats": np.array([np.nan, 0.0], np.float32)}
    obj._serialize_to_tensors = lambda: {name: tf.constant(value) for name, value in values.items()}
    bundle = bundle_of(obj, "m")
    assert bundle is not None
    assert bundle.holds(dict(values))
    assert not bundle.holds(values | {"floats": np.array([np.nan, -0.0], np.float32)})
    assert not bundle.holds(values | {"texts": np.array([b"a", b"c"], object)})
    assert not bundle.holds(values | {"texts": np.array([[b"a"], [b"b"]], object)})
    assert not bundle.holds({"texts": values["texts"]})


class Words(tf.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
        self.dense = tf.lookup.experimental.DenseHashTable(tf.int64, tf.int64, -1, -2, -3)
        self.fixed = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([1], [2]), 0)
        self.v = tf.Variable(1.0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.int64)])
    def ask(self, words: Any, numbers: Any) -> Any:
        return self.table.lookup(words), self.dense.lookup(numbers), self.fixed.lookup(tf.constant([1]))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.int64)])
    def learn(self, words: Any, numbers: Any) -> Any:
        self.table.insert(words, numbers)
        self.dense.insert(numbers, numbers)
        return tf.size(words)


def test_tables_of_a_loaded_saved_model_are_saved(tmp_path: Path) -> None:
    tf.saved_model.save(Words(), str(tmp_path))
    model, fresh = (tf.saved_model.load(str(tmp_path)) for _ in range(2))
    words, numbers = tf.constant(["größe", "b"]), tf.constant([3, 4], tf.int64)
    model.learn(words, numbers)
    fresh.learn(tf.constant(["other"]), tf.constant([9], tf.int64))
    assert roundtrip.lost({"m": model}) == []
    roundtrip.restore({"m": fresh}, roundtrip.save({"m": model}))
    for asked in ((words, numbers), (tf.constant(["other"]), tf.constant([9], tf.int64))):
        for ours, theirs in zip(fresh.ask(*asked), model.ask(*asked), strict=True):
            assert ours.numpy().tolist() == theirs.numpy().tolist()


def test_factories_that_fail_are_refused_by_name() -> None:
    def fails(name: str) -> Any:
        raise RuntimeError(f"no {name} here")

    obj = tf.__internal__.tracking.AutoTrackable()
    obj._maybe_initialize_trackable()
    obj._self_saveable_object_factories = {"table": fails}
    with pytest.raises(UnsupportedStateError, match=r"\Am: a AutoTrackable .*no table here"):
        walk({"m": obj})
