"""Plain Python state beside what TensorFlow tracks: an object that has both loses neither."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from ckptflow.state.capture import capture
from ckptflow.state.tree import walk


class Trainer(tf.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.v = tf.Variable(1.0)
        self.epoch = 7

    def get_state(self) -> Any:
        return {"epoch": self.epoch}

    def set_state(self, state: Any) -> None:
        self.epoch = state["epoch"]


def test_a_module_with_python_state_keeps_both() -> None:
    tree = walk({"trainer": Trainer()})
    assert [spec.name for spec in tree.specs] == ["trainer/v"]
    assert capture(tree, is_chief=True).python_state == {"trainer": {"epoch": 7}}


def test_a_frameworks_own_methods_are_not_taken_for_the_users() -> None:
    tree = walk({"norm": keras.layers.Normalization(), "text": keras.layers.TextVectorization()})
    assert tree.python == {}
