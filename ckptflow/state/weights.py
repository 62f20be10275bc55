"""The weights that a model has by now, and its optimizer.

A model of tf_keras that is, or holds, a Sequential without a shape raises where it is asked for its weights, and so may
a property of the user's own. What is asked here has an answer at any time.
"""

from __future__ import annotations

import contextlib
from typing import Any

from ckptflow.state.private.kerases import layers_in, own_variables


def weights_of(model: Any) -> list[Any]:
    """Those that the model counts, trainable or not."""
    return _asked(
        model, "weights", lambda layer: [*own_variables(layer, "trainable"), *own_variables(layer, "non_trainable")]
    )


def trainable_of(model: Any) -> list[Any]:
    """Those that an optimizer of the model is built for; nothing for an object that knows of none."""
    return _asked(
        model, "trainable_variables", lambda layer: own_variables(layer, "trainable") if layer.trainable else []
    )


def optimizer_of(model: Any) -> Any:
    """The model's own optimizer; None where it has none, or where a property of the user's own raises."""
    with contextlib.suppress(Exception):
        return getattr(model, "optimizer", None)
    return None


def _asked(model: Any, name: str, own: Any) -> list[Any]:
    try:
        return list(getattr(model, name, ()))
    except Exception:  # not built, or whatever a user's property raises
        return list({id(weight): weight for layer in layers_in(model) for weight in own(layer)}.values())
