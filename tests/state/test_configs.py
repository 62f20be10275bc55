"""What a manifest says of models: without the data in their configs, and as they are when they are saved."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ckptflow import CheckpointManager, UsageError, export_checkpoint, open_checkpoint
from ckptflow.state.bundles import VocabularyBundle
from ckptflow.state.configs import MAX_CONFIG_BYTES, describe, described
from ckptflow.state.tree import walk

KERASES: dict[str, Any] = {"keras": keras, "tf_keras": tf_keras}
# Data of which no text can be made here: one number that stands for 160 GB of them.
ENDLESS = np.broadcast_to(np.float32(1), (400_000_000, 100))
COUNT = 3000
WORDS = [f"word{number}" for number in range(COUNT)]
TEXT = tf.constant([["word1"], ["word77"]])


def sequential(kit: Any, *layers: Any, shape: Any = (3,), dtype: Any = None) -> Any:
    return kit.Sequential([kit.Input(shape, dtype=dtype), *layers])


def table_layer(kit: Any) -> type:
    class Table(kit.layers.Layer):  # type: ignore[misc]
        """Makes lists of its table when it is asked for its config."""

        def __init__(self, table: Any = None, **settings: Any) -> None:
            super().__init__(**settings)
            self.table = table

        def call(self, inputs: Any) -> Any:
            return inputs * float(self.table[0, 0])

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "table": self.table.tolist()}

    return Table


def loss_of(kit: Any, weights: Any) -> Any:
    class Weighted(kit.losses.Loss):  # type: ignore[misc]
        def __init__(self, weights: Any = None, **settings: Any) -> None:
            super().__init__(**settings)
            self.weights = weights

        def call(self, y_true: Any, y_pred: Any) -> Any:
            return tf.reduce_mean((y_true - y_pred) ** 2, -1)

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "weights": self.weights}

    return Weighted(weights)


def noise(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype("f4")


def of_both(names: Iterable[str], *, but: set[str]) -> list[Any]:
    """Each name with each Keras; those that take tf_keras seconds only in `make chaos`: they are the same code here."""
    return [
        pytest.param(name, kit, marks=pytest.mark.chaos if kit == "tf_keras" and name in but else ())
        for name in names
        for kit in KERASES
    ]


# Models whose configs hold what is in the checkpoint as well, with an input.
SAVED: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "embedding": lambda kit: (
        sequential(
            kit,
            kit.layers.Embedding(COUNT, 8, embeddings_initializer=kit.initializers.Constant(noise(COUNT, 8))),
            shape=(2,),
            dtype="int32",
        ),
        tf.constant([[5, 7]]),
    ),
    "TensorFlow's own initializer": lambda kit: (
        sequential(kit, kit.layers.Dense(2000, kernel_initializer=tf.constant_initializer(noise(3, 2000)))),
        tf.ones((1, 3)),
    ),
    "in a cell, in a wrapper": lambda kit: (
        sequential(
            kit,
            kit.layers.Bidirectional(
                kit.layers.LSTM(32, kernel_initializer=kit.initializers.Constant(noise(3, 128).tolist()))
            ),
            shape=(4, 3),
        ),
        tf.ones((1, 4, 3)),
    ),
    "words": lambda kit: (
        sequential(kit, kit.layers.StringLookup(vocabulary=WORDS, output_mode="multi_hot"), shape=(1,), dtype="string"),
        TEXT,
    ),
    "words with weights": lambda kit: (
        sequential(
            kit,
            kit.layers.StringLookup(
                vocabulary=np.array(WORDS), idf_weights=np.arange(1.0, COUNT + 1), output_mode="tf_idf"
            ),
            shape=(1,),
            dtype="string",
        ),
        TEXT,
    ),
    "numbers": lambda kit: (
        sequential(kit, kit.layers.IntegerLookup(vocabulary=list(range(7, COUNT))), shape=(1,), dtype="int64"),
        tf.constant([[9], [2]], tf.int64),
    ),
    "texts": lambda kit: (
        sequential(kit, kit.layers.TextVectorization(vocabulary=WORDS), shape=(1,), dtype="string"),
        TEXT,
    ),
}


@pytest.mark.parametrize(("name", "framework"), of_both(SAVED, but={"in a cell, in a wrapper"}))
def test_what_the_tensors_hold_is_not_in_the_config(tmp_path: Path, name: str, framework: str) -> None:
    """And the model that is built of both says the same as the one that was saved."""
    kit = KERASES[framework]
    model, inputs = SAVED[name](kit)
    expected = np.asarray(model(inputs))
    before = kit.saving.serialize_keras_object(model)
    with CheckpointManager(tmp_path / "run", {"model": model}) as manager:
        manager.save(1)
    with open_checkpoint(tmp_path / "run") as opened:
        assert len(json.dumps(opened.manifest.models)) < 6000
        assert "left_out" not in opened.manifest.models["model"]
    export_checkpoint(tmp_path / "run", tmp_path / "model.keras")
    again = kit.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(np.asarray(again(inputs)), expected)
    assert json.dumps(kit.saving.serialize_keras_object(model)) == json.dumps(before)  # the model was left as it was


def constants_in_calls(kit: Any) -> Any:
    inputs = kit.Input((300,))
    constant = tf.ones((300, 300))
    outputs = kit.layers.Add()([inputs, constant]) if kit is keras else tf.add(inputs, constant)
    return kit.Model(inputs, outputs)


UNSAVED: dict[str, Callable[[Any], Any]] = {
    "a mean": lambda kit: sequential(
        kit, kit.layers.Normalization(mean=np.ones(40_000), variance=np.ones(40_000)), shape=(40_000,)
    ),
    "boundaries": lambda kit: sequential(
        kit, kit.layers.Discretization(bin_boundaries=list(map(float, range(40_000)))), shape=(1,)
    ),
    "a constant in a call": constants_in_calls,
    "a table of the user's": lambda kit: sequential(kit, table_layer(kit)(ENDLESS)),
    "in a regularizer": lambda kit: with_regularizer(kit, ENDLESS),
    "a list of lists": lambda kit: with_regularizer(kit, [[0.5] * 300] * 300),
    "a dict": lambda kit: with_regularizer(kit, {f"key {number}": number for number in range(50_000)}),
    "a text": lambda kit: with_regularizer(kit, "x" * 10**6),
    "many small ones": lambda kit: sequential(
        kit, *(kit.layers.Normalization(mean=np.ones(30_000), variance=np.ones(30_000)) for _ in range(20)),
        shape=(30_000,)
    ),
}  # fmt: skip


def with_regularizer(kit: Any, data: Any) -> Any:
    class Holding(kit.regularizers.Regularizer):  # type: ignore[misc]
        def __call__(self, weight: Any) -> Any:
            return 0.0

        def get_config(self) -> dict[str, Any]:
            return {"data": self.data.tolist() if isinstance(self.data, np.ndarray) else self.data}

    regularizer = Holding()
    regularizer.data = data
    return sequential(kit, kit.layers.Dense(2, kernel_regularizer=regularizer))


@pytest.mark.parametrize(("name", "framework"), of_both(UNSAVED, but={"boundaries", "many small ones"}))
def test_what_nothing_else_holds_is_left_out_with_a_warning(
    tmp_path: Path, name: str, framework: str, caplog: pytest.LogCaptureFixture
) -> None:
    kit = KERASES[framework]
    model = UNSAVED[name](kit)
    with caplog.at_level(logging.WARNING, "ckptflow"), CheckpointManager(tmp_path / "run", {"model": model}) as manager:
        manager.save(1)
        manager.save(2)
    assert caplog.text.count("pass the model (model=)") == 1
    with open_checkpoint(tmp_path / "run") as opened:
        assert len(json.dumps(opened.manifest.models)) < 2000
        assert opened.manifest.models["model"]["left_out"]["config"]
    with pytest.raises(UsageError, match=r"left out of the checkpoint.*model="):
        export_checkpoint(tmp_path / "run", tmp_path / "out.keras")
    export_checkpoint(tmp_path / "run", tmp_path / "out.safetensors")
    with CheckpointManager(tmp_path / "run", {"model": model}) as manager:
        assert manager.restore_latest() is not None


@pytest.mark.parametrize("framework", KERASES)
def test_a_loss_with_data_leaves_the_optimizer(tmp_path: Path, framework: str) -> None:
    kit = KERASES[framework]
    model = sequential(kit, kit.layers.Dense(2))
    for weights in (ENDLESS, [0.5] * 10**6):
        model.compile(kit.optimizers.SGD(0.25), loss_of(kit, weights), metrics=["mae"])
        entry = describe(walk({"model": model}))["model"]
        assert set(entry["left_out"]) == {"compile_config/loss"}
        assert entry["compile_config"]["optimizer"]["config"]["learning_rate"] == 0.25
        assert entry["compile_config"]["metrics"] == ["mae"]
        assert len(json.dumps(entry)) < 5000


def test_a_config_that_is_too_large_as_a_whole_is_left_out() -> None:
    class Long(keras.layers.Layer):  # type: ignore[misc]
        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "notes": [{"note": "x" * 90} for _ in range(MAX_CONFIG_BYTES // 100)]}

    entry = describe(walk({"model": sequential(keras, Long())}))["model"]
    assert "bytes of text" in entry["left_out"]["config"]


def test_keras_is_as_before_in_other_threads_and_afterwards() -> None:
    """A user's thread that serializes meanwhile gets its data."""
    seen: list[Any] = []

    class Asking(keras.layers.Layer):  # type: ignore[misc]
        def get_config(self) -> dict[str, Any]:
            words = ["x" * 100] * 5000
            thread = threading.Thread(target=lambda: seen.append(keras.saving.serialize_keras_object(words)))
            thread.start()
            thread.join()
            return {**super().get_config(), "words": words}

    functions = (keras.saving.serialize_keras_object, keras.src.saving.serialization_lib.serialize_keras_object)
    assert describe(walk({"model": sequential(keras, Asking())}))["model"]["left_out"]
    assert seen == [["x" * 100] * 5000]
    assert functions == (
        keras.saving.serialize_keras_object,
        keras.src.saving.serialization_lib.serialize_keras_object,
    )


