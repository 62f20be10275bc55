"""What a file of a whole model says of its optimizer: of which class it was, and which layers it trained.

Slots lie in such a file by their order alone, and those of two layers of one shape, or of two optimizers with as many
slots, look the same. A bare `.weights.h5` says none of it.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import Any

from ckptflow.interop.keras_hdf5 import MAX_JSON_BYTES, damage, json_of, opened, text_of
from ckptflow.state.kinds import raw_variable
from ckptflow.state.tree import walk

_CONFIG = "config.json"
_ATTRIBUTES = ("model", "training")
_INNER = ("inner_optimizer", "optimizer")  # of one that scales losses, in its config
_HELD_AS = ("inner_optimizer", "_optimizer")  # and in itself


@dataclass(frozen=True, slots=True)
class Described:
    """The class of an optimizer, in lower case, and whether each layer is trained, in the order of the config. Empty
    where the file does not say."""

    optimizer: str = ""
    layers: tuple[tuple[str, bool], ...] = ()


def described_in(path: str, kind: str) -> Described:
    """What a file says. It was looked over; raises `CorruptCheckpointError` for damage in its configs."""
    if kind == "keras":
        with damage(path), zipfile.ZipFile(path) as archive:
            text = archive.open(_CONFIG).read(MAX_JSON_BYTES + 1) if _CONFIG in archive.namelist() else None
        config = json_of(text or b"{}", _CONFIG, path)
        training = config.get("compile_config")
        optimizer = training.get("optimizer") if isinstance(training, dict) else None
    elif kind == "whole":
        with opened(path, path) as file:
            config, training = (json_of(text_of(file, f"{name}_config") or "{}", name, path) for name in _ATTRIBUTES)
        optimizer = training.get("optimizer_config")
    else:
        return Described()
    return Described(_class_of(optimizer), tuple(_layers_of(config.get("config"))))


def difference(described: Described, model: Any) -> str | None:
    """How the optimizer of a live model is another than the one described, in words; None where nothing tells so."""
    live = model.optimizer
    while (inner := next((vars(live)[name] for name in _HELD_AS if name in vars(live)), None)) is not None:
        live = inner
    name = type(live).__name__
    if described.optimizer and described.optimizer != name.lower():
        return f"it is that of another class, {described.optimizer!r}, and the model has {name}"
    tree = walk({"model": model})
    names = {id(raw_variable(variable)): name for name, variable in tree.variables.items()}
    trained = next((node.built_for for node in tree.optimizers.values() if node.built_for), ())
    known = _trained_there(described, model)
    wanted = [names[id(raw)] for raw in known or () if id(raw) in names]
    # What was frozen after `compile` is not what the optimizer was built for.
    if len(wanted) != len(trained) or set(wanted) == set(trained):
        return None
    other = next(name for name in trained if name not in set(wanted))
    return f"{other} was not trained there"


def _class_of(config: Any) -> str:
    """The class that a config names, the inner one of an optimizer that scales losses; "" where there is none."""
    while isinstance(config, dict):
        inner = config.get("config")
        held = next((inner[name] for name in _INNER if name in inner), None) if isinstance(inner, dict) else None
        if not isinstance(held, dict):
            config = config.get("class_name")
            break
        config = held
    return config.rpartition(">")[2].lower() if isinstance(config, str) else ""


def _layers_of(config: Any) -> list[tuple[str, bool]]:
    """The names of all layers in a model's config, and whether they are trained. No recursion: it may be deep."""
    found = []
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            inner = value.get("config")
            if "class_name" in value and isinstance(inner, dict):
                name, is_trained = inner.get("name"), inner.get("trainable")
                if isinstance(name, str) and isinstance(is_trained, bool):
                    found.append((name, is_trained))
            waiting += reversed(value.values())
        elif isinstance(value, list):
            waiting += reversed(value)
    return found


def _trained_there(described: Described, model: Any) -> list[Any] | None:
    """Which variables of a live model the layers described would train, None where they are not its layers."""
    layers = list(model._flatten_layers(include_self=False))
    flags = dict(described.layers)
    if len(flags) != len(described.layers):  # two of one name
        return None
    own = [raw_variable(variable) for layer in layers for variable in _own(layer)]
    told = {id(raw) for layer in layers if layer.name in flags for raw in _all_of(layer)}
    frozen = {id(raw) for layer in layers if not flags.get(layer.name, True) for raw in _all_of(layer)}
    if any(id(raw) not in told for raw in own):
        return None
    return [raw for raw in own if id(raw) not in frozen]


def _all_of(layer: Any) -> list[Any]:
    return [raw_variable(variable) for each in layer._flatten_layers() for variable in _own(each)]


def _own(layer: Any) -> list[Any]:
    """What a layer itself was made to train, whether it is frozen now or not."""
    return list(vars(layer).get("_trainable_variables", vars(layer).get("_trainable_weights", ())))
