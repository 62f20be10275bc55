"""How much memory an export takes, format by format, beside what the format's own writer takes for the same model.

    python -m benchmarks.export_memory [--gib 1] [--folder .]

Each format is exported in a process of its own. "peak" is the process's largest resident memory less what it had when
TensorFlow, Keras and ckptflow were loaded, in multiples of the model's bytes. "writer alone" is the peak of a process
that makes the same model and calls the stock writer on it: what none can do without. The model is Dense layers without
an optimizer, so that model, checkpoint and file are of one size.

What this cannot show: an optimizer (its slots count like weights), object storage (the finished file is streamed).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

FILES = {
    "safetensors": "m.safetensors",
    "tf-checkpoint": "m.ckpt",
    "weights": "m.weights.h5",
    "keras": "m.keras",
    "h5": "m.h5",
    "saved-model": "m",
    "hub": "m.tar.gz",
    "tflite": "m.tflite",
}
WIDTH = 2048
LAYER_BYTES = WIDTH * WIDTH * 4


def make_model(layers: int) -> Any:
    import keras

    blocks = [keras.layers.Dense(WIDTH, use_bias=False, kernel_initializer="ones") for _ in range(layers)]
    return keras.Sequential([keras.Input((WIDTH,)), *blocks])


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def now_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def make_run(folder: str, layers: int) -> None:
    import ckptflow

    with ckptflow.CheckpointManager(os.path.join(folder, "run"), {"model": make_model(layers)}) as manager:
        manager.save(0)


def export(folder: str, name: str) -> int:
    import ckptflow

    warm_up()
    before = now_bytes()
    ckptflow.export_checkpoint(os.path.join(folder, "run"), os.path.join(folder, FILES[name]), format=name)
    return peak_bytes() - before


def write_stock(folder: str, name: str, layers: int) -> int:
    """The stock writer on a model that is there; for safetensors, one `save_file` of all arrays."""
    import tensorflow as tf

    warm_up()
    before = now_bytes()
    path = os.path.join(folder, FILES[name])
    model = make_model(layers)
    if name == "safetensors":
        from safetensors.numpy import save_file

        save_file({weight.path: weight.numpy() for weight in model.weights}, path)
    elif name == "tf-checkpoint":
        tf.train.Checkpoint(model=model).write(path)
    elif name == "weights":
        model.save_weights(path)
    elif name in ("keras", "h5"):
        model.save(path)
    elif name in ("saved-model", "hub"):
        model.export(path, verbose=False)
    else:
        with open(path, "wb") as file:
            file.write(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    return peak_bytes() - before


def warm_up() -> None:
    """Loads what every format loads, so that it is not counted."""
    import ckptflow.interop.export
    import ckptflow.interop.model  # noqa: F401

    make_model(1)(np.ones((1, WIDTH), np.float32))


def run_alone(*args: str) -> str:
    command = [sys.executable, "-m", "benchmarks.export_memory", *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}"
    return done.stdout.strip().rpartition("\n")[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--folder", default=".")
    parser.add_argument("--json")
    parser.add_argument("--formats", default=",".join(FILES))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    layers = max(1, round(args.gib * 2**30 / LAYER_BYTES))
    if args.child:
        what, folder, name = args.child
        if what == "run":
            make_run(folder, layers)
        else:
            print(export(folder, name) if what == "export" else write_stock(folder, name, layers))
        return
    folder = tempfile.mkdtemp(prefix="ckptflow-export-", dir=args.folder)
    size = layers * LAYER_BYTES
    found: dict[str, dict[str, str]] = {}
    try:
        run_alone("--gib", str(args.gib), "--child", "run", folder, "-")
        for name in args.formats.split(","):
            found[name] = {}
            for what in ("export", "stock"):
                answer = run_alone("--gib", str(args.gib), "--child", what, folder, name)
                found[name][what] = f"{int(answer) / size:.2f}" if answer.lstrip("-").isdigit() else answer
                for entry in os.listdir(folder):
                    if entry != "run":
                        path = os.path.join(folder, entry)
                        shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
    finally:
        shutil.rmtree(folder)
    table = Table(title=f"Peak memory, in multiples of the model ({size / 2**20:.0f} MiB)")
    for column in ("format", "ckptflow export", "writer alone"):
        table.add_column(column, justify="left" if column == "format" else "right")
    for name, row in found.items():
        table.add_row(name, row["export"], row["stock"])
    Console().print(table)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"model_bytes": size, "formats": found}, file)


if __name__ == "__main__":
    main()