@pytest.mark.parametrize("framework", KERASES)
def test_words_are_read_as_the_layer_gives_them(framework: str) -> None:
    layers = KERASES[framework].layers
    made = [
        layers.StringLookup(vocabulary=["a", "ä€"], mask_token="m"),
        layers.StringLookup(vocabulary=["a", "b"], num_oov_indices=0, output_mode="count"),
        layers.StringLookup(vocabulary=["a", "b"], num_oov_indices=3, oov_token="[X]"),
        layers.StringLookup(vocabulary=["a", "b"], invert=True, mask_token=""),
        layers.StringLookup(vocabulary=["a", "b"], encoding="latin-1"),
        layers.IntegerLookup(vocabulary=[5, 7, 1000], mask_token=0),
        layers.IntegerLookup(vocabulary=[5, 7], invert=True, num_oov_indices=2),
    ]
    for layer in made:
        found = VocabularyBundle(layer).read()["vocabulary"].tolist()
        assert [word.decode() if isinstance(word, bytes) else word for word in found] == layer.get_vocabulary()


# What is changed while training


def tagged_layer(kit: Any) -> type:
    class Tagged(kit.layers.Layer):  # type: ignore[misc]
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.tags, self.pairs = {"a"}, frozenset({(0, "a")})

        def call(self, inputs: Any) -> Any:
            return inputs

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "tags": sorted(self.tags), "pairs": sorted(self.pairs)}

    return Tagged


