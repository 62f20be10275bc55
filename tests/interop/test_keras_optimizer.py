"""An optimizer whose state does not fit: the weights come all the same, and nothing of it goes to a wrong place."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tf_keras

import ckptflow
from ckptflow.errors import StateMismatchError
from ckptflow.interop.keras import files as keras_files
from tests.interop.models import KERASES, without_graph

pytestmark = pytest.mark.usefixtures("unprobed")

FRAMEWORKS: dict[str, Any] = {"keras": keras, "tf_keras": tf_keras}
SUFFIXES = (".keras", ".h5", ".weights.h5")
WHOLE = (".keras", ".h5")


def make(framework: str, optimizer: Any = "adam", *, is_frozen: bool = False) -> Any:
    """A compiled model, with its first layer frozen or not."""
    kit = FRAMEWORKS[framework]
    layers = [kit.layers.Dense(4, name="first"), kit.layers.Dense(4, name="second"), kit.layers.Dense(2, name="head")]
    model = kit.Sequential([kit.layers.Input((4,)), *layers])
    model.layers[0].trainable = not is_frozen
    model.compile(optimizer, "mean_squared_error")
    return without_graph(model)


def train(model: Any) -> Any:
    """The model after three steps, the last of them on other data."""
    for scale in (1, 1, 2):
        model.train_on_batch(np.full((4, 4), scale, "f4"), np.ones((4, 2), "f4"))
    return model


def save(model: Any, path: Path) -> Path:
    """As its own Keras saves it."""
    (model.save_weights if path.name.endswith(".weights.h5") else model.save)(str(path))
    return path


def have_equal_weights(one: Any, other: Any) -> bool:
    return all(map(np.array_equal, one.get_weights(), other.get_weights()))


def slots(model: Any) -> list[Any]:
    variables = model.optimizer.variables
    return [np.array(each) for each in (variables() if callable(variables) else variables) if len(each.shape)]


@pytest.mark.parametrize("framework", KERASES)
def test_layers_frozen_after_compile(framework: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = train(make(framework))
    model.layers[0].trainable = False
    for suffix in WHOLE:
        path = save(model, tmp_path / f"frozen{suffix}")
        caplog.clear()
        with caplog.at_level(logging.WARNING, "ckptflow"):
            ckptflow.import_model(path, tmp_path / f"run{suffix}")
        assert "the first that differs is" in caplog.text
        assert "optimizer=False" in caplog.text
        again = make(framework, is_frozen=True)
        with ckptflow.CheckpointManager(tmp_path / f"run{suffix}", {"model": again}) as manager:
            manager.restore_latest()
        assert have_equal_weights(again, model)
        assert int(again.optimizer.iterations) == 0
        assert not any(each.any() for each in slots(again))


@pytest.mark.parametrize(
    ("suffix", "framework"),
    [(".keras", "keras"), (".weights.h5", "keras"), (".h5", "tf_keras"), (".weights.h5", "tf_keras")],
)
def test_a_model_that_was_frozen_and_compiled_anew(
    suffix: str, framework: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All layers have one shape, so that slots by their position would go to another variable without a word."""
    model = train(make(framework))
    path = save(model, tmp_path / f"m{suffix}")
    for is_partial in (False, True):
        caplog.clear()
        frozen = make(framework, is_frozen=True)
        with caplog.at_level(logging.WARNING, "ckptflow"):
            ckptflow.import_model(path, tmp_path / f"run{is_partial}", model=frozen, partial=is_partial)
        assert have_equal_weights(frozen, model)
        if is_partial and suffix in WHOLE:  # by the names of the variables
            kept = {each.tobytes() for each in slots(model)}
            assert slots(frozen)
            assert all(each.tobytes() in kept for each in slots(frozen))
        else:
            assert "the first that differs is" in caplog.text
            assert int(frozen.optimizer.iterations) == 0
            assert not any(each.any() for each in slots(frozen))
        train(frozen)
    same = make(framework)
    ckptflow.import_model(path, tmp_path / "same", model=same)
    assert int(same.optimizer.iterations) == 3
    assert all(map(np.array_equal, slots(same), slots(model)))


