"""Optimizers that a model holds itself, as the usual GAN does: its weights come, and each optimizer if it fits."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ckptflow
from ckptflow.errors import StateMismatchError
from tests.interop.models import KERASES

pytestmark = pytest.mark.usefixtures("unprobed")

FRAMEWORKS: dict[str, Any] = {"keras": keras, "tf_keras": tf_keras}


def _class_of(kit: Any) -> Any:
    class GAN(kit.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.discriminator = kit.layers.Dense(1, name="discriminator")
            self.generator = kit.layers.Dense(4, name="generator")

        def call(self, inputs: Any) -> Any:
            return self.discriminator(self.generator(inputs))

        def compile(self, d_optimizer: Any, g_optimizer: Any, **how: Any) -> None:
            super().compile(**how)
            self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer

    return GAN


CLASSES = {name: _class_of(kit) for name, kit in FRAMEWORKS.items()}


def make(framework: str, *, optimizers: str | None = "Adam", is_built: bool = False) -> Any:
    model = CLASSES[framework]()
    model(tf.ones((2, 3)))
    if optimizers is not None:
        of_kind = getattr(FRAMEWORKS[framework].optimizers, optimizers)
        model.compile(of_kind(0.25), of_kind(0.25))
    if is_built:
        for optimizer, layer in both(model):
            optimizer.build(layer.trainable_variables)
    return model


def both(model: Any) -> list[tuple[Any, Any]]:
    return [(model.d_optimizer, model.discriminator), (model.g_optimizer, model.generator)]


def train(model: Any) -> Any:
    for optimizer, layer in both(model):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(tf.ones((2, 3))) ** 2)
        trained = layer.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, trained), trained, strict=True))
    return model


def values_of(optimizer: Any) -> list[Any]:
    return [np.asarray(each) for each in optimizer.variables]


@pytest.fixture(params=KERASES)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Any, Path]:
    framework = request.param
    model = train(make(framework))
    path = tmp_path / "gan.weights.h5"
    model.save_weights(str(path))
    return framework, model, path


@pytest.mark.parametrize("is_partial", [False, True])
@pytest.mark.parametrize("is_wanted", [False, True])
@pytest.mark.parametrize("optimizers", ["Adam", None])
def test_they_do_not_keep_the_weights_out(
    optimizers: str | None,
    is_wanted: bool,
    is_partial: bool,
    saved: tuple[str, Any, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    framework, model, path = saved
    mine = make(framework, optimizers=optimizers)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "ckptflow"):
        ckptflow.import_model(path, tmp_path / "run", model=mine, optimizer=is_wanted, partial=is_partial)
    assert all(map(np.array_equal, mine.get_weights(), model.get_weights()))
    for name in ("d_optimizer", "g_optimizer"):
        assert (f"gan.weights.h5, {name}" in caplog.text) == is_wanted
        if optimizers is not None:
            assert int(getattr(mine, name).iterations) == 0


@pytest.mark.parametrize("is_partial", [False, True])
def test_they_come_where_they_fit(is_partial: bool, saved: tuple[str, Any, Path], tmp_path: Path) -> None:
    framework, model, path = saved
    mine = make(framework, is_built=True)
    ckptflow.import_model(path, tmp_path / "run", model=mine, partial=is_partial)
    for (one, _), (other, _) in zip(both(mine), both(model), strict=True):
        assert int(one.iterations) == 1
        assert all(map(np.array_equal, values_of(one), values_of(other)))
    fresh = make(framework, is_built=True)
    ckptflow.import_model(path, tmp_path / "without", model=fresh, optimizer=False, partial=is_partial)
    assert not any(value.any() for one, _ in both(fresh) for value in values_of(one) if value.shape)
    assert [int(one.iterations) for one, _ in both(fresh)] == [0, 0]


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_another_class_is_not_taken(suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Keras 3 writes how each is called; Adam's slots fit AdamW's by their shapes."""
    path = tmp_path / f"gan{suffix}"
    model = train(make("keras"))
    (model.save_weights if suffix == ".weights.h5" else model.save)(str(path))
    mine = make("keras", optimizers="AdamW", is_built=True)
    ckptflow.import_model(path, tmp_path / "run", model=mine)
    assert "d_optimizer: the state of its optimizer does not fit" in caplog.text
    assert "it is that of Adam, another class than the model's AdamW" in caplog.text
    assert [(int(one.iterations), float(one.learning_rate)) for one, _ in both(mine)] == [(0, 0.25)] * 2


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
@pytest.mark.parametrize("framework", KERASES)
def test_one_that_the_model_is_compiled_with_as_well(
    framework: str, suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Keras writes it once, in the place of the attribute."""

    def made() -> Any:
        model = CLASSES[framework]()
        model(tf.ones((2, 3)))
        pair = [FRAMEWORKS[framework].optimizers.Adam(0.25) for _ in range(2)]
        model.compile(*pair, optimizer=pair[0])
        for optimizer, layer in zip(pair, (model.discriminator, model.generator), strict=True):
            optimizer.build(layer.trainable_variables)
        return model

    model = train(made())
    path = tmp_path / f"gan{suffix}"
    (model.save_weights if suffix == ".weights.h5" else model.save)(str(path))
    mine = made()
    caplog.clear()
    with caplog.at_level(logging.WARNING, "ckptflow"):
        ckptflow.import_model(path, tmp_path / "run", model=mine)
    for (one, _), (other, _) in zip(both(mine), both(model), strict=True):
        assert all(map(np.array_equal, values_of(one), values_of(other)))
    assert "optimizer state" not in caplog.text


def test_without_a_model_they_can_be_left_out(saved: tuple[str, Any, Path], tmp_path: Path) -> None:
    _, model, path = saved
    for is_wanted in (True, False):
        ckptflow.import_model(path, tmp_path / f"{is_wanted}", optimizer=is_wanted)
        with ckptflow.open_checkpoint(tmp_path / f"{is_wanted}") as opened:
            names = {each.name for each in opened.manifest.tensors}
        assert any("d_optimizer" in name for name in names) == is_wanted
        assert len([name for name in names if "optimizer" not in name]) == len(model.weights)


@pytest.mark.parametrize("framework", KERASES)
def test_a_layer_that_the_model_lacks_is_none(framework: str, tmp_path: Path) -> None:
    """Weights of a file for which a model has no place are refused, wherever they are held."""
    kit, gan = FRAMEWORKS[framework], CLASSES[framework]

    class More(gan):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.critic = kit.layers.Dense(2, name="critic")

        def call(self, inputs: Any) -> Any:
            return self.critic(super().call(inputs))

    model = More()
    model(tf.ones((2, 3)))
    path = tmp_path / "more.weights.h5"
    model.save_weights(str(path))
    with pytest.raises(StateMismatchError, match="/vars/0: in the file, not in the model"):
        ckptflow.import_model(path, tmp_path / "run", model=make(framework))


@pytest.mark.parametrize("framework", KERASES)
def test_one_that_a_model_within_is_compiled_with(framework: str, tmp_path: Path) -> None:
    """The GAN of old: a discriminator that is compiled, in a model that is not."""
    kit = FRAMEWORKS[framework]

    def made(*, is_compiled: bool) -> Any:
        inner = kit.Sequential([kit.layers.Input((4,)), kit.layers.Dense(1)], name="inner")
        if is_compiled:
            inner.compile("adam", "mean_squared_error")
            inner.train_on_batch(np.ones((2, 4), "f4"), np.ones((2, 1), "f4"))
        return kit.Sequential([kit.layers.Input((3,)), kit.layers.Dense(4), inner])

    model = made(is_compiled=True)
    path = tmp_path / "m.weights.h5"
    model.save_weights(str(path))
    for number, is_compiled in enumerate((True, False)):
        mine = made(is_compiled=is_compiled)
        ckptflow.import_model(path, tmp_path / f"run{number}", model=mine)
        assert all(map(np.array_equal, mine.get_weights(), model.get_weights()))


class Codebook(keras.layers.Layer):  # type: ignore[misc]
    """A layer that counts its updates before all else."""

    def build(self, shape: Any) -> None:
        self.count = self.add_weight(name="count", shape=(), dtype="int32", trainable=False)
        self.rows = self.add_weight(name="rows", shape=(5, 4), initializer="ones", trainable=False)
        super().build(shape)

    def call(self, inputs: Any) -> Any:
        return inputs


@pytest.mark.parametrize("attribute", ["codebook", "adoptable"])
def test_a_layer_that_counts_is_none(attribute: str, tmp_path: Path) -> None:
    """Held as an attribute, as optimizers are: one of a name before "layers" lies in a place of its own."""

    gan = CLASSES["keras"]

    class Quantized(gan):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            setattr(self, attribute, Codebook())

        def call(self, inputs: Any) -> Any:
            return self.discriminator(getattr(self, attribute)(self.generator(inputs)))

    model = Quantized()
    model(tf.ones((2, 3)))
    path = tmp_path / "m.weights.h5"
    model.save_weights(str(path))
    for is_wanted in (True, False):
        with pytest.raises(StateMismatchError, match=f"{attribute}/vars/1: in the file, not in the model"):
            ckptflow.import_model(path, tmp_path / "run", model=make("keras", optimizers=None), optimizer=is_wanted)
        table = tf.Variable(tf.zeros((5, 4)))
        state = {"model": make("keras", optimizers=None), "table": table}
        how: dict[str, Any] = {"partial": True, "rename": {f"{attribute}/1": "table"}, "optimizer": is_wanted}
        ckptflow.import_model(path, tmp_path / f"part{is_wanted}", model=state, **how)
        assert table.numpy().all()
    ckptflow.import_model(path, tmp_path / "alone", optimizer=False)
    with ckptflow.open_checkpoint(tmp_path / "alone") as opened:
        assert len([each for each in opened.manifest.tensors if attribute in each.name]) == 2


def _holding(kit: Any, attribute: str, *optimizers: Any) -> Any:
    class Holding(kit.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.dense = kit.layers.Dense(1)
            setattr(self, attribute, optimizers[0] if len(optimizers) == 1 else list(optimizers))

        def call(self, inputs: Any) -> Any:
            return self.dense(inputs)

    model = Holding()
    model(tf.ones((2, 3)))
    for optimizer in optimizers:
        optimizer.build(model.trainable_variables)
    return model


@pytest.mark.parametrize("attribute", ["d_opt", "gen_optim", "rule"])
@pytest.mark.parametrize("framework", KERASES)
def test_without_a_model_they_are_known_by_their_names(framework: str, attribute: str, tmp_path: Path) -> None:
    """By those of the attributes; by those that Keras 3 writes of each; in a list by their classes."""
    kit = FRAMEWORKS[framework]
    cases = {"one": [kit.optimizers.Adam()], "list": [kit.optimizers.Adam(), kit.optimizers.SGD()]}
    if attribute == "rule" and framework == "tf_keras":
        del cases["one"]  # nothing tells
    for name, optimizers in cases.items():
        path = tmp_path / f"{name}.weights.h5"
        _holding(kit, attribute, *optimizers).save_weights(str(path))
        ckptflow.import_model(path, tmp_path / name, optimizer=False)
        with ckptflow.open_checkpoint(tmp_path / name) as opened:
            assert len(opened.manifest.tensors) == 2
