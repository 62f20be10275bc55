"""Which variables a restore may do without: a metric's own and those of metrics in it, and no others that it holds."""

from __future__ import annotations

from typing import Any

import keras
import pytest
import tensorflow as tf
import tf_keras

from ckptflow.state.tree import walk


def _metric(library: Any) -> Any:
    class Distance(library.metrics.Metric):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(name="distance")
            self.total = self.add_weight(name="total", initializer="zeros", shape=())
            self.inner = library.metrics.Mean(name="inner")
            self.several = [library.metrics.Mean(name="in_list")]
            self.net = library.Sequential([library.Input((1,)), library.layers.Dense(1)])
            self.words = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0)

        def update_state(self, *values: Any) -> None: ...

        def result(self) -> Any:
            return self.total

    return Distance()


@pytest.mark.parametrize("library", [keras, tf_keras])
def test_a_network_that_a_metric_holds_is_none_of_its_variables(library: Any) -> None:
    module = tf.Module()
    module.score = _metric(library)
    tree = walk({"m": module})
    is_metric = {leaf.name: leaf.metric for leaf in tree.leaves}
    assert {name for name, is_own in is_metric.items() if not is_own} == {
        "m/score/net/dense/kernel",
        "m/score/net/dense/bias",
        "m/score/words/keys",
        "m/score/words/values",
    }
    assert is_metric["m/score/total"]
    assert len(is_metric) == 9
