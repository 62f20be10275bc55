"""What the functions that Keras has traced hold as constants of a graph, and a restore replaces."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from ckptflow.state.kinds import Kind, is_feature_space, is_normalization, kind_of

_MADE_BY = {
    "train_function": "make_train_function",
    "test_function": "make_test_function",
    "predict_function": "make_predict_function",
}


def constants_of(layers: Iterable[Any]) -> list[Any]:
    """What preprocessing layers compute with and is in no variable; equal to what another call gives, if it is the
    same. A table of words is made anew for others, and nothing changes it."""
    found: list[Any] = []
    for layer in layers:
        kind = kind_of(layer)
        if kind is Kind.LOOKUP:
            found.append(layer.lookup_table)
        elif kind is Kind.DISCRETIZATION:
            found.append(_bytes_of(layer.bin_boundaries))
        elif is_normalization(layer):
            found += [_bytes_of(getattr(layer, name, None)) for name in ("mean", "variance")]
        elif is_feature_space(layer):
            found.append({name: encoder.num_tokens for name, encoder in layer.one_hot_encoders.items()})
    return found


def trace_anew(models: Iterable[Any]) -> None:
    """Has Keras trace again what it has traced of these models. A fit that is under way calls the new function next."""
    for model in models:
        for name, make in _MADE_BY.items():
            if getattr(model, name, None) is not None:
                setattr(model, name, None)
                getattr(model, make)()


def _bytes_of(value: Any) -> bytes | int | None:
    if tf.is_symbolic_tensor(value):  # of a layer that was built while its model was traced
        return id(value)
    return None if value is None else np.asarray(value).tobytes()
