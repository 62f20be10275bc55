"""Small Keras files that take without end, or never end."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import h5py

MANY = 32_000


def archive(framework: str, config: dict[str, Any]) -> bytes:
    """A `.keras` of that config, with no weights."""
    weights, packed = io.BytesIO(), io.BytesIO()
    with h5py.File(weights, "w") as file:
        file.create_group("layers")
    version = {"keras": "3.15.1", "tf_keras": "2.21.0"}[framework]
    with zipfile.ZipFile(packed, "w") as members:
        members.writestr("metadata.json", json.dumps({"keras_version": version, "date_saved": "2026-01-01@00:00:00"}))
        members.writestr("config.json", json.dumps(config))
        members.writestr("model.weights.h5", weights.getvalue())
    return packed.getvalue()


def _layer(
    framework: str, name: str, config: dict[str, Any], nodes: list[Any], module: str = "layers"
) -> dict[str, Any]:
    return {
        "module": f"{framework}.{module}",
        "class_name": name,
        "config": config,
        "registered_name": None,
        "name": config["name"],
        "inbound_nodes": nodes,
    }


def _model(framework: str, layers: list[dict[str, Any]]) -> dict[str, Any]:
    ends = {"input_layers": [["in", 0, 0]], "output_layers": [["in", 0, 0]]}
    return {
        "module": {"keras": "keras.src.models.functional", "tf_keras": "tf_keras.src.engine.functional"}[framework],
        "class_name": "Functional",
        "config": {"name": "m", "trainable": True, "layers": layers, **ends},
        "registered_name": "Functional",
        "build_config": {"input_shape": None},
    }


def _input(framework: str) -> dict[str, Any]:
    shape = "batch_shape" if framework == "keras" else "batch_input_shape"
    return _layer(framework, "InputLayer", {shape: [None, 3], "dtype": "float32", "name": "in"}, [])


def operation_on_constants() -> bytes:
    """A `.keras` of 2.9 KB."""
    return archive("keras", of_constants())


def of_constants() -> dict[str, Any]:
    """Keras 3 runs an operation at once where nothing of the graph goes into it."""
    tile = {"name": "tile", "repeats": [MANY, MANY]}
    node = {"args": [[[1.0]]], "kwargs": {}}
    layers = [_input("keras"), _layer("keras", "Tile", tile, [node], "src.ops.numpy")]
    return _model("keras", layers)


def of_constants_unless_names_clash() -> dict[str, Any]:
    """The same, behind a layer without a name that is given that of the next one where it is the first of its kind."""
    dense = {"trainable": True, "dtype": "float32", "units": 3}
    named = _layer("keras", "Dense", {**dense, "name": "dense"}, [])
    inner = {"name": "inner", "layers": [_input("keras"), {**named, "config": dense}, named]}
    model = of_constants()
    model["config"]["layers"].insert(1, _layer("keras", "Sequential", inner, [], "models"))
    return model


def with_layer(config: dict[str, Any], module: str, name: str, package: str) -> dict[str, Any]:
    """A model's config with one more layer, of a registered class, first."""
    layer = _layer("keras", name, {"name": "more", "trainable": True, "dtype": "float32"}, [])
    config["config"]["layers"].insert(1, {**layer, "module": module, "registered_name": f"{package}>{name}"})
    return config


def waits_for_itself() -> bytes:
    """tf_keras tries again and again to call a layer on what is never made."""
    config = {"name": "dense", "trainable": True, "dtype": "float32", "units": 2}
    layers = [_input("tf_keras"), _layer("tf_keras", "Dense", config, [[["dense", 0, 0, {}]]])]
    return archive("tf_keras", _model("tf_keras", layers))


def packed_twice(folder: Path) -> bytes:
    """A `.keras` whose weights are packed by HDF5, and then by the archive."""
    weights, packed, chunk = folder / "inside.weights.h5", io.BytesIO(), zlib.compress(bytes(2**24), 9)
    with h5py.File(weights, "w") as file:
        for number in range(40):
            place = f"layers/dense_{number}/vars/0"
            made = file.create_dataset(place, (2**27,), "u1", chunks=(2**24,), compression="gzip")
            for start in range(0, 2**27, 2**24):
                made.id.write_direct_chunk((start,), chunk)
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as members:
        members.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        members.writestr("config.json", json.dumps(_model("keras", [_input("keras")])))
        members.write(weights, "model.weights.h5")
    return packed.getvalue()


def long_weights() -> bytes:
    """A `.keras` whose weights, which Keras reads whole, are followed by nothing, tightly packed."""
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(archive("keras", _model("keras", [_input("keras")])))) as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as members,
    ):
        for name in old.namelist():
            members.writestr(name, old.read(name) + bytes(2**27 if name == "model.weights.h5" else 0))
    return packed.getvalue()


def nested_json() -> bytes:
    """A config that is small in the archive, and large as objects."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as members:
        members.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        members.writestr("config.json", b'{"a": [' + b"{}," * (2**25) + b"1]}")
    return packed.getvalue()