def alike(framework: str, optimizer: Any = "adam", *, frozen: str = "") -> Any:
    """A compiled model of three layers of one shape, one of them frozen."""
    kit = FRAMEWORKS[framework]
    layers = [kit.layers.Dense(4, name=name) for name in ("first", "second", "head")]
    model = kit.Sequential([kit.layers.Input((4,)), *layers])
    if frozen:
        model.get_layer(frozen).trainable = False
    model.compile(optimizer, "mean_squared_error")
    return without_graph(model)


def trained_alike(model: Any) -> Any:
    for scale in (1, 2):
        model.train_on_batch(np.full((4, 4), scale, "f4"), np.ones((4, 4), "f4"))
    return model


@pytest.mark.parametrize("framework", KERASES)
@pytest.mark.parametrize("suffix", WHOLE)
def test_slots_of_other_variables_of_the_same_shapes(
    suffix: str, framework: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As many layers are frozen, of the same shapes, and others: by their order slots would go to the wrong ones."""
    model = trained_alike(alike(framework, frozen="first"))
    path = save(model, tmp_path / f"m{suffix}")
    other = alike(framework, frozen="head")
    with caplog.at_level(logging.WARNING, "ckptflow"):
        ckptflow.import_model(path, tmp_path / "other", model=other)
    assert "was not trained there" in caplog.text
    assert not any(each.any() for each in slots(other))
    for name in ("first", "second", "head"):
        assert have_equal_weights(other.get_layer(name), model.get_layer(name))
    same = alike(framework, frozen="first")
    ckptflow.import_model(path, tmp_path / "same", model=same)
    assert all(map(np.array_equal, slots(same), slots(model)))
    assert any(each.any() for each in slots(same))


@pytest.mark.parametrize(
    ("name", "suffix", "framework"),
    [
        ("Adamax", ".keras", "keras"),
        ("AdamW", ".h5", "keras"),
        ("Adamax", ".h5", "tf_keras"),
        ("AdamW", ".keras", "tf_keras"),
    ],
)
def test_an_optimizer_with_as_many_slots(
    name: str, suffix: str, framework: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Adam's second slot is a mean of squares, Adamax's a maximum."""
    model = trained_alike(alike(framework))
    path = save(model, tmp_path / f"m{suffix}")
    other = alike(framework, getattr(FRAMEWORKS[framework].optimizers, name)())
    with caplog.at_level(logging.WARNING, "ckptflow"):
        ckptflow.import_model(path, tmp_path / "other", model=other)
    assert f"that of adam, another class than the model's {name.lower()}" in caplog.text.lower()
    assert not any(each.any() for each in slots(other))
    assert all(map(np.array_equal, other.get_weights(), model.get_weights()))


@pytest.mark.parametrize("suffix", ["weights.h5", "keras", "h5"])
def test_what_does_not_tell_an_optimizers_class_is_said_to(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Slots of tf_keras's Adam fit its Adamax; which it was stands in whole models alone."""

    def make(optimizer: str) -> Any:
        model = tf_keras.Sequential([tf_keras.layers.Input((3,)), tf_keras.layers.Dense(2)])
        model.compile(optimizer, "mse")
        without_graph(model).fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
        return model

    path, model = tmp_path / f"m.{suffix}", make("adam")
    (model.save_weights if suffix == "weights.h5" else model.save)(path)
    ckptflow.import_model(path, tmp_path / "run", model=make("adamax"))
    assert ("nor here which optimizer it was" in caplog.text) == (suffix == "weights.h5")
    assert ("is not taken" in caplog.text) == (suffix != "weights.h5")


@pytest.mark.parametrize("framework", KERASES)
def test_without_the_optimizer(framework: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = train(make(framework))
    with ckptflow.CheckpointManager(tmp_path / "origin", {"model": model}) as manager:
        manager.save(1)
    paths = [save(model, tmp_path / f"m{suffix}") for suffix in SUFFIXES]
    for name in ("m.safetensors", "m.ckpt"):
        paths.append(tmp_path / name)
        ckptflow.export_checkpoint(tmp_path / "origin", paths[-1])
    caplog.clear()
    for path in paths:
        for is_partial in (False, True):
            run = tmp_path / "runs" / f"{path.name}-{is_partial}"
            mine = make(framework, FRAMEWORKS[framework].optimizers.Adam(0.25))
            with caplog.at_level(logging.WARNING, "ckptflow"):
                ckptflow.import_model(path, run, model={"model": mine}, partial=is_partial, optimizer=False)
            assert have_equal_weights(mine, model), path
            assert (int(mine.optimizer.iterations), float(mine.optimizer.learning_rate)) == (0, 0.25), path
        run = tmp_path / "runs" / path.name
        ckptflow.import_model(path, run, optimizer=False)
        with ckptflow.open_checkpoint(run) as opened:
            names = {each.name for each in opened.manifest.tensors}
            assert not [each for each in names if "optimizer" in each and opened[each].any() and opened[each].shape]
    assert "does not fit" not in caplog.text


def test_by_names_what_does_not_fit_of_the_optimizer_does_not_keep_the_weights_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = train(make("keras"))
    with ckptflow.CheckpointManager(tmp_path / "origin", {"model": model}) as manager:
        manager.save(1)
    for name in ("m.safetensors", "m.ckpt"):
        path = tmp_path / name
        ckptflow.export_checkpoint(tmp_path / "origin", path)
        caplog.clear()
        mine = make("keras", "sgd", is_frozen=name.endswith("safetensors"))
        with caplog.at_level(logging.WARNING, "ckptflow"):
            ckptflow.import_model(path, tmp_path / f"run-{name}", model={"model": mine})
        assert (
            "the optimizer's state does not match and is not restored, it starts fresh: model/optimizer/" in caplog.text
        )
        assert have_equal_weights(mine, model)
        assert int(mine.optimizer.iterations) == 0
        other = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3, name="first")])
        with pytest.raises(StateMismatchError, match="model/first/kernel"):
            ckptflow.import_model(path, tmp_path / "none", model={"model": other})