def dense(kit: Any) -> Any:
    layers = kit.layers
    model = sequential(
        kit,
        layers.Dense(4, name="first", kernel_regularizer=kit.regularizers.L2(0.5)),
        layers.Dropout(0.5, name="drop"),
        tagged_layer(kit)(name="tagged"),
    )
    model.compile(kit.optimizers.SGD(0.5, weight_decay=0.1), kit.losses.BinaryCrossentropy(label_smoothing=0.1))
    return model


CHANGES: dict[str, Callable[[Any, Any], None]] = {
    "trainable": lambda kit, model: setattr(model.get_layer("first"), "trainable", False),
    "of the whole": lambda kit, model: setattr(model, "trainable", False),
    "rate": lambda kit, model: setattr(model.get_layer("drop"), "rate", 0.125),
    "activation": lambda kit, model: setattr(model.get_layer("first"), "activation", kit.activations.tanh),
    "regularizer": lambda kit, model: setattr(
        model.get_layer("first"), "kernel_regularizer", kit.regularizers.L2(0.25)
    ),
    "in a regularizer": lambda kit, model: setattr(model.get_layer("first").kernel_regularizer, "l2", 0.125),
    "activity regularizer": lambda kit, model: setattr(
        model.get_layer("first"), "activity_regularizer", kit.regularizers.L2(0.25)
    ),
    "by NumPy": lambda kit, model: setattr(model.get_layer("drop"), "rate", np.float32(0.125)),
    "weight decay": lambda kit, model: setattr(model.optimizer, "weight_decay", 0.25),
    "clipping": lambda kit, model: setattr(model.optimizer, "clipnorm", 2.0),
    "in a loss": lambda kit, model: setattr(model.loss, "name", "another"),
    "learning rate": lambda kit, model: model.optimizer.learning_rate.assign(0.375),
    "in a set": lambda kit, model: model.get_layer("tagged").tags.add("b"),
    "tuples in a set": lambda kit, model: setattr(model.get_layer("tagged"), "pairs", frozenset({(0, "a"), (1, "b")})),
    "compiled again": lambda kit, model: model.compile(model.optimizer, "mse"),
}


