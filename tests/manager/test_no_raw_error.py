"""Whatever state is handed to a public call, what leaves it is an error of ours: never a framework's own.

States that are unbuilt, of another kind than what is stored, or that raise where they are asked. An error of a user's
own code may pass as it is, and a ValueError or TypeError only where this package raised it, about an argument.
"""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf
import tf_keras

import ckptflow
from ckptflow import CheckpointManager, CkptflowError, export_checkpoint, import_model

KERASES: dict[str, Any] = {"keras": keras, "tf_keras": tf_keras}
ROW = tf.ones((1, 3))
PACKAGE = str(Path(ckptflow.__file__).parent)


class OwnError(Exception):
    """Raised by what stands for a user's code."""


def compiled(kit: Any, model: Any, optimizer: Any = None) -> Any:
    model.compile(kit.optimizers.Adam() if optimizer is None else optimizer, "mse")
    return model


def stored(kit: Any) -> Any:
    """The model whose values are in every source."""
    model = compiled(kit, kit.Sequential([kit.layers.Input((3,)), kit.layers.Dense(2, name="first")]))
    model.optimizer.apply_gradients([(tf.ones(each.shape), each) for each in model.trainable_variables])
    return model


def raising(kit: Any, *where: str) -> Any:
    """A subclassed model that raises where it is asked."""

    def fail(self: Any, *_: Any, **__: Any) -> Any:
        raise OwnError("of the user's own")

    methods: dict[str, Any] = {name: property(fail) if name in ("weights", "variables") else fail for name in where}
    model = type("Raising", (kit.Model,), {"call": lambda self, inputs: self.first(inputs), **methods})()
    model.first = kit.layers.Dense(2, name="first")
    return model


def another_shape(kit: Any) -> Any:
    return compiled(kit, kit.Sequential([kit.layers.Input((4,)), kit.layers.Dense(2, name="first")]))


def another_dtype(kit: Any) -> Any:
    layers = [kit.layers.Input((3,)), kit.layers.Dense(2, name="first", dtype="float64")]
    return compiled(kit, kit.Sequential(layers))


def module_around(model: Any) -> tf.Module:
    module = tf.Module()
    module.model = model
    return module


STATES: dict[str, Callable[[Any], Any]] = {
    "unbuilt": lambda kit: compiled(kit, kit.Sequential([kit.layers.Dense(2, name="first")])),
    "unbuilt inside": lambda kit: compiled(kit, kit.Sequential([kit.Sequential([kit.layers.Dense(2)], name="first")])),
    "unbuilt in a module": lambda kit: module_around(kit.Sequential([kit.layers.Dense(2)])),
    "without layers": lambda kit: kit.Sequential(),
    "raises in build": lambda kit: compiled(kit, raising(kit, "build")),
    "raises in call": lambda kit: compiled(kit, raising(kit, "call")),
    "raises in its configs": lambda kit: compiled(kit, raising(kit, "get_config", "get_build_config")),
    "raises for weights": lambda kit: compiled(kit, raising(kit, "weights", "variables")),
    "another shape": another_shape,
    "another dtype": another_dtype,
    "a layer": lambda kit: kit.layers.Dense(2),
    "a lookup": lambda kit: kit.layers.StringLookup(),
    "a metric": lambda kit: kit.metrics.AUC(),
    "an optimizer": lambda kit: kit.optimizers.Adam(),
    "a legacy optimizer": lambda kit: tf_keras.optimizers.legacy.SGD(),
    "a variable": lambda kit: tf.Variable(1.0),
    "a table": lambda kit: tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1),
}

EXPORTED = ("unbuilt", "raises in its configs", "raises for weights", "another shape", "a variable", "an optimizer")
FORMATS = {
    "tf-checkpoint": "out.ckpt", "keras": "out.keras", "h5": "out.h5", "weights": "out.weights.h5",
    "saved-model": "out", "tflite": "out.tflite", "safetensors": "out.safetensors",
}  # fmt: skip


@pytest.fixture(scope="module", params=KERASES)
def sources(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """One Keras, and the folder in which a model of it is stored in every way."""
    kit, root = KERASES[request.param], tmp_path_factory.mktemp("sources")
    model = stored(kit)
    with CheckpointManager(root / "run", {"model": model}) as manager:
        manager.save(1)
    tf.train.Checkpoint(model=model).save(str(root / "stock"))
    tf.saved_model.save(model, str(root / "saved"))
    model.save(str(root / "whole.keras"))
    model.save_weights(str(root / "own.weights.h5"))
    export_checkpoint(root / "run", root / "named.safetensors")
    return kit, root


def raised_raw(call: Callable[[], Any]) -> str | None:
    """What a call raised that is not ours to raise."""
    try:
        call()
    except (CkptflowError, OwnError):
        return None
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, (ValueError, TypeError)) and frames[-1].filename.startswith(PACKAGE):
            return None
        ours = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames if PACKAGE in frame.filename]
        return f"{type(error).__name__}: {str(error)[:200]} by way of {ours[-4:]}"
    return None


@pytest.mark.parametrize("name", STATES)
def test_only_errors_of_ours_leave(name: str, sources: tuple[Any, Path], tmp_path: Path) -> None:
    kit, root = sources
    number = itertools.count()

    def state() -> dict[str, Any]:
        return {"model": STATES[name](kit)}

    def restored(**how: Any) -> None:
        with CheckpointManager(root / "run", state(), read_only=True) as manager:
            manager.restore_latest(**how)

    def saved() -> None:
        with CheckpointManager(tmp_path / "new", state()) as manager:
            manager.save(1).result()
            manager.save(2).result()

    def imported(source: str, **how: Any) -> None:
        import_model(root / source, tmp_path / f"import-{next(number)}", model=state(), **how)

    def exported(format_name: str) -> None:
        target = tmp_path / f"export-{next(number)}"
        target.mkdir()
        export_checkpoint(root / "run", target / FORMATS[format_name], format=format_name, model=state()["model"])

    calls: dict[str, Callable[[], Any]] = {
        "save": saved,
        "restore": restored,
        "warm start": partial(restored, partial=True),
        "renamed": partial(restored, partial=True, rename={"model/first": "model"}),
        "import in part": partial(imported, "stock-1", partial=True),
        "import renamed": partial(imported, "saved", partial=True, rename={"model/first": "model"}),
    }
    for source in ("stock-1", "saved", "whole.keras", "own.weights.h5", "named.safetensors"):
        calls[f"import {source}"] = partial(imported, source)
    for format_name in () if name not in EXPORTED else FORMATS if kit is keras else ("keras", "h5", "saved-model"):
        calls[f"export {format_name}"] = partial(exported, format_name)
    raw = {what: raised_raw(call) for what, call in calls.items()}
    assert {what: error for what, error in raw.items() if error} == {}
