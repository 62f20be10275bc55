"""A save looks at each model for what has changed in its description: within bounds, whatever the user's classes do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf

from ckptflow import CheckpointManager
from ckptflow.state import settings
from ckptflow.state.tree import walk


def test_a_property_that_raises_fails_no_save(tmp_path: Path) -> None:
    class Own(keras.Model):  # type: ignore[misc]
        @property
        def optimizer(self) -> Any:
            raise RuntimeError("not compiled")

        @optimizer.setter
        def optimizer(self, value: Any) -> None:
            pass

        def call(self, inputs: Any) -> Any:
            return inputs

    model = Own()
    for number, state in enumerate([{"model": model}, {"model": model, "optimizer": keras.optimizers.SGD()}]):
        with CheckpointManager(tmp_path / str(number), {**state, "v": tf.Variable(1.0)}) as manager:
            assert manager.save(1).result().step == 1


@pytest.mark.parametrize("kind", [list, set, frozenset])
def test_what_is_long_with_all_that_is_in_it_is_data(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = keras.layers.ReLU()
    layer.neighbours = {number: kind(range(number, number + 300)) for number in range(900)}
    looked: list[Any] = []
    look = settings._add_what_it_holds

    def counted(value: Any, found: list[Any], depth: int) -> None:
        looked.append(value)
        look(value, found, depth)

    monkeypatch.setattr(settings, "_add_what_it_holds", counted)
    settings.settings_of(walk({"layer": layer}))
    assert len(looked) < 4 * settings._MAX_ITEMS
