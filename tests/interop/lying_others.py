"""Archives, SavedModels, safetensors, shards of Keras's and roots that lie, by the thousand: each number gives another.

Checksums, lengths and seals are made right, so that what lies behind them is reached.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tf_keras

import ckptflow
from ckptflow.interop.safetensors_file import read_safetensors
from ckptflow.interop.tensorflow.saved_model import read_keras_saved_model, read_saved_model
from ckptflow.interop.untrusted.archives import read_member, unpack_tar
from tests.interop import hostile_bundles
from tests.interop.forged import forge_models
from tests.interop.lying_keras import lying_json
from tests.interop.models import without_graph
from tests.roots import make_root

WANTED = "saved_model.pb"


@dataclass(frozen=True)
class Lies:
    """`make` writes what is sound into a folder, `tell` makes of its copy the one of a number, `take` reads that."""

    make: Callable[[Path], None]
    tell: Callable[[Path, random.Random], None]
    take: Callable[[Path], None]


def attempt(lies: Lies, sound: Path, place: Path, number: int) -> None:
    """Reads the lie of that number, and leaves nothing. Raises what reading it raises."""
    shutil.copytree(sound, place)
    try:
        lies.tell(place, random.Random(number))
        lies.take(place)
    finally:
        shutil.rmtree(place)


# Archives

NAMES = (
    *("a", "b/c", "b", WANTED, "./x", "../x", "/x", "x/", "", ".", "x\\y", "a" * 99, "d/" * 40 + "x", "ä"),
    *("\udcff", "x\ny", "./" * 45),
)
TYPES = [*b"00000000000000555xxxxxxLLLKggSVX12346789DMNZ\0"]
KEYS = (
    *("path", "path", "size", "linkpath", "mtime", "ctime", "uid", "hdrcharset", "comment", "x"),
    *("GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.major", "GNU.sparse.name", "SCHILY.xattr.user.x"),
)


def _tell_tar(folder: Path, chance: random.Random) -> None:
    data = b"".join(_member(chance) for _ in range(chance.choice((0, 1, 2, 3, 5, 40))))
    data += bytes(chance.choice((0, 511, 512, 1024, 1024, 1024, 10_240, 2**18)))
    if chance.random() < 0.2:
        changed = bytearray(data or b"\0")
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        data = bytes(changed)
    if chance.random() < 0.1:
        data = data[: chance.randrange(len(data) + 1)]
    match chance.randrange(6):
        case 0:
            pass
        case 1:
            half = chance.randrange(len(data) + 1)
            data = gzip.compress(data[:half]) + gzip.compress(data[half:])
        case 2:
            data = gzip.compress(data)
            data = data[: chance.randrange(len(data) + 1)]
        case _:
            data = gzip.compress(data, 1)
    (folder / "m.tar.gz").write_bytes(data)


def _member(chance: random.Random) -> bytes:
    """A header of any kind, its checksum right, with what it says that follows, or something else."""
    name = f"f/{chance.randrange(10**6)}" if chance.random() < 0.8 else chance.choice(NAMES)[:99]
    header = tarfile.TarInfo(name)
    header.type = bytes([chance.choice(TYPES)])
    header.linkname = chance.choice(NAMES)[:99]
    content = _content(chance, header.type)
    header.size = len(content) if chance.random() < 0.9 else chance.choice(hostile_bundles.SIZES)
    header.mode, header.mtime = chance.choice((0, 0o644, 0o7777)), chance.choice((0, -1, 2**40))
    times = 3000 if chance.random() < 0.02 and len(content) < 2**10 else 1
    padding = bytes(-len(content) % 512) if chance.random() < 0.95 else b""
    return (header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + content + padding) * times


def _content(chance: random.Random, kind: bytes) -> bytes:
    if kind in b"xgX":
        data = b"".join(_record(chance) for _ in range(chance.choice((0, 1, 1, 2, 300))))
        return data if chance.random() < 0.9 else b"1" * chance.choice((10, 60_000, 2**16 + 1, 2**20))
    if kind in b"LK":
        return chance.choice(NAMES).encode("utf-8", "surrogateescape") * chance.choice((1, 3, 9000)) + b"\0"
    return bytes(chance.choice((0, 1, 511, 512, 513, 20_000, 2**17)))


def _record(chance: random.Random) -> bytes:
    """A line of a pax header, whose length is right, or any."""
    value = chance.choice((*NAMES, *map(str, hostile_bundles.SIZES), "BINARY", "0,1", "1" * 5000, "=", "\n", "\0"))
    text = f" {chance.choice(KEYS)}={value}\n".encode("utf-8", "surrogateescape")
    length = next(n for n in range(len(text), len(text) + 9) if len(str(n)) + len(text) == n)
    return str(length if chance.random() < 0.9 else chance.choice(hostile_bundles.SIZES)).encode() + text


def _take_tar(folder: Path) -> None:
    path = folder / "m.tar.gz"
    try:
        with open(path, "rb") as file:
            read_member(file, WANTED, max_bytes=2**16, where="m")
    finally:
        unpack_tar(str(path), str(folder / "out"))
        for above, _, files in os.walk(folder / "out"):
            assert all(os.path.isfile(os.path.join(above, each)) for each in files)
            assert not any(os.path.islink(os.path.join(above, each)) for each in files)


# SavedModels of tf_keras


def _make_saved_model(folder: Path) -> None:
    source = tf_keras.layers.Input((3,))
    inner = tf_keras.layers.Dense(4, "relu")(source)
    model = tf_keras.Model(source, tf_keras.layers.Add()([tf_keras.layers.Dense(4)(inner), inner]))
    model.compile("adam", "mse")
    without_graph(model).fit(np.ones((2, 3)), np.ones((2, 4)), verbose=0)
    model.save(folder / "m", save_format="tf")


def _tell_saved_model(folder: Path, chance: random.Random) -> None:
    from tf_keras.protobuf import saved_metadata_pb2

    path = folder / "m" / "keras_metadata.pb"
    metadata = saved_metadata_pb2.SavedMetadata.FromString(path.read_bytes())
    for _ in range(chance.randint(1, 3)):
        node = chance.choice(metadata.nodes)
        match chance.randrange(6):
            case 0:
                node.identifier = chance.choice([each.identifier for each in metadata.nodes] + ["", "_tf_keras_x"])
            case 1:
                node.node_id = chance.choice((-1, 0, 1, 5, 2**31 - 1))
            case 2:
                node.node_path = chance.choice(("", "root", "root." * 2000, "root.layer_with_weights-0", "../x"))
            case _:
                node.metadata = lying_json(chance, node.metadata)
    path.write_bytes(metadata.SerializeToString())
    if chance.random() < 0.3:
        prefix = str(folder / "m" / "variables" / "variables")
        parts = [Path(prefix + suffix) for suffix in (hostile_bundles.INDEX, hostile_bundles.DATA)]
        lies = hostile_bundles.mutated(chance.randrange(10**9), *(part.read_bytes() for part in parts))
        for part, data in zip(parts, lies, strict=True):
            part.write_bytes(data)
    if chance.random() < 0.3:
        (folder / "m" / "fingerprint.pb").unlink()  # which would not be right any more
        graph = folder / "m" / "saved_model.pb"
        changed = bytearray(graph.read_bytes())
        for _ in range(chance.randint(1, 6)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        graph.write_bytes(changed)


def _take_saved_model(folder: Path) -> None:
    try:
        found = read_saved_model(str(folder / "m"))
        for name in found.infos:
            found.read(name)
    finally:
        read_keras_saved_model(str(folder / "m"))


# safetensors


def _make_safetensors(folder: Path) -> None:
    make_root(str(folder / "run"), (1,))
    ckptflow.export_checkpoint(folder / "run", folder / "m.safetensors")


def _tell_safetensors(folder: Path, chance: random.Random) -> None:
    path = folder / "m.safetensors"
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    for _ in range(chance.randint(1, 3)):
        if chance.random() < 0.6 and isinstance(header.get("__metadata__"), dict):
            said = header["__metadata__"]  # which is JSON as text
            name = chance.choice([*said] or ["x"])
            text = said.get(name)
            said[name] = lying_json(chance, text if isinstance(text, str) else "{}").decode()
        else:
            header = json.loads(lying_json(chance, json.dumps(header)))
        if not isinstance(header, dict):
            break
    text = json.dumps(header).encode()
    size = len(text) if chance.random() < 0.9 else abs(chance.choice(hostile_bundles.SIZES))
    path.write_bytes(size.to_bytes(8, "little") + text + data[end : chance.choice((len(data), len(data), end + 7))])


def _take_safetensors(folder: Path) -> None:
    found = read_safetensors(str(folder / "m.safetensors"))
    for name in found.infos:
        found.read(name)


# Shards of Keras's


def _make_shards(folder: Path) -> None:
    model = keras.Sequential([keras.layers.Input((3,)), *(keras.layers.Dense(30) for _ in range(3))])
    model.save_weights(folder / "w.weights.json", max_shard_size=4000 / 2**30)


def _tell_shards(folder: Path, chance: random.Random) -> None:
    path = folder / "w.weights.json"
    for _ in range(chance.randint(1, 3)):
        path.write_bytes(lying_json(chance, path.read_bytes()))
    index = json.loads(path.read_bytes())
    weights = index.get("weight_map") if isinstance(index, dict) else None
    if chance.random() < 0.5 and isinstance(weights, dict) and weights:
        others = ["../x", "/etc/passwd", "w.weights.json", ".", "", "x" * 5000, *map(str, folder.iterdir())]
        weights[chance.choice([*weights])] = chance.choice(others)
        path.write_text(json.dumps(index))


def _take_shards(folder: Path) -> None:
    ckptflow.import_model(folder / "w.weights.json", folder / "run")


# Roots


def _make_root(folder: Path) -> None:
    source = keras.layers.Input((3,))
    inner = keras.layers.Dense(4, "relu")(source)
    model = keras.Model(source, keras.layers.Add()([keras.layers.Dense(4)(inner), inner]))
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 10)), "mse")
    optimizer = keras.optimizers.Muon(0.1)
    optimizer.build(model.trainable_variables)
    with ckptflow.CheckpointManager(folder / "run", {"model": model}) as manager:
        manager.save(1).result()
    model.compile(None, "mse")
    with ckptflow.CheckpointManager(folder / "beside", {"model": model, "optimizer": optimizer}) as manager:
        manager.save(1).result()


def _tell_root(folder: Path, chance: random.Random) -> None:
    for run in ("run", "beside"):
        forge_models(folder / run, lambda models: _forge(models, chance))


def _forge(models: dict[str, Any], chance: random.Random) -> None:
    for _ in range(chance.randint(1, 3)):
        name = chance.choice([*models] or ["x"])
        if chance.random() < 0.1:
            models[chance.choice(("model", "optimizer", "model/optimizer", "x"))] = models.pop(name, {})
        else:
            models[name] = json.loads(lying_json(chance, json.dumps(models.get(name))))


def _take_root(folder: Path) -> None:
    try:
        ckptflow.export_checkpoint(folder / "run", folder / "run.keras")
    finally:
        ckptflow.export_checkpoint(folder / "beside", folder / "beside.keras")


LIES: dict[str, Lies] = {
    ".tar.gz": Lies(lambda folder: None, _tell_tar, _take_tar),
    "SavedModel of tf_keras": Lies(_make_saved_model, _tell_saved_model, _take_saved_model),
    ".safetensors": Lies(_make_safetensors, _tell_safetensors, _take_safetensors),
    ".weights.json": Lies(_make_shards, _tell_shards, _take_shards),
    "root that is exported": Lies(_make_root, _tell_root, _take_root),
}


def torment(kind: str, folder: Path, numbers: Iterable[int]) -> int:
    """How many of them were refused."""
    refused = 0
    lies, sound = LIES[kind], folder / "sound"
    sound.mkdir()
    lies.make(sound)
    for number in numbers:
        try:
            attempt(lies, sound, folder / "lying", number)
        except ckptflow.CkptflowError:
            refused += 1
        except BaseException as error:
            error.add_note(f"{kind} {number}")
            raise
    return refused