def as_keras_says(kit: Any, model: Any) -> dict[str, Any]:
    with kit.src.saving.serialization_lib.ObjectSharingScope():
        found = dict(json.loads(json.dumps(kit.saving.serialize_keras_object(model))))
    return {"build_config": found.pop("build_config"), "compile_config": found.pop("compile_config"), "config": found}


@pytest.mark.parametrize("framework", KERASES)
@pytest.mark.parametrize("name", CHANGES)
def test_a_description_is_of_the_save(tmp_path: Path, name: str, framework: str) -> None:
    """Also where something is changed at once after `save`, which is still writing."""
    kit = KERASES[framework]
    model = dense(kit)
    expected = []
    with CheckpointManager(tmp_path, {"model": model}) as manager:
        for step in (1, 2, 3):
            manager.save(step)
            expected.append(as_keras_says(kit, model))
            if step == 1:
                CHANGES[name](kit, model)
    assert expected[0] != expected[1]
    for step in (1, 2, 3):
        with open_checkpoint(tmp_path, step) as opened:
            entry = opened.manifest.models["model"]
        assert {part: entry[part] for part in expected[0]} == expected[step - 1]


@pytest.mark.parametrize("framework", KERASES)
def test_nothing_is_described_again_while_nothing_was_changed(framework: str) -> None:
    """That takes long for a large model, and each save asks."""
    kit = KERASES[framework]
    model = dense(kit)
    rows, labels = tf.ones((4, 3)), tf.ones((4, 4))
    model.train_on_batch(rows, labels)
    model.predict_on_batch(rows)
    tree = walk({"model": model})
    first = described(tree)
    model.train_on_batch(rows, labels)
    model.predict_on_batch(rows)
    model(rows)
    assert described(tree) is first
    model.optimizer.learning_rate.assign(0.125)  # a variable, whose value is restored
    assert described(tree) is first
    model.get_layer("drop").rate = 0.25
    assert described(tree) is not first


def hypers(framework: str) -> tuple[Any, Any]:
    """An optimizer of each Keras with a number in a variable, below another one, and that variable."""
    if framework == "keras":
        inner = keras.optimizers.SGD(0.5)
        return keras.optimizers.LossScaleOptimizer(inner), inner.learning_rate
    if framework == "tf_keras":
        inner = tf_keras.optimizers.SGD(0.5)
        return tf_keras.mixed_precision.LossScaleOptimizer(inner), inner.learning_rate
    legacy = tf_keras.optimizers.legacy.SGD(0.5, momentum=0.5)
    variable = tf.Variable(0.0)
    legacy.apply_gradients([(tf.constant(1.0), variable)])
    return legacy, legacy.momentum


@pytest.mark.parametrize("framework", ["keras", "tf_keras", "legacy"])
@pytest.mark.parametrize("is_compiled", [False, True])
def test_numbers_in_variables_are_of_the_save(tmp_path: Path, framework: str, is_compiled: bool) -> None:
    kit = keras if framework == "keras" else tf_keras
    optimizer, number = hypers(framework)
    state: Any = {"optimizer": optimizer}
    if is_compiled:
        state = {"model": dense(kit)}
        state["model"].compile(optimizer, "mse")
    texts = []
    number.assign(float("inf"))
    with CheckpointManager(tmp_path, state) as manager:
        for step, value in enumerate((0.5, 0.375, float("inf"), 0.5)):
            number.assign(value)
            manager.save(step)
            number.assign(0.0625)  # while it is written
            manager.wait()
            with open_checkpoint(tmp_path, step) as opened:
                texts.append(json.dumps(opened.manifest.models))
    assert [text.count("0.375") for text in texts] == [0, 1, 0, 0]
    assert [text.count('{"$float": "inf"}') for text in texts] == [0, 0, 1, 0]
    assert texts[0] == texts[3]
    assert not any("0.0625" in text for text in texts)
