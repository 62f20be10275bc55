"""What TensorFlow does not track of a layer, a metric, an optimizer or another trackable is saved nevertheless."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import pytest
import tensorflow as tf
import tf_keras

from ckptflow.state.tree import as_mapping, walk
from tests.state import roundtrip
from tests.state.cases_held import Counter


class Held(tf_keras.layers.Layer):  # type: ignore[misc]
    pass


class HeldModel(tf_keras.Model):  # type: ignore[misc]
    pass


class HeldMetric(tf_keras.metrics.Mean):  # type: ignore[misc]
    pass


def _functional() -> Any:
    inputs = tf_keras.Input((2,))
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(1)(inputs))
    model.compile("adam", "mse", metrics=["mae"])
    return model


HOSTS: dict[str, Callable[[], Any]] = {
    "layer": Held,
    "model": HeldModel,
    "functional model": _functional,
    "sequential model": lambda: tf_keras.Sequential([tf_keras.layers.Dense(1, input_shape=(2,))]),
    "metric": HeldMetric,
    "trackable": tf.__internal__.tracking.AutoTrackable,
    "checkpoint": tf.train.Checkpoint,
}


def _table() -> Any:
    return tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0)


@pytest.mark.parametrize("host", HOSTS)
def test_what_tensorflow_does_not_track_is_saved(host: str) -> None:
    obj = HOSTS[host]()
    state = as_mapping({"m": obj})
    before = {leaf.name for leaf in walk(state).leaves}
    obj.sampler = Counter()
    obj.in_list = [Counter()]
    obj.in_user_dict = collections.UserDict(a=tf.Variable(1.0), words=_table(), count=Counter())
    obj.in_set = {tf.random.Generator.from_seed(1)}
    tree = walk(state)
    added = {leaf.name for leaf in tree.leaves} - before
    assert set(tree.python) == {"m/sampler", "m/in_list/0", "m/in_user_dict/count"}
    # tf_keras lists such a variable as a weight, by its own name.
    assert added - {"m/Variable", "m/in_user_dict/a"} == {
        "m/in_user_dict/words/keys",
        "m/in_user_dict/words/values",
        "m/in_set/generator/state_var",
    }
    assert len(added) == 4
    assert not tree.is_stale()
    obj.sampler = Counter()
    assert tree.is_stale()


class Decay(tf_keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, step: Any) -> Any:
        return 0.1

    def get_state(self) -> int:
        return self.count

    def set_state(self, state: int) -> None:
        self.count = state

    def get_config(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("make", [tf_keras.optimizers.SGD, tf_keras.optimizers.legacy.SGD])
def test_a_schedule_with_state_is_saved(make: Callable[[Any], Any]) -> None:
    schedules = [Decay(), Decay()]
    one, two = (make(schedule) for schedule in schedules)
    schedules[0].count = 7
    assert list(walk({"o": one}).python) == ["o/learning_rate"]
    roundtrip.restore({"o": two}, roundtrip.save({"o": one}))
    assert schedules[1].count == 7
