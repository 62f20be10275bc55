"""Keras models of a given size of which training changes only a part, with a batch for their training steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

MIB = 2**20
_BATCH = 8
_TOKENS = 8  # in an example, where the model takes a sequence
_ADAM = 3  # a trained variable and Adam's two slots of it
_LORA_RANK = 4


@dataclass(frozen=True)
class Tuned:
    """A compiled model whose state has about the size that was asked for, and a batch for it."""

    model: Any
    inputs: Any
    targets: Any

    def step(self) -> None:
        self.model.train_on_batch(self.inputs, self.targets)

    @property
    def variables(self) -> list[Any]:
        """All that a checkpoint of the model holds, without metrics."""
        return [*self.model.variables, *self.model.optimizer.variables]


def build(work: str, size_bytes: int) -> Tuned:
    """The model of one of `experiments.WORKS`. The optimizer is Adam."""
    import keras

    model = _MODELS[work](keras, size_bytes)
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    generator = np.random.default_rng(0)
    if work == "embedding":
        inputs: Any = generator.integers(0, model.layers[0].input_dim, (_BATCH, _TOKENS))
    else:
        inputs = generator.standard_normal((_BATCH, *model.input_shape[1:]), np.float32)
    return Tuned(model, inputs, generator.standard_normal((_BATCH, *model.output_shape[1:]), np.float32))


def _frozen(keras: Any, size_bytes: int) -> Any:
    """A backbone that is frozen, of 95 % of the state; the head and its slots are the other 5 %."""
    width = _width(size_bytes)
    model = _stack(keras, round(0.95 * size_bytes / 4 / width**2), width)
    model.trainable = False
    return keras.Sequential([keras.Input((width,)), *model.layers, _head(keras, 0.05 * size_bytes, width)])


def _embedding(keras: Any, size_bytes: int) -> Any:
    """A table that is not trained, of 80 % of the state, below a layer that is."""
    width = _width(size_bytes) // 4
    return keras.Sequential(
        [
            keras.Input((_TOKENS,), dtype="int32"),
            keras.layers.Embedding(round(0.8 * size_bytes / 4 / width), width, trainable=False),
            keras.layers.Flatten(),
            _head(keras, 0.2 * size_bytes, _TOKENS * width),
        ]
    )


def _all(keras: Any, size_bytes: int) -> Any:
    """Every layer is trained."""
    width = _width(size_bytes)
    return _stack(keras, max(1, round(size_bytes / _ADAM / 4 / width**2)), width)


def _lora(keras: Any, size_bytes: int) -> Any:
    """Transformer blocks as in KerasHub: adapters beside the queries and values are trained, all else is frozen."""
    layers, ops = keras.layers, keras.ops
    width = _width(size_bytes) // 2
    heads = width // 64
    block_bytes = 4 * 12 * width**2  # four projections, and two layers of four times the width
    x = inputs = keras.Input((_TOKENS, width))
    adapted = []
    for _ in range(max(1, round(size_bytes / block_bytes))):
        normal = layers.LayerNormalization()(x)
        query, key, value = (layers.EinsumDense("btd,dnh->btnh", (None, heads, width // heads)) for _ in range(3))
        scores = ops.einsum("btnh,bsnh->bnts", query(normal), key(normal)) / (width // heads) ** 0.5
        mixed = ops.einsum("bnts,bsnh->btnh", ops.softmax(scores), value(normal))
        x = x + layers.EinsumDense("btnh,nhd->btd", (None, width))(mixed)
        x = x + layers.Dense(width)(layers.Dense(4 * width, "gelu")(layers.LayerNormalization()(x)))
        adapted += [query, value]
    model = keras.Model(inputs, x)
    for layer in model.layers:
        layer.trainable = layer in adapted
    for layer in adapted:
        layer.enable_lora(_LORA_RANK)  # which freezes its kernel
    return model


def _stack(keras: Any, count: int, width: int) -> Any:
    dense = (keras.layers.Dense(width, "relu", use_bias=False, kernel_initializer="he_normal") for _ in range(count))
    return keras.Sequential([keras.Input((width,)), *dense])


def _head(keras: Any, size_bytes: float, width: int) -> Any:
    """A layer that has, with its slots, so many bytes."""
    return keras.layers.Dense(max(1, round(size_bytes / _ADAM / 4 / width)), use_bias=False)


def _width(size_bytes: int) -> int:
    return 1024 if size_bytes >= 64 * MIB else 128


_MODELS: dict[str, Callable[[Any, int], Any]] = {
    "frozen": _frozen,
    "lora": _lora,
    "embedding": _embedding,
    "all": _all,
}
