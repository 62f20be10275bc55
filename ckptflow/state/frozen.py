"""Which tensors training leaves alone, by what the models say: a frozen backbone, what a LoRA layer adapts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ckptflow.state.kinds import raw_variable, tf_keras
from ckptflow.state.weights import trainable_of, weights_of


def frozen_names(variables: Mapping[str, Any], models: Iterable[Any]) -> frozenset[str]:
    """The variables, by name, that were made to be trained and are not now.

    What was never made for it, as optimizers' slots and moving averages, is none of them: most of that changes. Keras 3
    says it of each variable, tf_keras of layers.
    """
    of_layers = {id(raw_variable(weight)) for model in models if _is_tf_keras(model) for weight in _untrained(model)}
    return frozenset(
        name
        for name, variable in variables.items()
        if getattr(raw := raw_variable(variable), "trainable", False)
        and (id(raw) in of_layers or not getattr(variable, "trainable", True))
    )


def _is_tf_keras(model: Any) -> bool:
    keras = tf_keras()
    return keras is not None and isinstance(model, keras.layers.Layer)


def _untrained(model: Any) -> list[Any]:
    trained = {id(weight) for weight in trainable_of(model)}
    return [weight for weight in weights_of(model) if id(weight) not in trained]
