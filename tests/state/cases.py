"""State of every other kind, and all cases together."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow as tf
import tf_keras

from tests.state import cases_held, cases_keras3
from tests.state.cases_keras3 import SEQUENCES, X, Y
from tests.state.roundtrip import Case


def _compiled(model: Any, optimizer: Any) -> dict[str, Any]:
    model.compile(optimizer, "mse", metrics=["mae"])
    return {"model": model}


def _train(inputs: Any) -> Any:
    def train(state: dict[str, Any]) -> None:
        model = state["model"]
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(inputs, training=True) - Y))
            scaled = model.optimizer.get_scaled_loss(loss) if hasattr(model.optimizer, "get_scaled_loss") else loss
        gradients = tape.gradient(scaled, model.trainable_variables)
        if hasattr(model.optimizer, "get_scaled_loss"):
            gradients = model.optimizer.get_unscaled_gradients(gradients)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    return train


def _dense(policy: str = "float32") -> Any:
    layers = tf_keras.layers
    body = [layers.Dense(5, input_shape=(4,), dtype=policy), layers.BatchNormalization(dtype=policy)]
    return tf_keras.Sequential([*body, layers.Dense(1)])


def _rnn() -> Any:
    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            layers.Input(batch_shape=(8, 3, 4)),
            layers.GRU(3, stateful=True, return_sequences=True),
            layers.Bidirectional(layers.LSTM(3, stateful=True)),
            layers.Dense(1),
        ]
    )


class _OldBlocks(tf_keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.blocks = [tf_keras.layers.Dense(4), tf_keras.layers.BatchNormalization()]
        self.named = {"a": tf_keras.layers.Dense(1)}

    def call(self, x: Any, training: bool = False) -> Any:
        return self.named["a"](self.blocks[1](self.blocks[0](x), training=training))


def _old_adapted(values: bool) -> dict[str, Any]:
    layers = {
        "words": tf_keras.layers.StringLookup(),
        "tf_idf": tf_keras.layers.TextVectorization(output_mode="tf_idf"),
        "normalize": tf_keras.layers.Normalization(),
    }
    layers["normalize"].build((None, 4))
    if values:
        layers["words"].adapt(["a", "b", "a"])
        layers["tf_idf"].adapt(cases_keras3.WORDS)
        layers["normalize"].adapt(X)
    return layers


def _answer_old_adapted(layers: dict[str, Any]) -> list[Any]:
    outputs = (layers["words"](["a", "q"]), layers["tf_idf"](cases_keras3.WORDS), layers["normalize"](X))
    return [np.asarray(output) for output in outputs]


old = tf_keras.optimizers
_OLD_OPTIMIZERS: dict[str, Any] = {
    "Adam": lambda: old.Adam(0.1, amsgrad=True),
    "SGD EMA": lambda: old.SGD(0.1, momentum=0.9, use_ema=True),
    "RMSprop": lambda: old.RMSprop(0.1, momentum=0.9, centered=True),
    "legacy Adam": lambda: old.legacy.Adam(0.1, amsgrad=True),
    "legacy SGD": lambda: old.legacy.SGD(old.schedules.ExponentialDecay(0.1, 2, 0.5), momentum=0.9),
    "legacy RMSprop": lambda: old.legacy.RMSprop(0.1, momentum=0.9, centered=True),
    "loss scale": lambda: tf_keras.mixed_precision.LossScaleOptimizer(old.Adam(0.1), initial_scale=4.0),
    "legacy loss scale": lambda: tf_keras.mixed_precision.LossScaleOptimizer(old.legacy.Adam(0.1), initial_scale=4.0),
}


class _Nested(tf.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.weights = [tf.Variable(tf.random.normal([3])), {"deep": (tf.Variable(1.0), [tf.Variable([2, 3])])}]
        self.named = {"a/b": tf.Variable("text"), "größe": tf.Variable([True, False])}
        self._hidden = tf.Variable(1.0)
        self.hidden = tf.Variable(2.0)
        self.alias = self.hidden
        self.open_shape = tf.Variable([1.0], shape=[None])


def _train_nested(state: dict[str, Any]) -> None:
    module = state["module"]
    for position, variable in enumerate(module.trainable_variables):
        if variable.dtype.is_floating:
            variable.assign(variable + tf.cast(position + 1, variable.dtype))
    module.open_shape.assign(tf.concat([module.open_shape, [5.0]], 0))
    module.named["a/b"].assign("größe \0 大")


_NUMPY_DTYPES = (
    *(
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "float32",
        "float64",
    ),
    *("complex64", "complex128", "bfloat16", "float8_e5m2", "float8_e4m3fn", "int4", "uint4"),
)
SHAPES: dict[str, tuple[int, ...]] = {"scalar": (), "empty": (0, 3), "odd": (3, 5), "large": (300, 120)}


def _dtype_values(name: str, shape: tuple[int, ...], seed: int) -> Any:
    """Every bit pattern where that is possible, NaN payloads, infinities and negative zeros included."""
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    random = np.random.default_rng(seed)
    if name == "bool":
        return random.integers(0, 2, shape).astype(bool)
    if name in ("int4", "uint4"):
        return random.integers(0, 8, shape).astype(np.int8).astype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(random.bytes(size), dtype).reshape(shape)


def _dtypes(seed: int) -> dict[str, Any]:
    module = tf.Module()
    module.held = {
        f"{name} {kind}": tf.Variable(tf.convert_to_tensor(_dtype_values(name, shape, seed)))
        for name in _NUMPY_DTYPES
        for kind, shape in SHAPES.items()
    }
    strings = {
        "scalar": b"\xff\0",
        "empty": np.zeros([0, 2], object),
        "many": [[b"a" * seed, b""], ["大".encode(), b"x"]],
    }
    for kind, value in strings.items():
        module.held[f"string {kind}"] = tf.Variable(tf.constant(value, tf.string))
    return {"module": module}


def _train_dtypes(state: dict[str, Any]) -> None:
    other = _dtypes(3)["module"]
    for name, variable in state["module"].held.items():
        variable.assign(other.held[name])


def _tables() -> dict[str, Any]:
    experimental = tf.lookup.experimental
    return {
        "mutable": experimental.MutableHashTable(tf.string, tf.float32, [0.0, 0.0]),
        "dense": experimental.DenseHashTable(tf.int64, tf.int64, -1, empty_key=-1, deleted_key=-2),
        "dense vectors": experimental.DenseHashTable(
            tf.int64, tf.float64, [0.0, 0.0], empty_key=[-1, -1], deleted_key=[-2, -1]
        ),
        "dense strings": experimental.DenseHashTable(tf.string, tf.int32, 0, empty_key="", deleted_key="$"),
    }


def _train_tables(state: dict[str, Any]) -> None:
    size = int(state["dense"].size())
    state["mutable"].insert([f"key {size}", "b"], [[float(size), float("nan")], [3.0, 4.0]])
    state["dense"].insert([size + 1, size + 2, 1000 - size], [size * 10, 20, 30])
    state["dense"].remove(tf.constant([size + 1], tf.int64))
    state["dense vectors"].insert([[size, -1], [-1, 5]], [[1.0, size], [float("inf"), 2.0]])
    state["dense strings"].insert([f"大{size}"], [size])


def _iterator() -> dict[str, Any]:
    dataset = tf.data.Dataset.range(100).shuffle(17, seed=5).map(lambda x: x * 2).repeat().batch(3).prefetch(2)
    return {"data": iter(dataset)}


def _generator() -> dict[str, Any]:
    return {"generator": tf.random.Generator.from_non_deterministic_state()}


class Position:
    """Plain Python state."""

    def __init__(self) -> None:
        self.value: dict[str, Any] = {"step": 0}

    def get_state(self) -> dict[str, Any]:
        return dict(self.value)

    def set_state(self, value: dict[str, Any]) -> None:
        self.value = value

    def train(self) -> None:
        step = self.value["step"] + 1
        self.value = {"step": step, "best": float("-inf"), "big": 2**200 + step, "raw": b"\xff", "nested": [(1, None)]}


def _next(state: dict[str, Any]) -> None:
    next(state["data"])


def _upcoming(state: dict[str, Any]) -> Any:
    return np.concatenate([next(state["data"]).numpy() for _ in range(40)])


def _with_old(make: Callable[[], Any]) -> dict[str, Any]:
    return _compiled(_dense(), make())


CASES: dict[str, Case] = {
    **cases_keras3.CASES,
    **cases_held.CASES,
    "keras adapted layers": Case(
        lambda: cases_keras3.adapted("--fresh" not in sys.argv), lambda state: None, cases_keras3.answer_adapted
    ),
    **{
        f"tf_keras optimizer {name}": Case(functools.partial(_with_old, make), _train(X))
        for name, make in _OLD_OPTIMIZERS.items()
    },
    "tf_keras mixed_float16": Case(lambda: _compiled(_dense("mixed_float16"), "adam"), _train(X)),
    "tf_keras stateful RNNs": Case(lambda: _compiled(_rnn(), "adam"), _train(SEQUENCES)),
    "tf_keras layers in lists and dicts": Case(lambda: _compiled(_OldBlocks(), "adam"), _train(X)),
    "tf.Module, nested": Case(lambda: {"module": _Nested(), "größe/大": tf.Variable(1.0)}, _train_nested),
    "every dtype": Case(lambda: _dtypes(1), _train_dtypes),
    "tables": Case(_tables, _train_tables),
    # What a pipeline has prefetched when it is saved is a matter of time; what comes next is not.
    "tf.data iterator with shuffle": Case(_iterator, _next, _upcoming, exact_bytes=False),
    "tf.random.Generator": Case(
        _generator, lambda state: state["generator"].normal([3]), lambda state: state["generator"].normal([3]).numpy()
    ),
    "plain Python state": Case(
        lambda: {"position": Position(), "v": tf.Variable(1.0)}, lambda state: state["position"].train()
    ),
}
