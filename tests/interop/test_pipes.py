"""A pipe in the place of a file that somebody else made is refused, whichever file of whichever format it is."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.processes import run_python

# What lies in the folder, each file with its text, None for a pipe; and what is imported.
PLACES: dict[str, tuple[dict[str, str | None], str]] = {
    "state of a checkpoint": ({"checkpoint": None, "m.index": "x"}, "."),
    "index of a checkpoint": ({"checkpoint": 'model_checkpoint_path: "m"\n', "m.index": None}, "."),
    "data of a checkpoint": ({"m.index": "x", "m.data-00000-of-00001": None}, "m"),
    "state of a chief": ({"chief/checkpoint": None, "chief/m.index": "x"}, "."),
    "note of a backup": ({"latest.weights.h5": "x", "training_metadata.json": None}, "."),
    "backup": ({"latest.weights.h5": None}, "."),
    "backup of a backup": ({"latest.weights.h5": None, "latest.weights.h5.bkp": None}, "."),
    "the one file": ({"model.keras": None}, "."),
    "the one old file": ({"model.h5": None}, "."),
    "graph": ({"saved_model.pb": None}, "."),
    "metadata": ({"saved_model.pb": "x", "keras_metadata.pb": None}, "."),
    "index of a graph": ({"saved_model.pb": "x", "variables/variables.index": None}, "."),
    "config": ({"config.json": None, "model.weights.h5": "x"}, "."),
    "weights": ({"config.json": "{}", "model.weights.h5": None}, "."),
    "index of shards": ({"w.weights.json": None}, "w.weights.json"),
    "shard": (
        {"w.weights.json": json.dumps({"weight_map": {"/a": ["w_00000.weights.h5"]}}), "w_00000.weights.h5": None},
        "w.weights.json",
    ),
    "index beside a shard": ({"w_00000.weights.h5": "x", "w.weights.json": None}, "w_00000.weights.h5"),
}

CODE = """
import sys
from ckptflow import CkptflowError, import_model
for folder in sys.argv[2:]:
    try:
        import_model(folder, sys.argv[1])
    except CkptflowError as error:
        print(type(error).__name__, "as it should be", flush=True)
"""


def make(folder: Path, files: dict[str, str | None]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            os.mkfifo(path)
        else:
            path.write_text(text)


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    sources = []
    for number, (files, source) in enumerate(PLACES.values()):
        make(tmp_path / f"{number}", files)
        sources.append(str(tmp_path / f"{number}" / source))
    done = run_python("-c", CODE, str(tmp_path / "run"), *sources)
    assert done.stdout.count("as it should be") == len(PLACES), done.stderr
