"""A user's own classes, registered as serializable: a subclassed model and a layer, for Keras 3 and for tf_keras.

Nothing here imports ckptflow: a stock process imports this module before it loads an export.
"""

from __future__ import annotations

from typing import Any

import keras
import tf_keras


def _define(framework: Any) -> tuple[Any, Any]:
    """The same two classes for either Keras."""
    layers, register = framework.layers, framework.saving.register_keras_serializable(package="interop")

    class Scale(layers.Layer):  # type: ignore[misc,name-defined]
        """Multiplies by a learned vector; what it holds is a weight of its own making."""

        def __init__(self, start: float = 1.0, **settings: Any) -> None:
            super().__init__(**settings)
            self.start = start

        def build(self, shape: Any) -> None:
            start = framework.initializers.Constant(self.start)
            self.factor = self.add_weight(name="factor", shape=(int(shape[-1]),), initializer=start)
            super().build(shape)

        def call(self, inputs: Any) -> Any:
            return inputs * self.factor

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "start": self.start}

    class Mixer(framework.Model):  # type: ignore[misc]
        """Blocks in a list, a layer of the user's own, a Dropout with a seed; made again from `get_config`."""

        def __init__(self, width: int = 16, depth: int = 2, classes: int = 5, **settings: Any) -> None:
            super().__init__(**settings)
            self.width, self.depth, self.classes = width, depth, classes
            self.stem = layers.Dense(width, activation="relu")
            self.blocks = [layers.Dense(width, activation="tanh") for _ in range(depth)]
            self.norm = layers.BatchNormalization()
            self.scale = Scale(0.5)
            self.dropout = layers.Dropout(0.2, seed=11)
            self.head = layers.Dense(classes)

        def build(self, shape: Any) -> None:
            hidden = (shape[0], self.width)
            self.stem.build(shape)
            for layer in (*self.blocks, self.norm, self.scale, self.head):
                layer.build(hidden)
            self.built = True

        def call(self, inputs: Any, training: bool = False) -> Any:
            hidden = self.stem(inputs)
            for block in self.blocks:
                hidden = hidden + block(hidden)
            hidden = self.scale(self.norm(hidden, training=training))
            return self.head(self.dropout(hidden, training=training))

        def get_config(self) -> dict[str, Any]:
            sizes = {"width": self.width, "depth": self.depth, "classes": self.classes}
            return {**super().get_config(), **sizes}

    for made in (Scale, Mixer):
        made.__module__ = __name__
        register(made)
    return Scale, Mixer


Scale, Mixer = _define(keras)
TfKerasScale, TfKerasMixer = _define(tf_keras)
