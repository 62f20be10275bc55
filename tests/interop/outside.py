"""A program that imports and exports foreign files, good and hostile ones, and notes what Python does meanwhile.

    python -m tests.interop.outside FOLDER

Checkpoints and exports go to `FOLDER/run`, temporary files to TMPDIR; code of the files' authors would make
`FOLDER/mark`. Prints JSON: what became of each file, and the audit events of the two parts of the run; the second does
what a user has to ask for. As a part begins it is asked whether there is a file of its name, for a trace.
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from ckptflow.errors import CkptflowError
from ckptflow.interop.export import export_checkpoint
from ckptflow.interop.import_ import import_model
from ckptflow.interop.untrusted import probe
from tests.interop import attacks, hostile_bundles, hostile_keras, keras_configs, lying_keras
from tests.interop.forged import forge_models

PARTS = "part-without-unsafe", "part-with-unsafe", "part-after-all"
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
EVENTS = {
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn",
    "socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.sendmsg", "pickle.find_class",
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
}  # fmt: skip
EXPORTS = {"keras": "m.keras", "h5": "m.h5", "weights": "m.weights.h5", "saved-model": "m", "hub": "m.tar.gz",
           "tflite": "m.tflite", "tf-checkpoint": "m.ckpt", "safetensors": "m.safetensors"}  # fmt: skip

_heard: list[list[Any]] = []
_is_hearing = False


def listen(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: notes what is opened for writing, started, or connected."""
    if not _is_hearing:
        return
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, str | bytes | os.PathLike) and flags & WRITING:
            _heard.append([event, os.fsdecode(path)])
    elif event in EVENTS:
        first = arguments[1] if event == "subprocess.Popen" else arguments[0] if arguments else ""
        _heard.append([event, list(first) if event == "subprocess.Popen" else str(first)])


def make(framework: str) -> Any:
    kit = attacks.FRAMEWORKS[framework]
    model = kit.Sequential([kit.layers.Input((3,)), kit.layers.Dense(2, name="dense")])
    model.compile(kit.optimizers.Adam(0.01), "mse")
    return model


def good(folder: Path) -> dict[str, Path]:
    """One file of each format, of each Keras."""
    from safetensors.numpy import save_file

    files: dict[str, Path] = {}
    for framework in attacks.FRAMEWORKS:
        for suffix in (".keras", ".h5", ".weights.h5"):
            path = files[f"{framework} {suffix}"] = folder / f"{framework}{suffix}"
            model = make(framework)
            (model.save_weights if suffix == ".weights.h5" else model.save)(path)
    files["tf-checkpoint"] = folder / "stock"
    tf.train.Checkpoint(model=make("tf_keras")).write(str(folder / "stock"))
    files["saved-model"] = folder / "saved"
    make("tf_keras").save(folder / "saved", save_format="tf")
    files["hub"] = folder / "hub.tar.gz"
    with tarfile.open(files["hub"], "w:gz") as tar:
        tar.add(folder / "saved", ".")
    files["safetensors"] = folder / "m.safetensors"
    save_file({"model/dense/kernel": np.ones((3, 2), "f4")}, files["safetensors"])
    return files


def hostile(folder: Path, mark: Path) -> dict[str, Path]:
    """Files whose code would run, where somebody ran it."""
    graph, code = attacks.hostile_graph(folder / "graph", mark), attacks.marshalled(mark)
    evil = attacks.lambda_layer(code)
    reloaded = keras_configs.layer("tf_keras.src.export.export_lib", "ReloadedLayer", filepath=str(graph), name="evil")
    files: dict[str, Path] = {"graph": graph}
    for framework in attacks.FRAMEWORKS:
        in_zip = evil | {"module": f"{framework}.layers", "registered_name": None}
        for name, layer in {"lambda": in_zip, "reloaded": reloaded}.items():
            config = keras_configs.sequential(framework, layer)
            path = files[f"{framework} {name} .keras"] = folder / f"{framework}-{name}.keras"
            attacks.keras_of(path, framework, config)
        for number, (name, special) in enumerate(attacks.SPECIAL.items()):
            path = files[f"{framework} {name} .h5"] = folder / f"{framework}-{number}.h5"
            attacks.h5_of(path, framework, attacks.old_config(attacks.lambda_layer(code, special)))
    module = make("tf_keras")
    module.evil = attacks.Initialised(mark)
    module.save(folder / "module", save_format="tf")
    files["module"] = folder / "module"
    files["packed module"] = folder / "module.tar.gz"
    with tarfile.open(files["packed module"], "w:gz") as tar:
        tar.add(folder / "module", ".")
    mark.unlink(missing_ok=True)
    return files