def test_several_optimizers_in_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from keras.src.optimizers.multi_optimizer import OptimizerMap

    def several(pattern: str = ".*head/.*") -> Any:
        each = OptimizerMap(keras.optimizers.Adam(0.01))
        each[pattern] = keras.optimizers.SGD(0.01, momentum=0.9)
        return make("keras", keras.optimizers.MultiOptimizer(each))

    model = train(several())
    for suffix in SUFFIXES:
        path = save(model, tmp_path / f"m{suffix}")
        same, other = several(), make("keras")
        ckptflow.import_model(path, tmp_path / f"same{suffix}", model=same)
        assert have_equal_weights(same, model)
        assert all(map(np.array_equal, slots(same), slots(model)))
        caplog.clear()
        with caplog.at_level(logging.WARNING, "ckptflow"):
            ckptflow.import_model(path, tmp_path / f"other{suffix}", model=other)
        assert have_equal_weights(other, model)
        assert "the first that differs is" in caplog.text
        if suffix in WHOLE:
            read = keras_files.read_model(str(path))
            assert have_equal_weights(read, model)
            assert [type(each).__name__ for each in read.optimizer.optimizers] == ["SGD", "Adam"]
            assert int(read.optimizer.iterations) == 3
            assert all(map(np.array_equal, slots(read), slots(model)))
    # Keras looks variables up by a path that a model which was loaded does not have when it is compiled.
    caplog.clear()
    model = train(several("head/.*"))
    read = keras_files.read_model(str(save(model, tmp_path / "m.keras")))
    assert have_equal_weights(read, model)
    assert getattr(read, "optimizer", None) is None
    assert "The model is not compiled" in caplog.text


