"""Checks of the private names of both Kerases."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ckptflow.state.private import keras as of_keras
from ckptflow.state.private import kerases
from ckptflow.state.private import tensorflow as of_tensorflow
from ckptflow.state.private import tf_keras as of_tf_keras
from ckptflow.state.private.attribute import Attribute
from tests.state.relied_on import KERASES, model_of, relied_on


@relied_on("kerases.of kerases.layers_in kerases.own_variables kerases.OWN_VARIABLES", "all layers of a nested model")
def _layers(folder: Path) -> None:
    for model in map(model_of, KERASES):
        assert {"inner", "outer"} <= {layer.name for layer in kerases.layers_in(model)}
        assert kerases.own_variables(model, "trainable") == []
        (dense,) = (layer for layer in kerases.layers_in(model) if layer.name == "outer")
        assert len(kerases.own_variables(dense, "trainable")) == 2
        assert sum(len(vars(dense).get(name, ())) for name in kerases.OWN_VARIABLES) == 2
    assert kerases.layers_in(tf.Module()) == []


@relied_on(
    "kerases.LOOKUP kerases.FROZEN_SIZE",
    "the vocabulary of a TextVectorization, and a layer like it to try another one on",
)
def _lookups(folder: Path) -> None:
    for kit in KERASES.values():
        layer = kit.layers.TextVectorization(vocabulary=["a", "b"])
        lookup = getattr(layer, kerases.LOOKUP)
        assert isinstance(lookup, kit.layers.StringLookup)
        assert hasattr(kit.layers.StringLookup(vocabulary=["a"], output_mode="multi_hot"), kerases.FROZEN_SIZE)


@relied_on("kerases.SETTINGS kerases.COMPILE_CONFIG kerases.RATE", "whether a description still holds; the rate")
def _attributes(folder: Path) -> None:
    for name, kit in KERASES.items():
        model = model_of(name)
        layer = kit.layers.Dense(1, name="x")
        assert {"_trainable", "_dtype_policy"} & kerases.SETTINGS & set(vars(layer))
        assert isinstance(getattr(model, kerases.COMPILE_CONFIG).config, dict)
        assert float(vars(model.optimizer)[kerases.RATE]) == pytest.approx(1e-3)


@relied_on("kerases.INNER_OPTIMIZERS tf_keras.inner_optimizer", "the optimizer under one that scales losses")
def _inner(folder: Path) -> None:
    for name, kit in KERASES.items():
        optimizer = kit.optimizers.SGD()
        scaled = kit.mixed_precision.LossScaleOptimizer(optimizer)
        held = [each for each in kerases.INNER_OPTIMIZERS if each in vars(scaled)]
        assert [vars(scaled)[each] for each in held] == [optimizer]
        if name == "tf_keras":
            assert of_tf_keras.inner_optimizer(scaled) is optimizer
            assert of_tf_keras.inner_optimizer(optimizer) is optimizer


@relied_on(
    "kerases.serializing_by keras.serialization tf_keras.serialization",
    "configs without the data in them; layers that stand twice, and no code that a file carries",
)
def _serialization(folder: Path) -> None:
    for name, kit in KERASES.items():
        seen: list[str] = []
        lib = kerases.of(name).serialization()

        def noting(original: Callable[[Any], Any], seen: list[str] = seen) -> Callable[[Any], Any]:
            def serialize(obj: Any) -> Any:
                seen.append(type(obj).__name__)
                return original(obj)

            return serialize

        with kerases.serializing_by(name, noting), lib.ObjectSharingScope(), lib.SafeModeScope(True):
            kit.saving.serialize_keras_object(kit.layers.Dense(1))
        assert {"Dense", "GlorotUniform"} <= set(seen)
        noted = len(seen)
        kit.saving.serialize_keras_object(kit.layers.Dense(1))
        assert len(seen) == noted


@relied_on("keras.decoded tf_keras.decoded", "configs in HDF5 files and SavedModels")
def _decoded(folder: Path) -> None:
    for name in KERASES:
        assert kerases.of(name).decoded({"a": [1, {"class_name": "__tuple__", "items": [2]}]}) == {"a": [1, (2,)]}


@relied_on("keras.objects_in_scope tf_keras.objects_in_scope", "classes of the user's own, known to a file's reader")
def _scopes(folder: Path) -> None:
    for name, kit in KERASES.items():
        with kit.saving.custom_object_scope({"Mine": int}):
            assert kerases.of(name).objects_in_scope() == {"Mine": int}
        assert "Mine" not in kerases.of(name).objects_in_scope()


@relied_on(
    "keras.model_of_old_config tf_keras.model_of_old_config keras.load_old_weights tf_keras.load_old_weights",
    "models in HDF5, Keras's format of old",
)
def _old_files(folder: Path) -> None:
    for name, kit in KERASES.items():
        model, path = kit.Sequential([kit.Input((2,)), kit.layers.Dense(1)]), str(folder / f"{name}.h5")
        model.save(path)
        with h5py.File(path) as file:
            config = kerases.of(name).decoded(json.loads(file.attrs["model_config"]))
            made = kerases.of(name).model_of_old_config(config, {})
            kerases.of(name).load_old_weights(file["model_weights"], made)
        assert all(map(np.array_equal, made.get_weights(), model.get_weights()))


@relied_on(
    "keras.load_without tf_keras.load_without keras.load_assets tf_keras.load_assets",
    "weights of a .keras file alone, and its vocabularies",
)
def _files(folder: Path) -> None:
    for name, kit in KERASES.items():
        path = str(folder / f"{name}.keras")
        model_of(name).save(path)
        other = kit.models.clone_model(model_of(name))
        other.compile("adam", "mse")
        kerases.of(name).load_without([other.optimizer], path, other)
        assert all(map(np.array_equal, other.get_weights(), model_of(name).get_weights()))
        assert int(other.optimizer.iterations.numpy()) == 0
        (folder / name).mkdir()
        kerases.of(name).load_assets(str(folder / name), other)


@relied_on("keras.save_state tf_keras.save_state keras.store_class tf_keras.store_class", "Keras's places of weights")
def _places(folder: Path) -> None:
    from ckptflow.interop.keras.places import places_of

    for name in KERASES:
        found = places_of(model_of(name), "keras" if name == "keras" else "tf_keras").shapes
        assert {place: shape for place, shape in found.items() if place.startswith("layers/dense/")} == {
            "layers/dense/vars/0": (3, 1),
            "layers/dense/vars/1": (1,),
        }


class Noted(NamedTuple):
    """What a fit says of itself in `on_train_begin`."""

    lists: list[Any]
    framework: str
    model: Any
    epochs: range
    data: Any


@functools.cache
def noted_in_fit(framework: str) -> Noted:
    found: list[Noted] = []

    class Callback(KERASES[framework].callbacks.Callback):  # type: ignore[misc]
        def on_train_begin(self, logs: Any = None) -> None:
            lists = list(kerases.callback_lists(self))
            fit = kerases.fit_above(lists[0][1].f_back)
            assert fit is not None
            found.append(Noted([each for each, _ in lists], *fit))

    dataset = tf.data.Dataset.from_tensors((np.ones((4, 3)), np.ones((4, 1))))
    model_of(framework).fit(dataset, epochs=3, initial_epoch=2, verbose=0, callbacks=[Callback()])
    return found[0]


@relied_on(
    "kerases.callback_lists kerases.fit_above keras.fit_data_class tf_keras.fit_data_class",
    "the fit that calls a callback, to begin at the batch where the checkpoint was made",
)
def _fits(folder: Path) -> None:
    for name in KERASES:
        noted = noted_in_fit(name)
        assert (noted.framework, noted.epochs, len(noted.lists)) == (name, range(2, 3), 1)
        assert noted.model is model_of(name)
        assert isinstance(noted.data, kerases.of(name).fit_data_class())


@relied_on(
    "keras.FitData keras.FitModel tf_keras.FitData tf_keras.FitModel",
    "where a fit's loop stands, and what its batches come from",
)
def _fit_data(folder: Path) -> None:
    for name in KERASES:
        noted = noted_in_fit(name)
        for view in (kerases.of(name).FitData(noted.data), kerases.of(name).FitModel(noted.model)):
            attributes = [key for key, value in vars(type(view)).items() if isinstance(value, Attribute | property)]
            assert attributes
            for attribute in attributes:
                getattr(view, attribute)  # raises where there is none
        assert kerases.of(name).FitData(noted.data).dataset is not None
    data = of_keras.FitData(noted_in_fit("keras").data)
    assert [callable(each) for each in (data.batches, data.make_iterator)] == [True, True]


@relied_on("keras.SWAPPED", "whether the averages are in the place of a model's weights")
def _swapped(folder: Path) -> None:
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(use_ema=True), "mse")
    model.optimizer.build(model.trainable_variables)
    swapping = keras.callbacks.SwapEMAWeights()
    swapping.set_model(model)
    found = []
    for call in (lambda: None, swapping.on_test_begin, swapping.on_test_end):
        call()
        found.append(vars(swapping)[of_keras.SWAPPED])
    assert found == [False, True, False]


@relied_on("tf_keras.Nadam tf_keras.U_PRODUCTS", "what Nadam counts in plain Python")
def _nadam(folder: Path) -> None:
    optimizer = tf_keras.optimizers.Nadam()
    optimizer.build([tf.Variable(1.0)])
    found = of_tf_keras.Nadam(optimizer)
    assert (found.u_products, len(found.momentums)) == (1, 1)
    found.u_products = 3
    assert vars(optimizer)[of_tf_keras.U_PRODUCTS] == 3


@relied_on(
    "tf_keras.make_slots tf_keras.SLOTS tf_keras.HYPER tf_keras.HYPERS_MADE tf_keras.BUILT tf_keras.VARIABLES "
    "tf_keras.OF_OPTIMIZERS",
    "slots and hyperparameters of optimizers, of old and new, and whether there are any yet",
)
def _optimizers(folder: Path) -> None:
    variable = tf.Variable(1.0)
    old = tf_keras.optimizers.legacy.SGD(momentum=0.5)
    assert not vars(old)[of_tf_keras.HYPERS_MADE]
    of_tf_keras.make_slots(old, [variable])
    assert vars(old)[of_tf_keras.HYPERS_MADE]
    assert {"learning_rate", "momentum"} <= set(vars(old)[of_tf_keras.HYPER])
    assert len(vars(old)[of_tf_keras.SLOTS][of_tensorflow.unique_id(variable)]) == 1
    new = tf_keras.optimizers.SGD(momentum=0.5)
    assert of_tf_keras.BUILT not in vars(new)
    new.build([variable])
    assert vars(new)[of_tf_keras.BUILT]
    held = [name for each in (old, new) for name in of_tf_keras.VARIABLES if name in vars(each)]
    assert sorted(held) == sorted(of_tf_keras.VARIABLES)
    assert set(of_tf_keras.VARIABLES) <= set(of_tf_keras.OF_OPTIMIZERS)


@relied_on("tf_keras.TRACKED tf_keras.COALESCED", "what a layer and an optimizer track, as it is now")
def _tracked_by_tf_keras(folder: Path) -> None:
    model = model_of("tf_keras")
    assert of_tf_keras.TRACKED in vars(model)
    dict(tf.train.TrackableView.children(model.optimizer))
    assert vars(model.optimizer).pop(of_tf_keras.COALESCED) is not None


@relied_on(
    "tf_keras.STATEFUL tf_keras.STATES tf_keras.WEIGHTS tf_keras.NAME", "a recurrent layer's states; own weights, name"
)
def _states(folder: Path) -> None:
    layer = tf_keras.layers.LSTM(2, stateful=True)
    layer(np.ones((1, 2, 3), np.float32))
    found = vars(layer)
    assert (found[of_tf_keras.STATEFUL], len(found[of_tf_keras.STATES])) == (True, 2)
    dense = tf_keras.layers.Dense(1)
    dense.build((None, 2))
    assert [len(vars(dense)[name]) for name in of_tf_keras.WEIGHTS] == [2, 0]
    assert vars(dense)[of_tf_keras.NAME] == dense.name


@relied_on("tf_keras.without_autocast", "variables under mixed precision, in their own dtype")
def _autocast(folder: Path) -> None:
    layer = tf_keras.layers.Dense(1, dtype="mixed_float16")
    layer.build((None, 2))
    found = of_tf_keras.without_autocast(layer.kernel)
    assert type(found) is type(tf.Variable(1.0))
    assert found.handle is layer.kernel.handle


@relied_on(
    "keras.is_functional tf_keras.is_functional tf_keras.calls_in tf_keras.OF_GRAPHS", "models of inputs and outputs"
)
def _functional(folder: Path) -> None:
    for name, kit in KERASES.items():
        assert kerases.of(name).is_functional(model_of(name))
        assert not kerases.of(name).is_functional(kit.Model())
    (dense,) = (layer for layer in kerases.layers_in(model_of("tf_keras")) if layer.name == "outer")
    assert [hasattr(call, "call_args") for call in of_tf_keras.calls_in(dense)] == [True]
    assert set(vars(model_of("tf_keras"))) >= of_tf_keras.OF_GRAPHS


@relied_on("tf_keras.BUILT_WITH tf_keras.make_metrics", "files of a subclassed model, and of one not yet trained")
def _built_with(folder: Path) -> None:
    model = tf_keras.Sequential([tf_keras.layers.Dense(1)])
    assert getattr(model, of_tf_keras.BUILT_WITH) is None
    model.build((None, 2))
    assert tuple(getattr(model, of_tf_keras.BUILT_WITH)) == (None, 2)
    model.compile("sgd", "mse", metrics=["mae"])
    assert not model.metrics
    of_tf_keras.make_metrics(model)
    assert [metric.name for metric in model.metrics] == ["loss", "mae"]


@relied_on("tf_keras.LAYERS_OF_2_13", "weights files of Keras 2.13")
def _of_2_13(folder: Path) -> None:
    assert of_tf_keras.LAYERS_OF_2_13 == "_layer_checkpoint_dependencies"  # it stands in files; today's Keras has none


@relied_on("tf_keras.layer_of_old", "which class an old file means by the name of a layer")
def _layer_of_old(folder: Path) -> None:
    assert of_tf_keras.layer_of_old("Dense") is tf_keras.layers.Dense
    assert of_tf_keras.layer_of_old("Nothing") is None


@relied_on("tf_keras.weights_as_loaded", "weights of a cuDNN layer of old in a layer of today")
def _weights_as_loaded(folder: Path) -> None:
    layer = tf_keras.layers.GRU(2, reset_after=True)
    layer.build((None, 2, 3))
    weights = layer.get_weights()
    found = of_tf_keras.weights_as_loaded(layer, weights, "2", "tensorflow")
    assert all(map(np.array_equal, found, weights))


@relied_on("tf_keras.listing_only", "the lists of variables in a SavedModel, without vocabularies")
def _listing(folder: Path) -> None:
    asked: list[Any] = []
    with of_tf_keras.listing_only(lambda each: asked.append(each) or True):  # type: ignore[func-returns-value]
        model_of("tf_keras").save(str(folder / "saved"), save_format="tf")
    assert any(isinstance(each, tf.Variable) for each in asked)


# Keras 3


@relied_on("keras.VALUE keras.value_of", "a variable's value as it is, and whether another one has taken its place")
def _value(folder: Path) -> None:
    variable = keras.Variable(1.0)
    assert isinstance(of_keras.value_of(variable), tf.Variable)
    assert vars(variable)[of_keras.VALUE] is of_keras.value_of(variable)


@relied_on(
    "keras.TRACKED keras.LISTS_OF_LAYERS keras.OF_TRAINING keras.FUNCTIONAL keras.OF_METRICS",
    "what Keras tracks of layers, models and metrics, which TensorFlow's graph loses",
)
def _tracked(folder: Path) -> None:
    model = model_of("keras")
    assert set(of_keras.LISTS_OF_LAYERS) <= set(of_keras.TRACKED) <= set(vars(model))
    assert set(of_keras.OF_TRAINING) <= set(vars(model))
    assert of_keras.FUNCTIONAL in vars(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
    assert set(of_keras.OF_METRICS) <= set(vars(keras.metrics.Mean()))


@relied_on(
    "keras.TRAINED keras.ALL keras.OF_OPTIMIZERS keras.trained_by keras.variables_of_optimizer keras.ITERATIONS "
    "keras.COUNTERS keras.RATES keras.EDGES_OF_MODELS",
    "which slot is of which variable; optimizers and models in an object graph",
)
def _of_optimizers(folder: Path) -> None:
    model = model_of("keras")
    optimizer = model.optimizer
    assert [id(each) for each in of_keras.trained_by(optimizer)] == [id(each) for each in model.trainable_variables]
    assert {id(each) for each in of_keras.variables_of_optimizer(optimizer)} == {id(v) for v in optimizer.variables}
    assert set(of_keras.OF_OPTIMIZERS) <= set(vars(optimizer))
    edges = set(tf.train.TrackableView.children(optimizer))
    assert {of_keras.TRAINED, of_keras.ALL, of_keras.ITERATIONS} <= edges
    assert edges & of_keras.COUNTERS
    assert edges & of_keras.RATES
    assert of_keras.EDGES_OF_MODELS & set(tf.train.TrackableView.children(model))


@relied_on("keras.INPUTS keras.SHAPES keras.layer_of", "the inputs and outputs of a signature, by name")
def _inputs(folder: Path) -> None:
    inputs = {"a": keras.Input((2,), name="a")}
    model = keras.Model(inputs, keras.layers.Dense(1, name="out")(inputs["a"]))
    assert set(getattr(model, of_keras.INPUTS)) == {"a"}
    assert [of_keras.layer_of(each).name for each in model.outputs] == ["out"]
    assert of_keras.layer_of(np.ones(1)) is None
    layer = keras.layers.Dense(1)
    layer.build((None, 2))
    assert getattr(layer, of_keras.SHAPES)["input_shape"] == (None, 2)


@relied_on("keras.trace", "variables of a model whose build leaves layers unbuilt")
def _trace(folder: Path) -> None:
    model = keras.Sequential([keras.layers.Dense(1)])
    of_keras.trace(model, keras.KerasTensor((None, 2)))
    assert [tuple(each.shape) for each in model.layers[0].weights] == [(2, 1), (1,)]


@relied_on("keras.symbol", "what a config of Keras 3 names")
def _public(folder: Path) -> None:
    assert of_keras.symbol("keras.layers.Dense") is keras.layers.Dense


@relied_on("keras.run_hooks_in_time", "a callback that is told of each batch when it has ended")
def _hooks(folder: Path) -> None:
    callbacks = keras.callbacks.CallbackList([])
    of_keras.run_hooks_in_time(callbacks)
    assert vars(callbacks)["_async_train"] is False


@relied_on("keras.CALIBRATED keras.CALIBRATED_KERNEL keras.KERNEL", "layers that GPTQ or AWQ has calibrated")
def _calibrated(folder: Path) -> None:
    for mode, flag in of_keras.CALIBRATED.items():
        layer = keras.layers.Dense(4, dtype=f"{mode}/4/8_from_float32")
        layer.build((None, 8))
        assert vars(layer)[flag] is False
        assert vars(layer)[of_keras.CALIBRATED_KERNEL].shape == (2, 8)
        assert of_keras.KERNEL not in vars(layer)
        plain = keras.layers.Dense(4)
        plain.build((None, 8))
        assert of_keras.KERNEL in vars(plain)
