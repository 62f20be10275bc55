"""Small files of Keras's that take without end, or never end: an error, and little memory in the process that asks."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import pytest
import tf_keras

import ckptflow
from ckptflow.errors import CkptflowError, CorruptCheckpointError, UsageError
from ckptflow.interop.keras import files as keras_files
from ckptflow.interop.keras import weights as keras_weights
from ckptflow.interop.untrusted import budget, probe
from ckptflow.interop.untrusted.model_probe import check_builds
from ckptflow.state.configs import describe
from ckptflow.state.tree import walk
from tests.interop import hostile_keras, lying_keras
from tests.interop.forged import forge_models
from tests.interop.keras_readers import ORIGIN, write_all
from tests.processes import run_python
from tests.zygote import PROBE

ENDLESS = ".*(a+)+$z"  # a regular expression, for a name with many of these

SUFFIXES = {"keras": ".keras", "h5": ".h5", "weights": ".weights.h5"}


def sound(framework: str, kind: str, folder: Path) -> bytes:
    """The bytes of a small model's file."""
    kit = {"keras": keras, "tf_keras": tf_keras}[framework]
    source = kit.layers.Input((3,), name="in")
    inner = kit.layers.Dense(4, "relu")(source)
    model = kit.Model(source, kit.layers.Add()([kit.layers.Dense(2)(inner), kit.layers.Dense(2)(source)]))
    model.compile("adam", "mse")
    return bytes(write_all(model, "sound", folder)[kind].read_bytes())


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """This process took little."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


TAKE: dict[str, Callable[[Path], bytes]] = {
    "an operation on constants": lambda folder: hostile_keras.operation_on_constants(),
    "weights that are packed twice": hostile_keras.packed_twice,
    "weights that are long": lambda folder: hostile_keras.long_weights(),
    "a config of many objects": lambda folder: hostile_keras.nested_json(),
}


@pytest.mark.parametrize("what", TAKE)
def test_a_small_file_that_takes_without_end(what: str, tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    path.write_bytes(TAKE[what](tmp_path))
    assert path.stat().st_size < 2**18
    with pytest.raises(CorruptCheckpointError, match=budget.MEMORY_VARIABLE):
        keras_files.read_model(str(path))


def test_a_config_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.keras"
    path.write_bytes(hostile_keras.waits_for_itself())
    keras_files.is_whole_model(str(path))  # read by now, in the usual time
    monkeypatch.setenv(budget.TIME_VARIABLE, "3")
    with pytest.raises(CorruptCheckpointError, match=rf"no end within 3 s.*{budget.TIME_VARIABLE}"):
        keras_files.read_model(str(path))


def test_the_config_of_a_manifest(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = {"kind": "model", "framework": "keras", "class": "keras.Functional"}
    with pytest.raises(CorruptCheckpointError, match=rf"the config of model .*memory.*{budget.MEMORY_VARIABLE}"):
        check_builds({"model": described | {"config": hostile_keras.of_constants()}}, "model", None, 2**23, imports=())
    monkeypatch.setattr(probe, "PROGRAM", "import os; os.write(1, b'\\n'); os.kill(os.getpid(), 11)")
    for name in ("m.keras", "m.h5", "m.weights.h5"):
        with pytest.raises(CorruptCheckpointError, match=r"the config of model .*signal 11"):
            ckptflow.export_checkpoint(run, tmp_path / name)
    ckptflow.export_checkpoint(run, tmp_path / "m.safetensors")
    ckptflow.export_checkpoint(run, tmp_path / "m.keras", unsafe=True)


def of_units(units: int) -> dict[str, Any]:
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    found: dict[str, Any] = json.loads(json.dumps(describe(walk({"model": model}))))
    found["model"]["config"]["config"]["layers"][1]["config"]["units"] = units
    return found


def test_variables_that_are_refused_there_are_not_asked_for_here() -> None:
    with pytest.raises(UsageError, match=rf"^model .*asks for variables of more.*{budget.MEMORY_VARIABLE}"):
        check_builds(of_units(10**13), "model", None, 2**20, imports=())


def test_what_is_allowed_for_variables_is_not_less_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(budget.MEMORY_VARIABLE, "77")
    check_builds(of_units(2), "model", None, 2**20, imports=())


def muon(_: keras.Model) -> keras.optimizers.Optimizer:
    return keras.optimizers.Muon(0.1)


def by_name(model: keras.Model) -> keras.optimizers.Optimizer:
    """Of other optimizers for other variables, which regular expressions choose."""
    choice = keras.optimizers.OptimizerMap(keras.optimizers.SGD(0.1))
    choice["kernel"] = keras.optimizers.SGD(0.2)
    return keras.optimizers.MultiOptimizer(choice)


@pytest.mark.parametrize("make", [muon, by_name])
def test_an_optimizer_of_its_own_in_a_manifest(
    make: Callable[[keras.Model], keras.optimizers.Optimizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It chooses by regular expressions, some of which take time without end."""
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2, name="a" * 40)])
    optimizer = make(model)
    optimizer.build(model.trainable_variables)
    run = tmp_path / "run"
    with ckptflow.CheckpointManager(run, {"model": model, "optimizer": optimizer}) as manager:
        manager.save(1).result()
    ckptflow.export_checkpoint(run, tmp_path / "good.keras")

    def forge(models: dict[str, Any]) -> None:
        for inner in [path for path in models if path.startswith("optimizer/")]:
            del models[inner]  # else it is not clear which one it is
        config = models["optimizer"]["config"]["config"]
        if make is muon:
            config["exclude_layers"] = [ENDLESS]
        else:
            text = json.dumps(config)
            assert '"kernel"' in text
            models["optimizer"]["config"]["config"] = json.loads(text.replace('"kernel"', json.dumps(ENDLESS)))

    forge_models(run, forge)
    monkeypatch.setenv(budget.TIME_VARIABLE, "1")
    with pytest.raises(CorruptCheckpointError, match=r"the config of model .*no end within 1 s"):
        ckptflow.export_checkpoint(run, tmp_path / "bad.keras")