def probed(folder: Path) -> dict[str, Path]:
    """Files that take memory without end, or that lie: nobody reads them but a process of its own."""
    files = {"constants": folder / "constants.keras", "lying bundle": folder / "lying"}
    files["constants"].write_bytes(hostile_keras.operation_on_constants())
    index, data = hostile_bundles.mutated(7, *hostile_bundles.sound(folder))
    Path(f"{files['lying bundle']}.index").write_bytes(index)
    Path(f"{files['lying bundle']}.data-00000-of-00001").write_bytes(data)
    return files


def lying(folder: Path, sound: Path) -> dict[str, Path]:
    """Weights that lie."""
    files = {f"lie {number}": folder / f"lie-{number}.weights.h5" for number in range(6)}
    for number, path in enumerate(files.values()):
        path.write_bytes(lying_keras.mutated(number, sound.read_bytes()))
    return files


class _Run:
    """Everything that is imported and exported, and what came of it."""

    def __init__(self, folder: Path) -> None:
        self._out = folder / "run"
        self.outcomes: dict[str, str] = {}
        self._number = 0

    def root(self) -> Path:
        self._number += 1
        return self._out / str(self._number)

    def attempt(self, name: str, do: Callable[[], Any]) -> None:
        try:
            do()
        except CkptflowError as error:
            self.outcomes[name] = type(error).__name__
        else:
            self.outcomes[name] = "done"

    def take(self, files: dict[str, Path], **how: Any) -> None:
        for name, path in files.items():
            self.attempt(name, lambda path=path: import_model(path, self.root(), **how))  # type: ignore[misc]

    def export(self, source: Path) -> None:
        root, target = self.root(), self.root()
        import_model(source, root)
        target.mkdir()
        for name, file in EXPORTS.items():
            self.attempt(f"export {name}", lambda n=name, f=file: export_checkpoint(root, target / f, format=n))  # type: ignore[misc]

    def export_hostile(self, source: Path, config: dict[str, Any]) -> None:
        """As from a root whose manifest has another config."""
        root, target = self.root(), self.root()
        import_model(source, root)
        target.mkdir()
        forge_models(root, lambda models: models["model"].update(config=config))
        for name in ("keras", "h5", "saved-model"):
            place = target / EXPORTS[name]
            self.attempt(f"export hostile {name}", lambda n=name, p=place: export_checkpoint(root, p, format=n))  # type: ignore[misc]


def begin(part: str) -> list[list[Any]]:
    """Begins a part, and returns what was heard in the one before."""
    global _heard, _is_hearing
    before, _heard, _is_hearing = _heard, [], True
    os.access(f"/{part}", os.F_OK)
    return before


def main(folder: Path) -> None:
    files, mark = folder / "files", folder / "mark"
    files.mkdir()
    sound, evil = good(files), hostile(files, mark)
    lies, heavy = lying(files, sound["keras .weights.h5"]), probed(files)
    config = keras_configs.sequential("tf_keras", keras_configs.layer(
        "tf_keras.src.export.export_lib", "ReloadedLayer", filepath=str(evil["graph"]), name="evil"))  # fmt: skip
    run, check = _Run(folder), probe.check
    sys.addaudithook(listen)
    begin(PARTS[0])
    run.take(heavy)  # each with a process of its own, as all of them have
    run.take({"with a process": sound["keras .weights.h5"]})
    probe.check = lambda *_, **__: None  # what follows crashes nobody, and does no harm in this process either
    run.take(sound)
    run.take(evil)
    run.take(lies, model=make("keras"))
    run.export(sound["tf_keras .keras"])
    run.export_hostile(sound["tf_keras .keras"], config)
    was_marked = mark.exists()
    quiet = begin(PARTS[1])
    run.take({"unsafe lambda": evil["tf_keras the word itself .h5"], "unsafe graph": evil["module"]}, unsafe=True)
    loud = begin(PARTS[2])
    probe.check = check
    print(json.dumps({"outcomes": run.outcomes, "was_marked": was_marked, "quiet": quiet, "loud": loud}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
