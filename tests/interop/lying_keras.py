"""Files of Keras's that lie, by the thousand: each number gives another one, with right checksums."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np

VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    3,
    2**31,
    2**40,
    2**63,
    1e308,
    "",
    "x",
    "x" * 10_000,
    "sum",
    [],
    {},
    [[]],
    [None] * 3,
)
WEIGHTS, CONFIG = "model.weights.h5", "config.json"


def mutated(number: int, data: bytes) -> bytes:
    """A `.keras` or HDF5 file that lies in one to three places."""
    chance = random.Random(number)
    if not data.startswith(b"PK"):
        return _hdf5(chance, data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for _ in range(chance.randint(1, 3)):
        match chance.randrange(6):
            case 0 | 1 | 2 if CONFIG in members:
                members[CONFIG] = lying_json(chance, members[CONFIG])
            case 3 if WEIGHTS in members:
                members[WEIGHTS] = _hdf5(chance, members[WEIGHTS])
            case 4:
                members.pop(chance.choice(list(members)), None)
            case _:
                name = chance.choice(("assets/x", "../x", "/x", "model.weights.npz", "assets/layers/x.txt", "a" * 5000))
                members[name] = bytes(chance.choice((0, 10, 2**20)))
    packed = io.BytesIO()
    method = chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def lying_json(chance: random.Random, text: bytes | str) -> bytes:
    """Some value in it is another, or is one from elsewhere in it."""
    try:
        config = json.loads(text)
    except ValueError:
        return b"{"
    places: list[tuple[Any, Any]] = []
    waiting = [config]
    while waiting:
        here = waiting.pop()
        keys = here.keys() if isinstance(here, dict) else range(len(here)) if isinstance(here, list) else ()
        places += [(here, key) for key in keys]
        waiting += [here[key] for key in keys]
    if places:
        here, key = chance.choice(places)
        other, place = chance.choice(places)
        here[key] = chance.choice(VALUES) if chance.random() < 0.6 else json.loads(json.dumps(other[place]))
    return json.dumps(config).encode()


def _hdf5(chance: random.Random, data: bytes) -> bytes:
    """First what h5py can write, then any bytes."""
    file = io.BytesIO(data)
    if chance.random() < 0.6 and data.startswith(b"\x89HDF"):
        try:
            with h5py.File(file, "r+") as opened:
                chance.choice(_CHANGES)(chance, opened)
        except (OSError, RuntimeError, ValueError, KeyError):  # it was changed before
            return data
        if chance.random() < 0.5:
            return file.getvalue()
    changed = bytearray(file.getvalue() or b"\0")
    for _ in range(chance.randint(1, 8)):
        place = chance.randrange(min(len(changed), chance.choice((64, 512, 4096, 2**20))))
        changed[place] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
    return bytes(changed)


def _names(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visititems(lambda name, obj: names.append(name) if isinstance(obj, h5py.Dataset) else None)
    return names or ["x"]


def _dataset(chance: random.Random, file: h5py.File) -> None:
    name = chance.choice(_names(file))
    shape = tuple(chance.choice((1, 2, 3, 2**10, 2**20)) for _ in range(chance.randrange(1, 5)))
    dtype = chance.choice(("f4", "i8", "u1", "f2", "c8", "S7", h5py.string_dtype(), h5py.ref_dtype))
    del file[name]
    chunks = tuple(min(each, 2**7) for each in shape) if chance.random() < 0.8 else None
    packed = {"compression": chance.choice(("gzip", "lzf"))} if chunks and dtype != h5py.ref_dtype else {}
    if chunks:
        file.create_dataset(name, shape, dtype, chunks=chunks, **packed)
    else:
        file.create_dataset(name, shape[:1], dtype)


def _link(chance: random.Random, file: h5py.File) -> None:
    name = chance.choice(_names(file))
    others = (h5py.SoftLink("/" + name), h5py.ExternalLink("other.h5", "/x"), file)
    file[f"layers/{chance.randrange(99)}"] = chance.choice(others)


def _attribute(chance: random.Random, file: h5py.File) -> None:
    texts = [name for name in file.attrs if isinstance(file.attrs[name], str | bytes)]
    if texts and chance.random() < 0.7:
        name = chance.choice(texts)
        file.attrs[name] = lying_json(chance, file.attrs[name]).decode()
        return
    value = chance.choice((np.zeros(2**12), "x", b"\xff", h5py.Empty("f4"), ["a", "b"], np.array([b"x" * 100] * 9)))
    file.attrs[chance.choice(("layer_names", "weight_names", "keras_version", "model_config", "ckptflow"))] = value


_CHANGES: tuple[Callable[[random.Random, h5py.File], None], ...] = (_dataset, _dataset, _link, _attribute, _attribute)
