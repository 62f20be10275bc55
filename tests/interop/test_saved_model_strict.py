"""A SavedModel into a live model: all of both sides, the optimizer as a whole or not at all, and nothing in silence."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ckptflow
from ckptflow.errors import StateMismatchError
from ckptflow.interop.tensorflow.saved_model import write_saved_model
from ckptflow.state.tree import walk
from tests.interop.models import without_graph

pytestmark = pytest.mark.usefixtures("unprobed")

KITS: dict[str, Any] = {"keras": keras, "tf_keras": tf_keras}
ANEW = "the optimizer's state does not match and is not restored, it starts fresh: "


def make(kit: str, optimizer: str | None = "Adam", *, rate: float = 0.5, classes: int = 2) -> Any:
    """Two layers of one shape, and a seed."""
    layers = KITS[kit].layers
    parts = [layers.Input((3,)), layers.Dense(3), layers.Dropout(0.5), layers.Dense(3), layers.Dense(classes)]
    model = KITS[kit].Sequential(parts)
    if optimizer is not None:
        model.compile(getattr(KITS[kit].optimizers, optimizer)(rate), "mse", metrics=["mae"])
    return without_graph(model)


def train(model: Any, steps: int = 3) -> Any:
    for _ in range(steps):
        model.train_on_batch(np.ones((4, 3), "f4"), np.ones((4, model.output_shape[-1]), "f4"))
    return model


def values_of(model: Any) -> dict[str, Any]:
    return {name: np.array(np.asarray(variable)) for name, variable in walk({"model": model}).variables.items()}


def of_optimizer(model: Any) -> dict[str, Any]:
    return {name: value for name, value in values_of(model).items() if name.startswith("model/optimizer/")}


# How a SavedModel comes about that has an optimizer.
WRITERS: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "our own": ("tf_keras", lambda folder, model: write_saved_model(folder, model, None)),
    "tf_keras's": ("tf_keras", lambda folder, model: model.save(folder, save_format="tf")),
    "TensorFlow's, of Keras 3": ("keras", lambda folder, model: tf.saved_model.save(model, folder)),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """A SavedModel of each kind, and the model that it is of."""
    root: Path = tmp_path_factory.mktemp("sources")
    found: dict[str, tuple[Path, Any]] = {}
    for number, (name, (kit, write)) in enumerate(WRITERS.items()):
        model = train(make(kit, rate=0.25))
        write(str(root / str(number)), model)
        found[name] = root / str(number), model
    return found


@pytest.mark.parametrize("name", WRITERS)
def test_an_optimizer_that_fits_comes_with_all_of_its_state(
    name: str, sources: dict[str, tuple[Path, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (source, saved), into = sources[name], make(WRITERS[name][0])
    ckptflow.import_model(source, tmp_path / "run", model=into)
    assert all(map(np.array_equal, into.get_weights(), saved.get_weights()))
    mine, theirs = of_optimizer(into), of_optimizer(saved)
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[each], theirs[each]) for each in theirs)
    assert "starts fresh" not in caplog.text


SLOT = r"model/optimizer/\S+: "
MISFITS = {
    "other slots": SLOT,  # some of RMSprop's have the names of Adam's
    "fewer": SLOT,
    "frozen": SLOT,
    "another class": "it is that of Adam, another class than the model's AdamW",
    "not compiled": SLOT,
}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (name, change)
        for name, (kit, _) in WRITERS.items()
        for change in MISFITS
        if (kit, change) != ("keras", "another class")  # TensorFlow writes down no class, and AdamW's slots are Adam's
    ],
)
def test_an_optimizer_that_does_not_fit_stays_as_it_was_made(
    name: str,
    change: str,
    sources: dict[str, tuple[Path, Any]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source, saved = sources[name]
    kit = WRITERS[name][0]
    kinds = {"other slots": "RMSprop", "fewer": "SGD", "another class": "AdamW", "not compiled": None}
    into = make(kit, kinds.get(change, "Adam"))
    if change == "frozen":
        into.layers[0].trainable = False
        into.compile(KITS[kit].optimizers.Adam(0.5), "mse")
    if getattr(into, "optimizer", None) is not None:
        into.optimizer.build(into.trainable_variables)
    before = of_optimizer(into)
    ckptflow.import_model(source, tmp_path / "run", model=into)
    theirs = {name: value for name, value in values_of(saved).items() if name.endswith(("kernel", "bias"))}
    mine = values_of(into)
    assert all(np.array_equal(mine[each], theirs[each]) for each in theirs if "/optimizer/" not in each)
    after = of_optimizer(into)
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[each], before[each]) for each in before)
    (said,) = [record.getMessage() for record in caplog.records if ANEW in record.getMessage()]
    assert re.search(ANEW + MISFITS[change], said), said


def test_an_optimizer_of_another_class_is_told_where_tensors_go_by_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ckptflow.CheckpointManager(tmp_path / "saved", {"model": train(make("keras"))}) as manager:
        manager.save(1)
    ckptflow.export_checkpoint(tmp_path / "saved", tmp_path / "m.safetensors")
    into = make("keras", "AdamW")
    ckptflow.import_model(tmp_path / "m.safetensors", tmp_path / "run", model=into)
    assert f"{ANEW}it is that of Adam, another class than the model's AdamW" in caplog.text
    assert int(into.optimizer.iterations) == 0


# Weights and the rest


@pytest.mark.parametrize("name", [*WRITERS, "Keras 3's export"])
def test_what_has_no_place_in_the_model_is_refused(
    name: str, sources: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    kit, write = WRITERS.get(name, ("keras", lambda folder, model: None))
    if name in WRITERS:
        model = make(kit, None)
        more = KITS[kit].Sequential([*model.layers, KITS[kit].layers.Dense(2, name="more")])
        more.build((None, 3))
        write(str(tmp_path / "m"), more)
        expected = r"(more|layers/5|layer_with_weights-3)/kernel: in the SavedModel, not in the state"
    else:
        model = make(kit, None)
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint("serve", model.call, input_signature=[tf.TensorSpec((None, 3))])
        archive.add_variable_collection("beside", [tf.Variable(1.0)])
        archive.write_out(str(tmp_path / "m"), verbose=False)
        expected = "model/beside/0: in the SavedModel, not in the state"
    into = make(kit, None)
    before = values_of(into)
    with pytest.raises(StateMismatchError, match=expected):
        ckptflow.import_model(tmp_path / "m", tmp_path / "run", model=into)
    after = values_of(into)
    assert all(np.array_equal(after[each], before[each]) for each in before)
    assert not (tmp_path / "run").exists()


def lookup(*, oov: int = 1, dtype: str = "string", words: list[Any] | None = None) -> Any:
    given = words if words is not None else ["a", "b", "c"]
    kind = keras.layers.StringLookup if dtype == "string" else keras.layers.IntegerLookup
    layer = kind(num_oov_indices=oov, vocabulary=given, name="lookup")
    inputs = keras.Input((1,), dtype=dtype)
    return keras.Model(inputs, keras.layers.Embedding(len(given) + oov, 2, name="embedding")(layer(inputs)))


@pytest.mark.parametrize(
    ("into", "why"),
    [
        (lambda: lookup(oov=2, words=["x", "y"]), "its special tokens are not those"),
        (lambda: lookup(dtype="int64", words=[1, 2, 3]), "dtype string in the SavedModel, int64 in the state"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused(into: Callable[[], Any], why: str, tmp_path: Path) -> None:
    """The embeddings would be of other words."""
    write_saved_model(str(tmp_path / "m"), lookup(), None)
    model = into()
    before = values_of(model)
    with pytest.raises(StateMismatchError, match=rf"(?s)no value was changed.*model/lookup\S*: .*{why}"):
        ckptflow.import_model(tmp_path / "m", tmp_path / "run", model=model)
    after = values_of(model)
    assert all(np.array_equal(after[each], before[each]) for each in before)
    assert not (tmp_path / "run").exists()
    ckptflow.import_model(tmp_path / "m", tmp_path / "same", model=lookup(words=["c", "a", "b"]))


# Without the optimizer, in part


@pytest.mark.parametrize("name", [*WRITERS, "Keras 3's export"])
def test_the_weights_alone(
    name: str, sources: dict[str, tuple[Path, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kit = WRITERS[name][0] if name in WRITERS else "keras"
    if name in WRITERS:
        source, saved = sources[name]
    else:
        source, saved = tmp_path / "m", train(make("keras"))
        saved.export(source, verbose=False)
    for is_partial in (False, True):
        into = train(make(kit, rate=0.125), steps=1)
        before = of_optimizer(into)
        ckptflow.import_model(source, tmp_path / f"run-{is_partial}", model=into, optimizer=False, partial=is_partial)
        assert all(map(np.array_equal, into.get_weights(), saved.get_weights()))
        after = of_optimizer(into)
        assert all(np.array_equal(after[each], before[each]) for each in before)
    assert "starts fresh" not in caplog.text


def test_a_warm_start_from_keras_3s_export_goes_by_the_order(tmp_path: Path) -> None:
    saved, into = make("keras"), make("keras", classes=5)
    saved.export(tmp_path / "m", verbose=False)
    done = ckptflow.import_model(tmp_path / "m", tmp_path / "run", model={"net": into}, partial=True)
    assert np.array_equal(into.layers[0].kernel, saved.layers[0].kernel)
    assert {"net/dense_2/kernel", "net/dense_2/bias"} <= set(done.metadata["imported"]["left_as_they_were"])


class Own(tf_keras.layers.Layer):  # type: ignore[misc]
    """A class that nobody has registered."""

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight("kernel", (shape[-1], 3))

    def call(self, x: Any) -> Any:
        return x @ self.kernel


@pytest.mark.parametrize("how", [{"partial": True}, {"optimizer": False}, {"partial": True, "optimizer": False}])
def test_classes_need_not_be_known_where_there_is_a_model(how: dict[str, Any], tmp_path: Path) -> None:
    def made(classes: int) -> Any:
        model = tf_keras.Sequential([tf_keras.layers.Input((3,)), Own(), tf_keras.layers.Dense(classes)])
        model.compile("adam", "mse")
        return without_graph(model)

    saved, into = train(made(2)), made(5 if "partial" in how else 2)
    saved.save(tmp_path / "m", save_format="tf")
    ckptflow.import_model(tmp_path / "m", tmp_path / "run", model=into, **how)
    assert np.array_equal(into.layers[0].kernel, saved.layers[0].kernel)
    if "optimizer" in how:
        assert int(into.optimizer.iterations) == 0


@pytest.mark.parametrize("kit", KITS)
@pytest.mark.parametrize(("saved_by", "into_name"), [("SGD", "RMSprop"), ("Adam", "Adadelta")])
def test_slots_that_are_called_otherwise_are_another_optimizers(
    saved_by: str, into_name: str, kit: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """There are as many of them, and of the same shapes: by their places in the list of all they would fit."""
    how = {"momentum": 0.9} if saved_by == "SGD" else {}
    saved, into = make(kit, None), make(kit, into_name)
    saved.compile(getattr(KITS[kit].optimizers, saved_by)(0.25, **how), "mse")
    train(without_graph(saved))
    tf.saved_model.save(saved, str(tmp_path / "m"))
    prefix = tf.train.Checkpoint(model=saved).write(str(tmp_path / "m.ckpt"))
    for number, source in enumerate((tmp_path / "m", prefix)):
        ckptflow.import_model(source, tmp_path / f"run-{number}", model=into)
        assert all(map(np.array_equal, into.get_weights(), saved.get_weights()))
        assert int(into.optimizer.iterations.numpy()) == 0
    assert caplog.text.count(ANEW) == 2
    ckptflow.import_model(prefix, tmp_path / "part", model=into, partial=True)
    assert not any(np.any(value) for name, value in of_optimizer(into).items() if name.count("/") > 2)
    ckptflow.import_model(prefix, tmp_path / "alone")
    with (
        ckptflow.CheckpointManager(tmp_path / "alone", {"model": into}) as manager,
        pytest.raises(StateMismatchError, match="model/optimizer/"),
    ):
        manager.restore_latest()


@pytest.mark.parametrize("mode", ["int", "tf_idf"])
def test_what_a_layer_counted_while_it_adapted_need_not_have_a_place(mode: str, tmp_path: Path) -> None:
    """The code that makes the model anew gives the words, and then there is nothing to count."""

    def made(**words: Any) -> tuple[Any, Any]:
        lookup = tf_keras.layers.StringLookup(output_mode=mode, **words)
        inputs = tf_keras.Input((1,), dtype="string")
        if not words:
            lookup.adapt(tf.constant([["a"], ["b"], ["a"]]))
        outputs = tf.cast(lookup(inputs), "float32")
        return tf_keras.Model(inputs, tf_keras.layers.Dense(2)(tf_keras.layers.Flatten()(outputs))), lookup

    source, lookup = made()
    source.save(tmp_path / "source", save_format="tf")
    words = lookup.get_vocabulary()[1:]
    given = {"vocabulary": words} | ({"idf_weights": lookup.idf_weights.numpy()[1:]} if mode == "tf_idf" else {})
    model, _ = made(**given)
    ckptflow.import_model(tmp_path / "source", tmp_path / "run", model=model)
    np.testing.assert_array_equal(model.get_weights()[-2], source.get_weights()[-2])
