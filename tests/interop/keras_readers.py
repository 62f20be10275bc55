"""What stock Keras says to a file: a program for a process of its own, and what it is asked and answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptflow.interop.provenance import Provenance
from tests.interop.stock import run_stock

Array = npt.NDArray[Any]

ORIGIN = Provenance(
    run_url="s3://bucket/run-7",
    run_id="0123456789abcdef",
    folder="000000001500-i0007",
    step=1500,
    incarnation=7,
    manifest_sha256="ab" * 32,
    format="keras",
    ckptflow="1.2.3",
    exported_at="2026-11-25T22:00:00+00:00",
)

PROGRAM = """
import importlib
import numpy as np
from tests.interop.models import CASES

answer = []
for ask in argument:
    keras = importlib.import_module(ask["framework"])
    case = CASES[ask["case"]]
    for module in case.modules:
        importlib.import_module(module)
    if ask["path"].endswith(".weights.h5"):
        model = case.build(ask["framework"])
        model.optimizer.build(model.trainable_variables)
        model.load_weights(ask["path"])
    else:
        model = keras.models.load_model(ask["path"])
    optimizer = model.optimizer.variables
    np.savez(ask["path"] + ".npz", outputs=case.predict(model), *[np.asarray(each) for each in optimizer])
    trains = True
    try:
        case.train(model)
    except ValueError as error:
        trains = str(error)[:40]
    config = json.loads(json.dumps(model.optimizer.get_config(), default=float))
    answer.append({"optimizer": config, "loss": type(model.loss).__name__, "trains": trains})
"""


def optimizer_values(model: Any) -> list[Array]:
    """The values of a model's optimizer, in its own order."""
    variables = model.optimizer.variables
    return [np.array(each.numpy()) for each in variables]


def ask_stock(asks: list[dict[str, str]]) -> list[dict[str, Any]]:
    """What stock Keras has of each file: what it answers, its `outputs`, and its optimizer's `values`."""
    answers = run_stock(PROGRAM, asks)
    for ask, answer in zip(asks, answers, strict=True):
        with np.load(ask["path"] + ".npz") as saved:
            answer["outputs"] = saved["outputs"]
            answer["values"] = [saved[f"arr_{number}"] for number in range(len(saved) - 1)]
    return list(answers)


def write_all(model: Any, name: str, folder: Path) -> dict[str, Path]:
    """A model in every format that holds it, by the format's name."""
    from ckptflow.errors import UnsupportedStateError
    from ckptflow.interop.keras import files as keras_files

    written = {}
    for kind, suffix, write in (
        ("keras", ".keras", keras_files.write_keras),
        ("h5", ".h5", keras_files.write_h5),
        ("weights", ".weights.h5", keras_files.write_weights),
    ):
        path = folder / f"{name}{suffix}"
        try:
            write(str(path), model, ORIGIN)
        except UnsupportedStateError:
            assert kind == "h5", kind
            assert not path.exists()
            continue
        written[kind] = path
    return written