def test_a_file_of_keras_2_into_a_compiled_model_of_keras_3(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for optimizer in ("adam", "sgd"):
        model = train(make("tf_keras", optimizer))
        path = save(model, tmp_path / f"{optimizer}.h5")
        mine = make("keras", optimizer)
        with caplog.at_level(logging.WARNING, "ckptflow"):
            ckptflow.import_model(path, tmp_path / f"run-{optimizer}", model=mine)
        assert have_equal_weights(mine, model)
        assert int(mine.optimizer.iterations) == 0
        assert "the first that differs is" in caplog.text  # Keras 3 counts the learning rate as one
        caplog.clear()


def write_keras_2_0_5(path: Path, *, optimizer: str) -> list[Any]:
    """A whole model as Keras 2.0.5 wrote it, whose optimizer had its variables sorted by name; returns its weights."""

    def dense(name: str, units: int, **more: Any) -> dict[str, Any]:
        kernel = {"class_name": "VarianceScaling",
                  "config": {"scale": 1.0, "mode": "fan_avg", "distribution": "uniform", "seed": None}}  # fmt: skip
        config = {"name": name, "trainable": True, "units": units, "activation": "linear", "use_bias": True,
                  "kernel_initializer": kernel, "bias_initializer": {"class_name": "Zeros", "config": {}},
                  "kernel_regularizer": None, "bias_regularizer": None, "activity_regularizer": None,
                  "kernel_constraint": None, "bias_constraint": None, **more}  # fmt: skip
        return {"class_name": "Dense", "config": config}

    layers = [dense("z", 3, batch_input_shape=[None, 5], dtype="float32"), dense("a", 2)]
    configs = {"Adam": {"lr": 0.002, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-08, "decay": 0.0},
               "SGD": {"lr": 0.002, "momentum": 0.0, "decay": 0.0, "nesterov": False}}  # fmt: skip
    training: Any = {"optimizer_config": {"class_name": optimizer, "config": configs[optimizer]}, "metrics": [],
                     "loss": "mean_squared_error", "sample_weight_mode": None, "loss_weights": None}  # fmt: skip
    weights = {"z": [np.random.rand(5, 3).astype("f4"), np.random.rand(3).astype("f4")],
               "a": [np.random.rand(3, 2).astype("f4"), np.random.rand(2).astype("f4")]}  # fmt: skip
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"], file.attrs["backend"] = b"2.0.5", b"tensorflow"
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": layers}).encode()
        file.attrs["training_config"] = json.dumps(training).encode()
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = [b"z", b"a"]
        root.attrs["keras_version"], root.attrs["backend"] = b"2.0.5", b"tensorflow"
        for name, values in weights.items():
            group = root.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{kind}:0".encode() for kind in ("kernel", "bias")]
            for kind, value in zip(("kernel", "bias"), values, strict=True):
                group[f"{name}/{kind}:0"] = value
        arrays: list[Any] = [np.float32(7)]
        if optimizer == "Adam":
            ordered = [weights["a"][1], weights["a"][0], weights["z"][1], weights["z"][0]]
            arrays += [each * 0 + 0.5 for each in (*ordered, *ordered)]
        names = [f"training/{optimizer}/Variable_{number}:0" for number in range(len(arrays))]
        group = file.create_group("optimizer_weights")
        group.attrs["weight_names"] = [name.encode() for name in names]
        for name, array in zip(names, arrays, strict=True):
            group[name] = array
    return [*weights["z"], *weights["a"]]


@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
def test_a_file_of_keras_2_0_5(optimizer: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "old.hdf5"
    weights = write_keras_2_0_5(path, optimizer=optimizer)
    with caplog.at_level(logging.WARNING, "ckptflow"):
        ckptflow.import_model(path, tmp_path / "run")
    read = keras_files.read_model(str(path))
    assert all(map(np.array_equal, read.get_weights(), weights))
    assert type(read.optimizer).__name__ == optimizer
    assert float(read.optimizer.learning_rate) == pytest.approx(0.002)
    if optimizer == "Adam":
        assert (
            "the first that differs is training/Adam/Variable_1:0: [2] in the file, [5, 3] in the model" in caplog.text
        )
        assert not any(each.any() for each in slots(read))
    else:
        assert "does not fit" not in caplog.text
    layers = [keras.layers.Input((5,)), keras.layers.Dense(3), keras.layers.Dense(2)]
    mine = keras.Sequential(layers)
    mine.compile("adam", "mse")
    ckptflow.import_model(path, tmp_path / "mine", model=mine)
    assert all(map(np.array_equal, mine.get_weights(), weights))


@pytest.mark.parametrize("framework", KERASES)
def test_equal_slots_of_another_class_are_not_taken(
    framework: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Momentum of one and a squared average of the other have the same shapes in the same order."""
    kit = FRAMEWORKS[framework].optimizers
    ways: list[tuple[Any, Any, bool | None]] = [
        (kit.Adam(0.1), kit.Adamax, False),
        (kit.SGD(0.1, momentum=0.9), kit.RMSprop, False),
        (kit.Adam(0.1), kit.Adam, True),
    ]
    if framework == "keras":
        ways += [(kit.Adam(0.1), kit.AdamW, False), (kit.LossScaleOptimizer(kit.Adam(0.1)), kit.Adam, None)]
        ways += [(kit.LossScaleOptimizer(kit.Adam(0.1)), lambda: kit.LossScaleOptimizer(kit.Adam()), True)]
        ways += [(kit.LossScaleOptimizer(kit.Adam(0.1)), lambda: kit.LossScaleOptimizer(kit.Adamax()), False)]
    else:
        ways += [(kit.legacy.Adam(0.1), kit.legacy.Adam, True), (kit.legacy.Adam(0.1), kit.Adam, None)]
        ways += [(kit.Adam(0.1), kit.legacy.Adam, None)]
    for number, (saved, new, is_taken) in enumerate(ways):
        model = train(make(framework, saved))
        is_old = "legacy" in f"{type(saved).__module__} {getattr(new, '__module__', '')}"
        for suffix in (".h5",) if is_old else SUFFIXES[: 3 if framework == "keras" else 2]:
            caplog.clear()
            mine = make(framework, new())
            path = save(model, tmp_path / f"{number}{suffix}")
            with caplog.at_level(logging.WARNING, "ckptflow"):
                ckptflow.import_model(path, tmp_path / f"run{number}{suffix}", model=mine)
            assert have_equal_weights(mine, model)
            where = (number, suffix)
            if is_taken:
                assert all(map(np.array_equal, slots(mine), slots(model))), where
                assert any(each.any() for each in slots(mine)), where
            else:
                assert not any(each.any() for each in slots(mine)), where
                assert "is not taken" in caplog.text, where
                assert is_taken is None or f"of {class_of(saved)}" in caplog.text, where


@pytest.mark.parametrize("framework", KERASES)
def test_a_class_of_ones_own_is_told_by_each_of_its_names(
    framework: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be registered by another name than its own. A file of weights has a name that tells nothing."""
    kit = FRAMEWORKS[framework]

    @kit.saving.register_keras_serializable("tests", f"Other{framework}")
    class Own(kit.optimizers.Adam):  # type: ignore[misc, name-defined]
        pass

    for suffix in SUFFIXES:
        model = train(make(framework, Own(0.1)))
        path = save(model, tmp_path / f"m{suffix}")
        for new, is_taken in ((Own(), True), (kit.optimizers.Adamax(), suffix == ".weights.h5")):
            mine = make(framework, new)
            caplog.clear()
            with caplog.at_level(logging.WARNING, "ckptflow"):
                ckptflow.import_model(path, tmp_path / f"{is_taken}{suffix}{type(new).__name__}", model=mine)
            assert have_equal_weights(mine, model)
            assert is_taken == any(each.any() for each in slots(mine)), suffix
            assert is_taken == ("is not taken" not in caplog.text), suffix


def class_of(optimizer: Any) -> str:
    return type(getattr(optimizer, "inner_optimizer", optimizer)).__name__
