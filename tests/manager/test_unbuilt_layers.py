"""Keras layers outside of models, which nothing builds: an error says what to call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf
import tf_keras

from ckptflow import CheckpointManager, StateMismatchError

KERASES: dict[str, Any] = {"keras": keras, "tf_keras": tf_keras}


def entry(kit: Any) -> Any:
    return kit.layers.LSTM(3)


def in_a_module(kit: Any) -> Any:
    module = tf.Module()
    module.layer = kit.layers.LSTM(3)
    return module


@pytest.mark.parametrize("make", [entry, in_a_module])
@pytest.mark.parametrize("kit", KERASES)
def test_a_layer_that_is_not_built_is_named_with_what_to_do(tmp_path: Path, kit: str, make: Any) -> None:
    series = tf.ones([1, 2, 4])
    saved, fresh = make(KERASES[kit]), make(KERASES[kit])
    layer, again = (getattr(obj, "layer", obj) for obj in (saved, fresh))
    expected = layer(series).numpy().tolist()
    with CheckpointManager(tmp_path, {"enc": saved}) as manager:
        manager.save(1)
    with CheckpointManager(tmp_path, {"enc": fresh}) as manager:
        with pytest.raises(
            StateMismatchError, match=r"not built yet.*(enc|lstm\w*) \(LSTM\).*call each once on a batch"
        ):
            manager.restore_latest()
        again(series)
        manager.restore_latest()
    assert again(series).numpy().tolist() == expected


@pytest.mark.parametrize("kit", KERASES)
def test_a_feature_space_that_is_not_adapted_is_named(tmp_path: Path, kit: str) -> None:
    """The one of tf_keras has no name: it never calls the constructor of `Layer`."""
    space = KERASES[kit].utils.FeatureSpace

    def made() -> Any:
        return space({"a": space.float_normalized()}, output_mode="concat")

    saved, data = made(), {"a": [1.0, 2.0, 3.0]}
    saved.adapt(tf.data.Dataset.from_tensor_slices(data).batch(3))
    saved({"a": tf.constant([1.0])})
    with CheckpointManager(tmp_path, {"features": saved}) as manager:
        manager.save(1)
    with CheckpointManager(tmp_path, {"features": made()}) as manager:
        with pytest.raises(StateMismatchError, match=r"not built yet.*features \(FeatureSpace\)"):
            manager.restore_latest()
