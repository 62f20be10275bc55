"""Keras 3 state of every kind that must come back bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.state.roundtrip import Case

_random = np.random.default_rng(7)
X = _random.normal(size=(8, 4)).astype(np.float32)
Y = _random.normal(size=(8, 1)).astype(np.float32)
SEQUENCES = _random.normal(size=(8, 3, 4)).astype(np.float32)


def step(model: Any, optimizer: Any, inputs: Any, targets: Any = Y) -> None:
    """One eager training step."""
    with tf.GradientTape() as tape:
        outputs = tf.cast(model(inputs, training=True), tf.float32)
        loss = tf.reduce_mean(tf.square(outputs - targets)) + sum(model.losses)
        scaled = optimizer.scale_loss(loss)
    variables = model.trainable_variables
    gradients = tape.gradient(scaled, variables)
    optimizer.apply_gradients(zip(gradients, variables, strict=True))


def _train(inputs: Any, targets: Any = Y) -> Callable[[dict[str, Any]], None]:
    return lambda state: step(state["model"], state["model"].optimizer, inputs, targets)


def _compiled(model: Any, optimizer: Any = "adam") -> dict[str, Any]:
    model.compile(optimizer, "mse", metrics=["mae"])
    return {"model": model}


def sequential() -> dict[str, Any]:
    return _compiled(
        keras.Sequential(
            [keras.layers.Dense(16, activation="relu"), keras.layers.BatchNormalization(), keras.layers.Dense(1)]
        )
    )


def functional() -> dict[str, Any]:
    shared = keras.layers.Dense(4, activation="tanh")
    inner_inputs = keras.Input((4,))
    inner = keras.Model(inner_inputs, keras.layers.Dense(4)(shared(inner_inputs)))
    inputs = keras.Input((4,))
    x = keras.layers.concatenate([shared(inputs), inner(inputs), inner(shared(inputs))])
    return _compiled(keras.Model(inputs, keras.layers.Dense(1, name="head")(keras.layers.BatchNormalization()(x))))


@keras.saving.register_keras_serializable("ckptflow_tests")
class Blocks(keras.Model):  # type: ignore[misc]
    """Layers in lists and dicts, in one another and shared, and weights in a list."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.blocks = [keras.layers.Dense(4), keras.layers.BatchNormalization()]
        self.named = {"a/b": keras.layers.Dense(4), "größe 大": [keras.layers.Dropout(0.3)], 7: keras.layers.Dense(4)}
        self.again = (self.blocks[0], [self.blocks])
        self.scales: list[Any] = []
        self._private = keras.layers.Dense(4)
        self.private = keras.layers.Dense(1)

    def build(self, shape: Any) -> None:
        self.scales.append(self.add_weight(shape=(4,), initializer="ones", name="scale"))
        self.scales.append(self.add_weight(shape=(4,), initializer="zeros", trainable=False, name="scale"))
        super().build(shape)

    def call(self, x: Any, training: bool = False) -> Any:
        for layer in [*self.blocks, self.named["a/b"], *self.named["größe 大"], self.named[7]]:
            x = layer(x, training=training) if "normalization" in layer.name or "dropout" in layer.name else layer(x)
        return self.private(self._private(x * self.scales[0] + self.scales[1]))