def test_a_path_that_is_longer_than_an_argument(tmp_path: Path) -> None:
    """Of a model in a manifest: it is refused, and a process that gets such a path reads all the same."""
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    with ckptflow.CheckpointManager(tmp_path / "run", {"model": model}) as manager:
        manager.save(1).result()
    long = "m" * 2**18
    described = {"kind": "model", "framework": "keras", "class": "keras.Functional"}
    with pytest.raises(CorruptCheckpointError, match=budget.MEMORY_VARIABLE):
        check_builds({long: described | {"config": hostile_keras.of_constants()}}, long, None, 2**23, imports=())
    forge_models(tmp_path / "run", lambda models: models.update({long: models.pop("model")}))
    with pytest.raises(CorruptCheckpointError, match="the path of a model is longer than 4096 characters"):
        ckptflow.export_checkpoint(tmp_path / "run", tmp_path / "m.keras")


@pytest.mark.parametrize("env", [{}, pytest.param({PROBE: ""}, marks=pytest.mark.chaos)], ids=["forked", "empty"])
def test_a_model_of_many_layers_is_built_within_the_limits(env: dict[str, str], tmp_path: Path) -> None:
    """Also where the process begins empty, as users have it: TensorFlow is loaded before there are limits. That one
    which begins so reads a file of weights: `test_outside`."""
    model = keras.Sequential([keras.Input((4,)), *(keras.layers.Dense(4) for _ in range(40))])
    keras_files.write_keras(str(tmp_path / "m.keras"), model, ORIGIN)
    script = """
from ckptflow.interop.keras import files as keras_files
from ckptflow.interop.untrusted import probe
model = keras_files.read_model("m.keras")
assert len(probe._passed) == 2  # what HDF5 reads, and the model
"""
    done = run_python("-c", script, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_class_that_this_program_alone_knows(tmp_path: Path) -> None:
    """The process that reads the file first does not: it says nothing then, and the file is read here."""

    @keras.saving.register_keras_serializable(package="test_probe_keras")
    class Mine(keras.layers.Layer):  # type: ignore[misc]
        def call(self, inputs: object) -> object:
            return inputs

    model = keras.Sequential([keras.Input((3,)), Mine(), keras.layers.Dense(2)])
    keras_files.write_keras(str(tmp_path / "m.keras"), model, ORIGIN)
    assert type(keras_files.read_model(str(tmp_path / "m.keras")).layers[0]).__name__ == "Mine"
    keras.saving.get_custom_objects().pop("test_probe_keras>Mine")
    with pytest.raises(UsageError, match="Mine"):
        keras_files.read_model(str(tmp_path / "m.keras"))


def test_what_one_trusts_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "m.keras")
    keras_files.write_keras(path, keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), ORIGIN)
    keras_weights.kind_of_file(path)  # HDF5 reads it first all the same
    monkeypatch.setattr(probe, "start", lambda *_: pytest.fail("a process is started"))
    keras_files.read_model(path, is_private=True, unsafe=True)


def torment(folder: Path, kind: str, data: bytes, numbers: range) -> int:
    """How many of the files were refused."""
    path, refused = folder / f"lying{SUFFIXES[kind]}", 0
    for number in numbers:
        path.write_bytes(lying_keras.mutated(number, data))
        try:
            if kind == "weights":
                found = keras_weights.read_weights(str(path))
                for name in found.infos:
                    found.read(name)
            else:
                keras_files.read_model(str(path))
        except CkptflowError:
            refused += 1
        except BaseException as error:
            error.add_note(f"{kind} {number}")
            raise
    return refused


@pytest.mark.parametrize(("framework", "kind"), [*(("keras", kind) for kind in SUFFIXES), ("tf_keras", "h5")])
def test_some_files_that_lie(framework: str, kind: str, tmp_path: Path) -> None:
    assert torment(tmp_path, kind, sound(framework, kind, tmp_path), range(4))
