"""What stock TensorFlow, Keras, tf_keras, Hub, LiteRT and safetensors write and read, of each architecture.

`write` and `read` run in stock processes, by `in_stock`: nothing here imports ckptflow. `write` makes a model and saves
it in every format that its framework writes; `read` opens what ckptflow exported. What each of them holds goes to a
`.npz` beside it.
"""

from __future__ import annotations

import contextlib
import http.server
import importlib
import os
import tarfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.interop.models import CASES, Array, Case, tensors
from tests.interop.stock import run_stock

NAMES = {
    "keras": "m.keras",
    "h5": "m.h5",
    "weights": "m.weights.h5",
    "saved-model": "saved",
    "hub": "m.tar.gz",
    "tf-checkpoint": "m.ckpt",
    "tflite": "m.tflite",
    "safetensors": "m.safetensors",
}
WRITTEN = tuple(form for form in NAMES if form not in ("tflite", "safetensors"))  # by stock, and read by us


_ROOT = str(Path(__file__).resolve().parents[2])
_PROGRAM = f"""
sys.path.insert(0, {_ROOT!r})
from tests.interop import both_ways
answer = getattr(both_ways, argument["do"])(*argument["how"])
"""


def in_stock(do: str, framework: str, formats: Mapping[str, Sequence[str]], *folders: Path) -> dict[str, str]:
    """`write` or `read` in a stock process; returns what failed, by case and format."""
    how = (framework, formats, *map(str, folders))
    failures: dict[str, str] = run_stock(_PROGRAM, {"do": do, "how": how}, timeout_s=580)
    return failures


def facts(case: Case, model: Any) -> dict[str, Array]:
    """What must be equal: predictions, and the optimizer's variables in their order."""
    optimizer = getattr(model, "optimizer", None)
    found = {"predictions": case.predict(model)}
    if optimizer is not None:
        found["iterations"] = np.asarray(optimizer.iterations.numpy())
        found |= {f"slot{number}": np.asarray(each.numpy()) for number, each in enumerate(optimizer.variables)}
    return found


def build(case: Case, framework: str) -> Any:
    """The model as a program makes it before it loads something: compiled, its optimizer built."""
    model = case.build(framework)
    if hasattr(model, "optimizer"):
        model.optimizer.build(model.trainable_variables)
    return model


def write(framework: str, formats: Mapping[str, Sequence[str]], folder: str) -> dict[str, str]:
    """Each case trained and saved below `folder/case`; returns what failed, by case and format."""
    failures: dict[str, str] = {}
    for name, forms in formats.items():
        case = CASES[name]
        here = f"{folder}/{name}"
        os.makedirs(here)
        model = case.make(framework)
        arrays: dict[str, Any] = facts(case, model)
        np.savez(f"{here}/expected.npz", **arrays)
        for form in forms:
            _try(failures, f"{name}/{form}", partial(_WRITERS[form], framework, model, f"{here}/{NAMES[form]}"))
    return failures


def read(framework: str, formats: Mapping[str, Sequence[str]], *folders: str) -> dict[str, str]:
    """Each export below `folder/case`, read by stock; facts to `<format>.npz`. Returns what failed."""
    failures: dict[str, str] = {}
    for folder in folders:
        for name, forms in formats.items():
            for module in CASES[name].modules:
                importlib.import_module(module)
            for form in forms:
                _try(failures, f"{name}/{form}", partial(_read_one, framework, name, form, folder))
    return failures


def _read_one(framework: str, name: str, form: str, folder: str) -> None:
    path = f"{folder}/{name}/{NAMES[form]}"
    arrays: dict[str, Any] = _READERS[form](framework, CASES[name], path)
    np.savez(f"{folder}/{name}/{form}.npz", **arrays)


def _try(failures: dict[str, str], what: str, do: Callable[[], Any]) -> None:
    try:
        do()
    except Exception:  # the others are to be tried, too
        failures[what] = traceback.format_exc()[-1500:]


def _write_saved_model(framework: str, model: Any, path: str) -> None:
    if framework == "keras":
        model.export(path, verbose=False)
    elif framework == "tf_keras":
        model.save(path, save_format="tf")
    else:
        import tensorflow as tf

        tf.saved_model.save(model, path)


