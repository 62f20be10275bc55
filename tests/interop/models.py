"""Real architectures with random weights, compiled and trained for a few steps, for whoever exports or imports them.

Nothing here imports ckptflow: stock processes use this module too. `Case.make(framework)` gives a model whose slots,
step, moving statistics and seeds are not at their start any more; the same call in another process gives the same
structure with other values.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

KERASES = ("keras", "tf_keras")
CLASSES, BATCH = 5, 4
WORDS = ("a", "checkpoint", "is", "what", "the", "manifest", "commits", "and", "nothing", "else", "counts")
AUTHORS = ("ada", "grace", "barbara", "edsger")


@dataclass(frozen=True)
class Case:
    """One architecture. `modules` are to be imported before a stock reader can make it from its config."""

    name: str
    build: Callable[[str], Any]
    sample_inputs: Callable[[], Any]
    frameworks: tuple[str, ...] = KERASES
    steps: int = 2
    modules: tuple[str, ...] = ()

    def train(self, model: Any) -> None:
        """A few real steps of its optimizer on fixed data."""
        if "tensorflow" in self.frameworks:
            model.train(self.steps)
        else:
            _train(model, self.sample_inputs(), self.steps)

    def make(self, framework: str) -> Any:
        """A model of this architecture that has been trained."""
        model = self.build(framework)
        self.train(model)
        return model

    def predict(self, model: Any) -> Array:
        """What a model says to the sample inputs, in inference mode."""
        inputs = tensors(self.sample_inputs())
        return np.asarray(model(inputs) if "tensorflow" in self.frameworks else model(inputs, training=False))


def without_graph(model: Any) -> Any:
    """The compiled model, whose steps are run as they are written: for one or two of them a graph takes longer to make.

    What it saves is the same: it is not compiled in another way.
    """
    model.run_eagerly = True
    return model


def tensors(inputs: Any) -> Any:
    """The structure with TensorFlow's tensors in place of arrays."""
    import tensorflow as tf

    return tf.nest.map_structure(tf.constant, inputs)


def _train(model: Any, inputs: Any, steps: int) -> None:
    import tensorflow as tf

    x = tensors(inputs)
    labels = tf.constant(np.random.default_rng(1).integers(0, CLASSES, BATCH))
    for _ in range(steps):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, labels, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))


def _compile(framework: Any, model: Any, optimizer: Any) -> Any:
    loss = framework.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"], jit_compile=False)
    return model


def _random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def _dense(name: str) -> Any:
    keras = importlib.import_module(name)
    layers = [
        keras.layers.Input((8,)),
        keras.layers.Dense(16, activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.3, seed=7),
        keras.layers.Dense(CLASSES),
    ]
    return _compile(keras, keras.Sequential(layers), keras.optimizers.Adam(1e-2))


def _mobilenet_v2(name: str) -> Any:
    keras = importlib.import_module(name)
    model = keras.applications.MobileNetV2(
        (64, 64, 3), alpha=0.35, weights=None, classes=CLASSES, classifier_activation=None
    )
    rate = keras.optimizers.schedules.ExponentialDecay(1e-3, decay_steps=2, decay_rate=0.9)
    return _compile(keras, _quick_statistics(keras, model), keras.optimizers.RMSprop(rate, momentum=0.9))


def _efficientnet_b0(name: str) -> Any:
    keras = importlib.import_module(name)
    model = keras.applications.EfficientNetB0(
        weights=None, input_shape=(64, 64, 3), classes=CLASSES, classifier_activation=None
    )
    return _compile(keras, _quick_statistics(keras, model), keras.optimizers.SGD(1e-3, momentum=0.9, nesterov=True))


def _convolutional(name: str) -> Any:
    """The kinds of layers that EfficientNet is made of, in a tenth of their number."""
    keras = importlib.import_module(name)
    layers = keras.layers
    image = keras.Input((64, 64, 3))
    hidden = layers.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.1, 0.2, 0.3])(layers.Rescaling(1 / 255)(image))
    hidden = layers.Conv2D(8, 3, strides=2, use_bias=False)(layers.ZeroPadding2D(((0, 1), (0, 1)))(hidden))
    for block in range(2):
        wide = layers.Activation("swish")(layers.BatchNormalization()(layers.Conv2D(16, 1, use_bias=False)(hidden)))
        wide = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"block{block}_depthwise")(wide)
        wide = layers.Activation("swish")(layers.BatchNormalization()(wide))
        squeezed = layers.Reshape((1, 1, 16))(layers.GlobalAveragePooling2D()(wide))
        excited = layers.Conv2D(16, 1, activation="sigmoid")(layers.Conv2D(4, 1, activation="swish")(squeezed))
        narrow = layers.Conv2D(8, 1, use_bias=False)(layers.Multiply()([wide, excited]))
        hidden = layers.Add()([hidden, layers.Dropout(0.2)(layers.BatchNormalization()(narrow))])
    outputs = layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(hidden))
    model = keras.Model(image, outputs)
    return _compile(keras, _quick_statistics(keras, model), keras.optimizers.SGD(1e-3, momentum=0.9, nesterov=True))