@keras.saving.register_keras_serializable("ckptflow_tests")
class NotYetBuilt(keras.Model):  # type: ignore[misc]
    """A subclassed model whose layers have no variables before its first call."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.first = keras.layers.Dense(8, activation="relu")
        self.normalize = keras.layers.LayerNormalization()
        self.last = keras.layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.last(self.normalize(self.first(x)))


def recurrent() -> dict[str, Any]:
    cells = [keras.layers.LSTMCell(3), keras.layers.GRUCell(3)]
    return _compiled(
        keras.Sequential(
            [
                keras.Input(batch_shape=(8, 3, 4)),
                keras.layers.GRU(4, stateful=True, return_sequences=True, recurrent_dropout=0.2),
                keras.layers.Bidirectional(keras.layers.LSTM(4, stateful=True, return_sequences=True)),
                keras.layers.RNN(cells, stateful=True),
                keras.layers.Dense(1),
            ]
        )
    )


def noise() -> dict[str, Any]:
    inputs = keras.Input((3, 4))
    x = keras.layers.GaussianNoise(0.1)(keras.layers.Dropout(0.4)(inputs))
    x = keras.layers.MultiHeadAttention(2, 2, dropout=0.3)(x, x)
    x = keras.layers.SpatialDropout1D(0.2)(keras.layers.AlphaDropout(0.1)(x))
    return _compiled(keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(x))))


WORDS = tf.constant(["a b c", "b c d", "größe 大 a", "x"])


def adapted(values: bool) -> dict[str, Any]:
    normalize = keras.layers.Normalization()
    layers: dict[str, Any] = {
        "words": keras.layers.StringLookup(),
        "back": keras.layers.StringLookup(invert=True, mask_token=""),
        "numbers": keras.layers.IntegerLookup(num_oov_indices=2),
        "text": keras.layers.TextVectorization(),
        "multi": keras.layers.TextVectorization(output_mode="multi_hot", max_tokens=20, pad_to_max_tokens=True),
        "tf_idf": keras.layers.TextVectorization(output_mode="tf_idf"),
        "bins": keras.layers.Discretization(num_bins=4),
        "fixed": keras.layers.StringLookup(vocabulary=["p", "q"]),
        "normalize": normalize,
    }
    normalize.build((None, 4))
    if values:
        layers["words"].adapt(["a", "b", "a"])
        layers["back"].set_vocabulary(["u", "v"])
        layers["numbers"].adapt([5, 5, -7])
        for name in ("text", "multi", "tf_idf"):
            layers[name].adapt(WORDS)
        layers["bins"].adapt(X)
        normalize.adapt(X)
    return layers


def answer_adapted(layers: dict[str, Any]) -> list[Any]:
    texts = [np.asarray(layers[name](WORDS)) for name in ("text", "multi", "tf_idf")]
    words = [np.asarray(layers[name](["a", "b", "q", "zz"])) for name in ("words", "fixed")]
    numbers = [np.asarray(layers["numbers"]([5, -7, 1])), np.asarray(layers["bins"](X))]
    back = np.asarray(layers["back"]([1, 2, 3])).astype("S")
    return [*texts, *words, *numbers, back, np.asarray(layers["normalize"](X))]


def _with(optimizer: Callable[[], Any], layers: Callable[[], Any] | None = None) -> Case:
    def make() -> dict[str, Any]:
        body = [keras.layers.Dense(6, activation="tanh"), keras.layers.Dense(5, use_bias=False), keras.layers.Dense(1)]
        return _compiled(layers() if layers else keras.Sequential(body), optimizer())

    return Case(make, _train(X))


def _mixed() -> Any:
    policy = keras.mixed_precision.DTypePolicy("mixed_float16")
    return keras.Sequential([keras.layers.Dense(6, dtype=policy), keras.layers.Dense(1, dtype=policy)])


def _separate() -> dict[str, Any]:
    model = keras.Sequential([keras.layers.Dense(5), keras.layers.Dense(1)])
    return {"net": model, "optimizer": keras.optimizers.SGD(0.1, momentum=0.9)}


def _multi() -> Any:
    choice = keras.optimizers.OptimizerMap(keras.optimizers.Adam(0.1))
    choice[".*bias"] = keras.optimizers.SGD(0.1, momentum=0.9)
    return keras.optimizers.MultiOptimizer(choice)


o = keras.optimizers
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "Adadelta": lambda: o.Adadelta(0.1),
    "Adafactor": lambda: o.Adafactor(0.1),
    "Adagrad": lambda: o.Adagrad(0.1),
    "Adam": lambda: o.Adam(0.1, amsgrad=True),
    "AdamW": lambda: o.AdamW(o.schedules.CosineDecay(0.1, 10)),
    "Adamax": lambda: o.Adamax(0.1),
    "Ftrl": lambda: o.Ftrl(0.1),
    "Lamb": lambda: o.Lamb(0.1),
    "Lion": lambda: o.Lion(0.1),
    "LossScaleOptimizer": lambda: o.LossScaleOptimizer(o.Adam(0.1), initial_scale=4.0, dynamic_growth_steps=2),
    "MultiOptimizer": _multi,
    "Muon": lambda: o.Muon(0.1),
    "Nadam": lambda: o.Nadam(0.1),
    "RMSprop": lambda: o.RMSprop(0.1, momentum=0.9, centered=True),
    "SGD": lambda: o.SGD(0.1, momentum=0.9, nesterov=True),
    "ScheduleFreeAdamW": lambda: o.ScheduleFreeAdamW(0.1),
    "Adam EMA": lambda: o.Adam(0.1, use_ema=True, ema_overwrite_frequency=3),
    "SGD accumulation": lambda: o.SGD(0.1, momentum=0.9, gradient_accumulation_steps=3),
}

CASES: dict[str, Case] = {
    "keras sequential": Case(sequential, _train(X)),
    "keras functional, shared and nested": Case(functional, _train(X)),
    "keras layers in lists and dicts": Case(lambda: _compiled(Blocks()), _train(X)),
    "keras subclassed, not yet built": Case(lambda: _compiled(NotYetBuilt()), _train(X)),
    "keras stateful RNNs": Case(recurrent, _train(SEQUENCES)),
    "keras seeds": Case(noise, _train(SEQUENCES)),
    "keras mixed_float16": _with(lambda: o.Adam(0.01), _mixed),
    "keras optimizer as its own entry": Case(_separate, lambda state: step(state["net"], state["optimizer"], X)),
    **{f"keras optimizer {name}": _with(make) for name, make in OPTIMIZERS.items()},
}