def _write_hub(framework: str, model: Any, path: str) -> None:
    """The SavedModel, packed; the one that has been written, where it has."""
    folder = os.path.join(os.path.dirname(path), NAMES["saved-model"])
    if not os.path.isdir(folder):
        folder = path + ".folder"
        _write_saved_model(framework, model, folder)
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, ".")


def _write_checkpoint(_: str, model: Any, path: str) -> None:
    _checkpoint_of(model).write(path)


def _checkpoint_of(model: Any) -> Any:
    import tensorflow as tf

    optimizer = getattr(model, "optimizer", None)
    made = tf.train.Checkpoint(model=model, **({} if optimizer is None else {"optimizer": optimizer}))
    made.save_counter  # noqa: B018 - it is made when it is asked for
    return made


_WRITERS: dict[str, Callable[[str, Any, str], Any]] = {
    "keras": lambda _, model, path: model.save(path),
    "h5": lambda _, model, path: model.save(path),
    "weights": lambda _, model, path: model.save_weights(path),
    "saved-model": _write_saved_model,
    "hub": _write_hub,
    "tf-checkpoint": _write_checkpoint,
}


def _read_whole(framework: str, case: Case, path: str) -> dict[str, Array]:
    return facts(case, importlib.import_module(framework).models.load_model(path))


def _read_weights(framework: str, case: Case, path: str) -> dict[str, Array]:
    model = build(case, framework)
    model.load_weights(path)
    return facts(case, model)


def _read_checkpoint(framework: str, case: Case, path: str) -> dict[str, Array]:
    model = build(case, framework)
    _checkpoint_of(model).restore(path).assert_existing_objects_matched()
    return facts(case, model)


def _read_saved_model(framework: str, case: Case, path: str) -> dict[str, Array]:
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    assert loaded.signatures["serving_default"].structured_input_signature
    found = {"predictions": np.asarray(_call(loaded, case))}
    if framework == "tf_keras":
        model = importlib.import_module("tf_keras").models.load_model(path)
        np.testing.assert_allclose(case.predict(model), found["predictions"], rtol=0, atol=1e-6)
    return found


def _call(loaded: Any, case: Case) -> Any:
    inputs = tensors(case.sample_inputs())
    return loaded(inputs) if callable(loaded) else loaded.serve(inputs)


def _read_hub(_: str, case: Case, path: str) -> dict[str, Array]:
    """By `hub.load`, which KerasLayer calls: a packed module over HTTP, as from a hub, a folder as it is."""
    import tensorflow_hub as hub

    with _served(path) as where:
        layer = hub.KerasLayer(where)
    return {"predictions": np.asarray(layer(tensors(case.sample_inputs())))}


@contextlib.contextmanager
def _served(path: str) -> Iterator[str]:
    """A file's URL on a server of this process."""
    if os.path.isdir(path):
        yield path
        return
    folder, name = os.path.split(path)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{name}"
        server.shutdown()


def _read_tflite(_: str, case: Case, path: str) -> dict[str, Array]:
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(path).get_signature_runner()
    inputs = case.sample_inputs()
    names = sorted(runner.get_input_details())
    if isinstance(inputs, dict):
        given = inputs
    else:  # by shape, which tells them apart here
        arrays = {array.shape[1:]: array for array in tf.nest.flatten(inputs)}
        details = runner.get_input_details()
        given = {name: arrays[tuple(int(size) for size in details[name]["shape"][1:])] for name in names}
    (predictions,) = runner(**given).values()
    return {"predictions": predictions}


def _read_safetensors(_: str, case: Case, path: str) -> dict[str, Array]:
    from safetensors.numpy import load_file

    return dict(load_file(path))


_READERS: dict[str, Callable[[str, Case, str], dict[str, Array]]] = {
    "keras": _read_whole,
    "h5": _read_whole,
    "weights": _read_weights,
    "saved-model": _read_saved_model,
    "hub": _read_hub,
    "tf-checkpoint": _read_checkpoint,
    "tflite": _read_tflite,
    "safetensors": _read_safetensors,
}