def _quick_statistics(keras: Any, model: Any) -> Any:
    """Moving statistics that come near the batch's in a step or two: otherwise what it predicts has no bounds."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.5
    return model


def _images() -> Array:
    return np.random.default_rng(0).integers(0, 256, (BATCH, 64, 64, 3)).astype(np.float32)


def _text(name: str) -> Any:
    keras = importlib.import_module(name)
    layers = keras.layers
    vectorize = layers.TextVectorization(max_tokens=40, output_sequence_length=6, name="words")
    vectorize.adapt(np.asarray([" ".join(WORDS), "the manifest is the checkpoint"]))
    lookup = layers.StringLookup(num_oov_indices=1, name="authors")
    lookup.adapt(np.asarray(AUTHORS))
    text, author = (keras.Input((1,), dtype="string", name=each) for each in ("text", "author"))
    recurrent = layers.LSTM if name == "keras" else layers.SimpleRNN  # tf_keras takes long to save the graph of an LSTM
    sentence = recurrent(12, name="recurrent")(layers.Embedding(40, 8)(vectorize(text)))
    who = layers.Flatten()(layers.Embedding(len(AUTHORS) + 1, 4)(lookup(author)))
    outputs = layers.Dense(CLASSES)(layers.Concatenate()([sentence, who]))
    return _compile(keras, keras.Model({"text": text, "author": author}, outputs), keras.optimizers.Adam(1e-2))


def _sentences() -> dict[str, Array]:
    text = [["the checkpoint counts"], ["nothing else is committed"], ["what is a manifest"], [""]]
    return {
        "text": np.asarray(text, object),
        "author": np.asarray([["ada"], ["edsger"], ["nobody"], ["grace"]], object),
    }


def _recurrent(name: str) -> Any:
    keras = importlib.import_module(name)
    layers = keras.layers
    tokens = keras.Input((10,), dtype="int32", name="tokens")
    hidden = layers.Bidirectional(layers.LSTM(6, name="lstm"))(layers.Embedding(50, 8)(tokens))
    return _compile(keras, keras.Model(tokens, layers.Dense(CLASSES)(hidden)), keras.optimizers.Adam(1e-2))


def _transformer(name: str) -> Any:
    keras = importlib.import_module(name)
    layers = keras.layers
    tokens = keras.Input((10,), dtype="int32", name="tokens")
    hidden = layers.Embedding(50, 16)(tokens)
    attended = layers.MultiHeadAttention(num_heads=2, key_dim=8, dropout=0.1)(hidden, hidden)
    hidden = layers.LayerNormalization()(layers.Add()([hidden, layers.Dropout(0.1)(attended)]))
    wide = layers.Dense(16)(layers.Dense(32, activation="gelu")(hidden))
    hidden = layers.LayerNormalization()(layers.Add()([hidden, layers.Dropout(0.1)(wide)]))
    outputs = layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(hidden))
    optimizer = keras.optimizers.AdamW(1e-3, weight_decay=1e-2, global_clipnorm=1.0)
    return _compile(keras, keras.Model(tokens, outputs), optimizer)


def _tokens() -> Array:
    return np.random.default_rng(0).integers(0, 50, (BATCH, 10)).astype(np.int32)


def _many_inputs(name: str) -> Any:
    keras = importlib.import_module(name)
    layers = keras.layers
    picture, numbers = keras.Input((8, 8, 3), name="picture"), keras.Input((6,), name="numbers")
    seen = layers.GlobalMaxPooling2D()(layers.Conv2D(6, 3, activation="relu")(picture))
    counted = layers.GaussianNoise(0.1, seed=3)(layers.Dense(6, activation="relu")(numbers))
    outputs = layers.Dense(CLASSES)(layers.Concatenate()([seen, counted]))
    model = keras.Model([picture, numbers], outputs)
    return _compile(keras, model, keras.optimizers.RMSprop(1e-3, centered=True))


def _mixer(name: str) -> Any:
    keras, custom = importlib.import_module(name), importlib.import_module("tests.interop.custom")
    model = (custom.Mixer if name == "keras" else custom.TfKerasMixer)(width=16, depth=3, classes=CLASSES)
    model(tensors(_random(1, 8)))  # tf_keras keeps the shape that it was built for only where it builds by itself
    return _compile(keras, model, keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.9))


def _module(_: str) -> Any:
    """A tf.Module with layers of its own in a list and a dict, and a lookup table."""
    import tensorflow as tf

    class Module(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            initial = tf.random.Generator.from_seed(5)
            self.kernels = [tf.Variable(initial.normal((8, 8)), name=f"kernel{each}") for each in range(2)]
            self.heads = {each: tf.Variable(initial.normal((8, CLASSES))) for each in ("first", "second")}
            self.table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
            self.steps = tf.Variable(0, dtype=tf.int64, trainable=False)

        @tf.function(input_signature=[tf.TensorSpec((None, 8), tf.float32)])
        def __call__(self, inputs: Any) -> Any:
            for kernel in self.kernels:
                inputs = tf.tanh(inputs @ kernel)
            return inputs @ self.heads["first"] + inputs @ self.heads["second"]

        def train(self, steps: int) -> None:
            for step in range(steps):
                for variable in (*self.kernels, *self.heads.values()):
                    variable.assign_add(0.1 * tf.random.normal(variable.shape))
                self.table.insert([f"step{step}"], [step])
                self.steps.assign_add(1)

    return Module()


_LIST = [
    Case("dense", _dense, lambda: _random(BATCH, 8), steps=3),
    Case("module", _module, lambda: _random(BATCH, 8), frameworks=("tensorflow",)),
    Case("mobilenet_v2", _mobilenet_v2, _images),
    Case("efficientnet_b0", _efficientnet_b0, _images, steps=1),
    Case("convolutional", _convolutional, _images, steps=1),
    Case("text", _text, _sentences),
    Case("recurrent", _recurrent, _tokens),
    Case("transformer", _transformer, _tokens),
    Case("many_inputs", _many_inputs, lambda: [_random(BATCH, 8, 8, 3), _random(BATCH, 6, seed=1)]),
    Case("subclassed", _mixer, lambda: _random(BATCH, 8), modules=("tests.interop.custom",)),
]
CASES = {case.name: case for case in _LIST}
