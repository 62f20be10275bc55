from __future__ import annotations

import contextlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ckptflow
from ckptflow.errors import CorruptCheckpointError, UsageError
from ckptflow.interop.keras.config import build_model, build_optimizer, build_with_optimizer
from ckptflow.interop.untrusted import budget
from ckptflow.interop.untrusted.keras_trust import check_config
from ckptflow.state.configs import describe
from ckptflow.state.kinds import is_built
from ckptflow.state.tree import walk
from tests.interop import keras_configs
from tests.interop.models import CASES, KERASES

FRAMEWORKS: dict[str, Any] = {"keras": keras, "tf_keras": tf_keras}


def described(state: dict[str, Any]) -> dict[str, Any]:
    """What a manifest would hold of the state's models and optimizers."""
    return dict(json.loads(json.dumps(describe(walk(state)))))


def small(framework: str, **compiled: Any) -> Any:
    """A compiled model of one layer."""
    kit = FRAMEWORKS[framework]
    model = kit.Sequential([kit.layers.Input((3,)), kit.layers.Dense(2)])
    model.compile(**compiled)
    return model


@pytest.mark.parametrize(
    ("name", "framework"),
    [
        *((name, "keras") for name in ("dense", "text", "subclassed")),
        *((name, "tf_keras") for name in ("transformer", "many_inputs", "subclassed")),
    ],
)
def test_a_model_is_made_again_from_what_the_manifest_says(name: str, framework: str) -> None:
    model = CASES[name].make(framework)
    tree = walk({"model": model})
    made = build_model(described({"model": model})["model"], "model", stored_bytes=2**19)
    names = {spec.name: spec.shape for spec in walk({"model": made}).specs if not spec.metric}
    dynamic = {leaf.name for leaf in tree.leaves if leaf.name.endswith("/vocabulary")}
    assert {each: shape for each, shape in names.items() if each not in dynamic} == {
        spec.name: spec.shape for spec in tree.specs if not spec.metric and spec.name not in dynamic
    }
    assert dynamic <= set(names)
    assert type(made) is type(model)
    assert is_built(made.optimizer)
    assert json.dumps(made.get_compile_config()) == json.dumps(model.get_compile_config())


@pytest.mark.parametrize("framework", KERASES)
def test_a_loss_that_is_a_lambda_is_left_out_and_the_optimizer_stays(
    framework: str, caplog: pytest.LogCaptureFixture
) -> None:
    kit = FRAMEWORKS[framework]
    model = small(framework, optimizer=kit.optimizers.SGD(0.25, momentum=0.5), loss=lambda y, p: y - p, metrics=["mae"])
    entry = described({"model": model})["model"]
    with caplog.at_level(logging.WARNING, "ckptflow"):
        made = build_model(entry, "model")
    assert "without its loss" in caplog.text
    assert made.optimizer.get_config() == model.optimizer.get_config()
    assert is_built(made.optimizer)
    trusted = build_model(entry, "model", unsafe=True)
    loss = trusted.compute_loss(x=None, y=tf.ones((1, 2)), y_pred=tf.zeros((1, 2)))
    assert float(loss) == 1.0


