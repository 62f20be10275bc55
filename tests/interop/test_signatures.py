"""The signatures of a SavedModel: what they are made of, what travels along, what is refused."""

from __future__ import annotations

import gc
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras  # noqa: F401 - found by its name

from ckptflow.errors import UsageError
from ckptflow.interop.tensorflow.reusable import write_saved_model
from tests.interop import models
from tests.interop.stock import run_stock

pytestmark = pytest.mark.usefixtures("unprobed")


def small_model() -> Any:
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="out")])


SIGNATURES = """
import numpy as np, tensorflow as tf

def answers(signatures):
    return {
        "by_word": signatures["by_word"](words=tf.constant(["b", "a", "?"]))["scores"].numpy().tolist(),
        "by_file": signatures["by_file"]()["text"].numpy().decode(),
        "scaled": signatures["scaled"](tf.constant([[3.0, 5.0]]))["output_0"].numpy().tolist(),
        "concrete": signatures["concrete"](x=tf.constant([1.0, 2.0]))["output_0"].numpy().tolist(),
        "default": sorted(signatures["serving_default"].structured_input_signature[1]),
    }

answer = [answers(tf.saved_model.load(folder).signatures) for folder in argument]
"""


def signatures_of(folder: Path) -> Callable[[Any], dict[str, Any]]:
    """Functions that use a table, a file, an adapted layer, and the model."""
    file = folder / "labels.txt"
    file.write_text("from the file")

    def make(model: Any) -> dict[str, Any]:
        keys = tf.constant(["a", "b"])
        table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, [[1.0], [2.0]][0] + [2.0]), 0.0)
        lookup = keras.layers.StringLookup(vocabulary=["a", "b"])
        scale = keras.layers.Normalization(mean=[1.0, 1.0], variance=[4.0, 4.0])
        asset = tf.saved_model.Asset(str(file))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="words")])
        def by_word(words: Any) -> dict[str, Any]:
            numbers = tf.stack([table.lookup(words), tf.cast(lookup(words), tf.float32)], axis=-1)
            return {"scores": model(numbers, training=False)}

        @tf.function(input_signature=[])
        def by_file() -> dict[str, Any]:
            return {"text": tf.io.read_file(asset.asset_path)}

        @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32)])
        def scaled(x: Any) -> Any:
            return scale(x)

        plain = tf.function(lambda x: x * 2.0)
        concrete = plain.get_concrete_function(tf.TensorSpec([None], tf.float32, name="x"))
        return {"by_word": by_word, "by_file": by_file, "scaled": scaled, "concrete": concrete}

    return make


def model_and_signatures(framework: str, folder: Path) -> tuple[Any, Any]:
    if framework == "tensorflow":
        model: Any = tf.Module()
        model.kernel = tf.Variable([[1.0], [10.0]])
        call = tf.function(lambda x, training=False: x @ model.kernel)

        def signatures(_: Any) -> dict[str, Any]:
            default = call.get_concrete_function(tf.TensorSpec([None, 2], tf.float32, name="inputs"))
            return {**signatures_of(folder)(call), "serving_default": default}

        return model, signatures
    keras_module = sys.modules[framework]
    inputs = keras_module.Input((2,), name="inputs")
    model = keras_module.Model(inputs, keras_module.layers.Dense(1, use_bias=False)(inputs))
    model.set_weights([np.asarray([[1.0], [10.0]], np.float32)])
    return model, signatures_of(folder)


def test_what_signatures_use_travels_along(tmp_path: Path) -> None:
    frameworks = [*models.KERASES, "tensorflow"]
    for framework in frameworks:
        model, signatures = model_and_signatures(framework, tmp_path)
        write_saved_model(str(tmp_path / framework), model, None, signatures=signatures)
        shutil.move(tmp_path / framework, tmp_path / f"moved-{framework}")
        (tmp_path / "labels.txt").unlink()
    answer = run_stock(SIGNATURES, [str(tmp_path / f"moved-{framework}") for framework in frameworks])
    expected = {
        "by_word": [[22.0], [11.0], [0.0]],
        "by_file": "from the file",
        "scaled": [[1.0, 2.0]],
        "concrete": [2.0, 4.0],
        "default": ["inputs"],
    }
    assert answer == [expected] * len(frameworks)


def test_a_table_that_nothing_holds(tmp_path: Path) -> None:
    def make() -> Any:
        table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a"], [1.0]), 0.0)
        return tf.function(lambda x: table.lookup(x)).get_concrete_function(tf.TensorSpec([None], tf.string))

    function = make()
    gc.collect()
    with pytest.raises(UsageError, match=r"f: uses a table .* no object holds"):
        write_saved_model(str(tmp_path / "m"), small_model(), None, signatures={"f": function})