@pytest.mark.parametrize("framework", KERASES)
def test_what_a_class_must_have_is_said(framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = f"unregistered_{framework}"
    (tmp_path / f"{module}.py").write_text(keras_configs.UNREGISTERED.replace("KERAS", framework))
    monkeypatch.syspath_prepend(tmp_path)
    own = __import__(module)
    kit = FRAMEWORKS[framework]
    plain = own.Plain()
    plain(np.zeros((1, 3), "f4"))
    without = described({"model": plain})["model"]
    without.pop("config", None)  # as where get_config raises
    with pytest.raises(UsageError, match=rf"{module}\.Plain.*get_config.*model=.*--import"):
        build_model(without, "model")

    layers = [kit.layers.Input((3,)), own.Twice(), kit.layers.Dense(2, activation=own.swell, kernel_initializer="ones")]
    model = kit.Sequential(layers)
    entry = described({"model": model})["model"]
    with pytest.raises(UsageError, match=rf"({module}\.Twice|'swell').*--import"):
        build_model(entry, "model")
    made = build_model(entry, "model", imports=(module,))
    assert np.asarray(made(np.ones((1, 3), "f4"))).tolist() == [[18.0, 18.0]]


@pytest.mark.parametrize("framework", KERASES)
def test_a_hostile_config_is_refused_before_keras_sees_it(
    framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    keras_configs.place_probes(tmp_path, mark)
    monkeypatch.syspath_prepend(tmp_path)
    secret = tmp_path / "secret"
    secret.write_text("a\nb\n")
    refused = []
    for name, config in keras_configs.hostile(framework, str(secret)).items():
        with pytest.raises(UsageError, match="nothing was run"):
            check_config(config, framework, name)  # type: ignore[arg-type]
        entry = {"kind": "model", "framework": framework, "class": name, "variables": 0, "config": config}
        if name != "a vocabulary file":  # which is just not read: the words are in the checkpoint
            with pytest.raises(UsageError):
                build_model(entry, "model")
        refused.append(name)
    assert len(refused) >= 16
    assert not mark.exists()
    assert secret.read_text() == "a\nb\n"
    assert not {"hostile_probe", "keras_probe", "tf_keras_probe"} & set(sys.modules)


def test_keras_itself_would_have_run_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark, gone = tmp_path / "mark", tmp_path / "gone"
    (tmp_path / "hostile_probe.py").write_text(keras_configs.PROBE.replace("MARK", repr(str(mark))))
    monkeypatch.syspath_prepend(tmp_path)
    try:
        tf_keras.saving.deserialize_keras_object(keras_configs.layer("hostile_probe", "Probe"))
    finally:
        sys.modules.pop("hostile_probe", None)
    assert mark.exists()
    gone.write_text("")
    with contextlib.suppress(Exception):  # in the end, as what was called gives no tensor
        tf_keras.saving.deserialize_keras_object(keras_configs.hostile("tf_keras", str(gone))["one that deletes"])
    assert not gone.exists()


@pytest.mark.parametrize("framework", KERASES)
def test_lambda_layers_are_built_for_those_who_say_so(framework: str) -> None:
    kit = FRAMEWORKS[framework]
    model = kit.Sequential([kit.layers.Input((3,)), kit.layers.Lambda(lambda x: x + 41.0)])
    entry = described({"model": model})["model"]
    with pytest.raises(UsageError, match="--unsafe"):
        build_model(entry, "model")
    made = build_model(entry, "model", unsafe=True)
    assert np.asarray(made(np.ones((1, 3), "f4"))).tolist() == [[42.0] * 3]


def test_operations_that_tf_keras_put_in_layers_are_built() -> None:
    inputs = tf_keras.Input((3,))
    outputs = tf.nn.relu(tf.reduce_mean(inputs, axis=1, keepdims=True)) + inputs[:, :1] * 2.0
    model = tf_keras.Model(inputs, tf.concat([outputs, tf.cast(inputs > 0.0, tf.float32)], 1))
    made = build_model(described({"model": model})["model"], "model")
    data = np.asarray([[1.0, -2.0, 4.0]], "f4")
    assert np.array_equal(made(data), model(data))


@pytest.mark.parametrize("framework", KERASES)
def test_a_vocabulary_file_is_not_read_again(framework: str, tmp_path: Path) -> None:
    kit = FRAMEWORKS[framework]
    words = tmp_path / "words.txt"
    words.write_text("ada\ngrace\n")
    model = kit.Sequential([kit.Input((1,), dtype="string"), kit.layers.StringLookup(vocabulary=str(words))])
    entry = described({"model": model})["model"]
    words.unlink()
    made = build_model(entry, "model")
    assert {spec.name for spec in walk({"model": made}).specs} == {spec.name for spec in walk({"model": model}).specs}


LARGE_OPTIMIZERS: dict[str, Any] = {
    "keras": lambda: keras.optimizers.Adam(amsgrad=True, use_ema=True, gradient_accumulation_steps=2),
    "tf_keras": lambda: tf_keras.optimizers.Adam(amsgrad=True, use_ema=True),
}


@pytest.mark.usefixtures("unprobed")
@pytest.mark.parametrize("framework", KERASES)
def test_an_optimizer_that_was_not_used_yet(framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is stored of its slots, which take several times the model."""
    kit = FRAMEWORKS[framework]
    model = kit.Sequential([kit.layers.Input((64,)), kit.layers.Dense(512)])
    model.compile(LARGE_OPTIMIZERS[framework](), "mse")
    with ckptflow.CheckpointManager(tmp_path / "run", {"model": model}) as manager:
        manager.save(1)
    monkeypatch.setattr(budget, "VARIABLES_FREE_BYTES", 2**12)
    ckptflow.export_checkpoint(tmp_path / "run", tmp_path / "m.keras")
    monkeypatch.setattr(budget, "VARIABLES_RATIO", 2)
    with pytest.raises(UsageError, match=rf"asks for variables of more than.*model=.*{budget.MEMORY_VARIABLE}"):
        ckptflow.export_checkpoint(tmp_path / "run", tmp_path / "none.keras")
    monkeypatch.setenv(budget.MEMORY_VARIABLE, str(2**24))
    ckptflow.export_checkpoint(tmp_path / "run", tmp_path / "more.keras")


@pytest.mark.parametrize("framework", KERASES)
def test_a_config_that_asks_for_too_much_takes_no_memory(framework: str) -> None:
    entry = described({"model": small(framework, optimizer="adam")})["model"]
    build_model(entry, "model", stored_bytes=2000)
    entry["config"]["config"]["layers"][1]["config"]["units"] = 10**13
    with pytest.raises(UsageError, match="asks for variables"):
        build_model(entry, "model", stored_bytes=2000)
    for depth in (500, 20_000):
        nested: Any = "x"
        for _ in range(depth):
            nested = [nested]
        entry["config"]["config"]["layers"][1]["config"]["kernel_initializer"] = nested
        with pytest.raises((CorruptCheckpointError, UsageError)):
            build_model(entry, "model")


@pytest.mark.parametrize("wrong", [{}, {"framework": "jax"}, {"framework": "keras", "config": {}}, {
    "framework": "keras", "config": keras_configs.layer("keras.losses", "MeanSquaredError")}])  # fmt: skip
def test_an_entry_that_is_no_model(wrong: dict[str, Any]) -> None:
    with pytest.raises((CorruptCheckpointError, UsageError)):
        build_model({"class": "x", "variables": 0, **wrong}, "model")


@pytest.mark.parametrize("framework", KERASES)
def test_an_optimizer_of_its_own_has_its_config(framework: str) -> None:
    kit = FRAMEWORKS[framework]
    model = kit.Sequential([kit.layers.Input((3,)), kit.layers.Dense(2)])
    rate = kit.optimizers.schedules.ExponentialDecay(0.1, 7, 0.5)
    optimizer = kit.optimizers.SGD(rate, momentum=0.9)
    optimizer.build(model.trainable_variables)
    found = described({"model": model, "optimizer": optimizer})
    made = build_optimizer(found["optimizer"], "optimizer")
    assert made.get_config() == optimizer.get_config()
    assert type(made) is type(optimizer)

    model.compile(optimizer, "mse")
    assert "config" not in described({"model": model})["model/optimizer"]  # the compile config has it
    assert "config" not in described({"model": model, "optimizer": optimizer})["optimizer"]
    assert build_optimizer({"framework": framework, "class": "mine.Own"}, "optimizer") is None


def test_the_inner_optimizer_is_a_part_of_the_outer() -> None:
    outer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.5))
    found = described({"optimizer": outer})
    assert [path for path, entry in found.items() if "config" in entry] == ["optimizer"]
    assert build_optimizer(found["optimizer"], "optimizer").inner_optimizer.get_config()["learning_rate"] == 0.5


def test_a_layer_that_is_shared_stays_one() -> None:
    inputs = keras.Input((4, 3))
    shared = keras.layers.Dense(3, name="shared")
    model = keras.Model(inputs, keras.layers.TimeDistributed(shared)(shared(inputs)))
    assert len(model.trainable_variables) == 2
    made = build_model(described({"model": model})["model"], "model")
    assert len(made.trainable_variables) == 2


@pytest.mark.parametrize("framework", KERASES)
def test_an_optimizer_that_the_model_does_not_take_alone(framework: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its own `compile` wants what only the program has."""
    kit = FRAMEWORKS[framework]

    class Taught(kit.Sequential):  # type: ignore[misc,name-defined]
        def compile(self, optimizer: Any, teacher: Any) -> None:
            super().compile(optimizer, "mse")

    models = described({"model": Taught([kit.layers.Input((3,)), kit.layers.Dense(2)]), "by": kit.optimizers.Adam()})
    with kit.saving.custom_object_scope({"Taught": Taught}):
        made = build_with_optimizer(models, "model", "by")
    assert [tuple(variable.shape) for variable in made.weights] == [(3, 2), (2,)]
    assert getattr(made, "optimizer", None) is None
    assert "by is left out: compile() of its model does not take it alone" in caplog.text