def test_variables_of_another_model_are_refused(tmp_path: Path) -> None:
    """The live model is not the one that is exported: its values would go into the signature unseen."""
    live, exported = small_model(), small_model()
    threshold = tf.Variable(0.5, name="threshold")

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32)])
    def of_live(x: Any) -> Any:
        return live(x, training=False)

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32)])
    def with_threshold(x: Any) -> Any:
        return exported(x, training=False) > threshold

    with pytest.raises(UsageError, match=r"lambda model") as caught:
        write_saved_model(str(tmp_path / "m"), exported, None, signatures={"a": of_live, "b": with_threshold})
    assert "out/kernel:0 float32[2, 1]" in str(caught.value)
    assert "b: threshold:0 float32[]" in str(caught.value)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("signatures", "words"),
    [
        ({"f": lambda x: x}, "'f' is a function, not a tf.function"),
        ({"f": tf.function(lambda x: x)}, "traced for 0 sorts of inputs"),
        ({"": tf.function(lambda x: x)}, "cannot be the name"),
        ({"__saved_model_init_op": tf.function(lambda x: x)}, "cannot be the name"),
        ("f", "signatures is a dict"),
        ({"f": tf.function(lambda x: x @ x, input_signature=[tf.TensorSpec([2])])}, "'f' cannot be made"),
        ({"f": tf.function(lambda: {"a": {"b": 1}}, input_signature=[])}, "TensorFlow cannot save"),
    ],
)
def test_what_is_no_signature(signatures: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        write_saved_model(str(tmp_path / "m"), small_model(), None, signatures=signatures)


def test_inputs_that_are_not_known(tmp_path: Path) -> None:
    class Words(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.lookup = keras.layers.StringLookup(vocabulary=["a", "b"])

        def call(self, words: Any) -> Any:
            return self.lookup(words)

    class Two(keras.Model):  # type: ignore[misc]
        def call(self, left: Any, right: Any) -> Any:
            return {"sum": left + right, "parts": [left, right]}

    with pytest.raises(UsageError, match="hand over input_signature="):
        write_saved_model(str(tmp_path / "m"), Words(), None)
    with pytest.raises(UsageError, match="input_signature is a"):
        write_saved_model(str(tmp_path / "m"), Words(), None, input_signature="text")
    write_saved_model(str(tmp_path / "m"), Words(), None, input_signature=tf.TensorSpec([None], tf.string))
    loaded = tf.saved_model.load(str(tmp_path / "m"))
    assert loaded(tf.constant(["b", "?"])).numpy().tolist() == [2, 0]
    assert loaded.signatures["serving_default"](tf.constant(["b"]))["output_0"].numpy().tolist() == [2]
    spec = tf.TensorSpec([None, 2], tf.float32)
    write_saved_model(str(tmp_path / "two"), Two(), None, input_signature=[spec, spec])
    signature = tf.saved_model.load(str(tmp_path / "two")).signatures["serving_default"]
    assert sorted(signature.structured_input_signature[1]) == ["left", "right"]
    assert sorted(signature.structured_outputs) == ["parts_output_0", "parts_output_1", "sum"]


def test_a_module_without_signatures_of_its_own(tmp_path: Path) -> None:
    class Plain(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.variable = tf.Variable([2.0])

        def __call__(self, x: Any) -> Any:
            return self.variable * x

        @tf.function(input_signature=[tf.TensorSpec([], tf.float32)])
        def shifted(self, by: Any) -> Any:
            return self.variable + by

    with pytest.raises(UsageError, match="hand over"):
        write_saved_model(str(tmp_path / "m"), Plain(), None)
    write_saved_model(str(tmp_path / "m"), Plain(), None, input_signature=[tf.TensorSpec([1], name="x")])
    loaded = tf.saved_model.load(str(tmp_path / "m"))
    assert loaded(tf.constant([3.0])).numpy().tolist() == [6.0]
    assert loaded.signatures["serving_default"](x=tf.constant([3.0]))["output_0"].numpy().tolist() == [6.0]
    assert loaded.shifted(1.0).numpy().tolist() == [3.0]
    assert [variable.numpy().tolist() for variable in loaded.trainable_variables] == [[2.0]]


def test_what_the_model_is_given_for_its_signatures(tmp_path: Path) -> None:
    """An attribute that `signatures` gives the model is the model's own."""

    def signatures(model: Any) -> dict[str, Any]:
        model.threshold = tf.Variable(0.5)
        return {"f": tf.function(lambda x: x > model.threshold, input_signature=[tf.TensorSpec([])])}

    write_saved_model(str(tmp_path / "m"), small_model(), None, signatures=signatures)
    function = tf.saved_model.load(str(tmp_path / "m")).signatures["f"]
    assert bool(function(tf.constant(0.7))["output_0"])
    assert not bool(function(tf.constant(0.2))["output_0"])

    def broken(model: Any) -> dict[str, Any]:
        raise KeyError("nothing of that name")

    with pytest.raises(UsageError, match="signatures= raised KeyError"):
        write_saved_model(str(tmp_path / "n"), small_model(), None, signatures=broken)
    with pytest.raises(UsageError, match="each with a shape and a dtype"):
        write_saved_model(
            str(tmp_path / "n"), small_model(), None, input_signature=[keras.layers.InputSpec(shape=(None, 2))]
        )
