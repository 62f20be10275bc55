"""What a file of Keras's says of its optimizer: of which class it was, and which layers it trained.

Slots lie in such a file by their order alone, and those of two layers of one shape, or of two optimizers with as many
slots, look the same. A bare `.weights.h5` of Keras 3 says how the optimizer was called, one of tf_keras nothing.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ckptflow.interop.keras.hdf5 import MAX_JSON_BYTES, damage, json_of, member, opened, text_of
from ckptflow.interop.keras.named import lookups_in_config, names_in_config, names_in_weights
from ckptflow.interop.untrusted.hdf5_probe import WEIGHTS_MEMBER
from ckptflow.interop.untrusted.keras_allowed import Framework, keras_module
from ckptflow.state.kinds import is_tf_keras_model, raw_variable
from ckptflow.state.private.kerases import INNER_OPTIMIZERS, layers_in, own_variables
from ckptflow.state.tree import walk

COMPILED = "optimizer"  # the place in a weights file of the one that a model is compiled with
_CONFIG = "config.json"
_ATTRIBUTES = ("model", "training")
_SCALING = "LossScaleOptimizer"  # around another one, whose slots it leaves as they are
_INNER = ("inner_optimizer", "optimizer")  # of one around another, in its config
_OF_NEW = "Custom>"  # before the class in what tf_keras writes into HDF5, but for its optimizers of old


@dataclass(frozen=True, slots=True)
class Described:
    """The class of an optimizer and of those inside of it, and whether each layer is trained, in the order of the
    config. Empty where the file does not say.

    `name` is the optimizer's own where there is no class: that of its class in small letters unless it was given one.
    `places`: the names of layers by their places, `called` those of all that has variables, optimizers too; `lookups`:
    the configs of those with a vocabulary in them, `others` of such whose place is not known.
    `is_new`: whether it is none of tf_keras's of old, which have the same classes; None where the file does not say.
    """

    classes: tuple[str, ...] = ()
    layers: tuple[tuple[str, bool], ...] = ()
    name: str = ""
    is_new: bool | None = None
    places: Mapping[str, str] = field(default_factory=dict)
    called: Mapping[str, str] = field(default_factory=dict)
    lookups: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    others: list[dict[str, Any]] = field(default_factory=list)


def described_in(path: str, kind: str) -> Described:
    """What a file says. It was looked over; raises `CorruptCheckpointError` for damage in its configs."""
    if kind == "keras":
        with damage(path), zipfile.ZipFile(path) as archive:
            text = archive.open(_CONFIG).read(MAX_JSON_BYTES + 1) if _CONFIG in archive.namelist() else None
            with member(archive, WEIGHTS_MEMBER, path) as inside, opened(inside, path) as file:
                called = names_in_weights(file)
        config = json_of(text or b"{}", _CONFIG, path)
        training = config.get("compile_config")
        names = _classes_in(training.get("optimizer")) if isinstance(training, dict) else []
        name = "" if names else described_at(COMPILED, Described(called=called)).name
        return _with_layers(Described(_plain(names), name=name, called=called), config)
    if kind == "whole":
        with opened(path, path) as file:
            config, training = (json_of(text_of(file, f"{name}_config") or "{}", name, path) for name in _ATTRIBUTES)
        return _with_layers(described_by(training), config)
    if kind == "weights":
        with opened(path, path) as file:
            called = names_in_weights(file)
        return replace(described_at(COMPILED, Described(called=called)), places=called)
    return Described()


def described_at(place: str, described: Described) -> Described:
    """What a file says of the optimizer at a place, or of the one whose losses are scaled there."""
    called = described.called
    while f"{place}/inner_optimizer" in called:
        place += "/inner_optimizer"
    return Described(name=_without_number(called.get(place, "")), called=called)


def is_name_of_optimizer(name: str, framework: Framework) -> bool:
    """Whether a Keras calls its own optimizers so."""
    return _without_number(name) in _public_classes(framework)


def _with_layers(described: Described, config: Mapping[str, Any]) -> Described:
    lookups, others = lookups_in_config(config)
    layers = tuple(_layers_of(config.get("config")))
    return replace(described, layers=layers, places=names_in_config(config), lookups=lookups, others=others)


def described_by(training: Mapping[str, Any]) -> Described:
    """What a training config says of the optimizer, as HDF5 files and the SavedModels of tf_keras hold it."""
    names = _classes_in(training.get("optimizer_config"))
    is_scaled = any(_SCALING in name for name in names)  # the inner one's class has no prefix then
    is_new = None if is_scaled or not names else names[-1].startswith(_OF_NEW)
    return Described(_plain(names), is_new=is_new)


def difference(described: Described, model: Any, *, has_slots: bool = True) -> str | None:
    """How the optimizer of a live model is another than the one described, in words; None where nothing tells so.

    Counters alone (not `has_slots`) fit any optimizer that has no slots: they are another's where no class is told.
    """
    if getattr(model, "optimizer", None) is None:
        return None
    framework: Framework = "tf_keras" if is_tf_keras_model(model) else "keras"
    class_text = differing_class(described, model.optimizer, framework, has_slots=has_slots)
    return class_text or _not_trained(described, model)


def differing_class(described: Described, optimizer: Any, framework: Framework, *, has_slots: bool) -> str | None:
    """As `difference`, of the class alone, for any live optimizer."""
    live = list(_with_inner(optimizer))
    for saved, each in zip(described.classes, live, strict=False):
        if saved.casefold() not in _classes_of(each, framework):
            return f"it is that of {saved}, another class than the model's {type(each).__name__}"
    public = _public_classes(framework)
    is_namesake = described.name == _name_of(live[-1])
    called = None if is_namesake else public.get(described.name)
    if called is not None and called is not type(live[-1]):
        return f"it is that of {called.__name__}, another class than the model's {type(live[-1]).__name__}"
    if not (has_slots or described.classes or is_namesake or called):
        return "it has no slots, and of which class it was is not known"
    is_public = bool(described.classes) and described.classes[-1].casefold() in public
    if framework == "tf_keras" and is_public and described.is_new not in (None, hasattr(live[-1], "build")):
        return f"it is that of {described.classes[-1]} with its slots in another order"
    return None


def _not_trained(described: Described, model: Any) -> str | None:
    if not described.layers:
        return None
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


def _with_inner(optimizer: Any) -> Iterator[Any]:
    """A live optimizer and those inside of it, without what scales losses."""
    while optimizer is not None:
        if _SCALING not in type(optimizer).__name__:
            yield optimizer
        optimizer = next((vars(optimizer)[name] for name in INNER_OPTIMIZERS if name in vars(optimizer)), None)


def _classes_of(optimizer: Any, framework: Framework) -> set[str]:
    """How files may name an optimizer's class, in small letters."""
    registered = keras_module(framework).saving.get_registered_name(type(optimizer))
    return {name.rpartition(">")[2].casefold() for name in (type(optimizer).__name__, registered)}


def _name_of(optimizer: Any) -> str:
    return _without_number(str(getattr(optimizer, "name", "")))


def _without_number(name: str) -> str:
    return re.sub(r"_\d+$", "", name).replace("_", "").casefold()  # SGD's own is "SGD" before Keras 3.15


def _public_classes(framework: Framework) -> dict[str, type]:
    """A Keras's own optimizers by their names in small letters."""
    found = vars(keras_module(framework).optimizers)
    return {name.casefold(): each for name, each in found.items() if isinstance(each, type)}


def _classes_in(config: Any) -> list[str]:
    """The classes that a config names for an optimizer and for those inside of it."""
    found = []
    while isinstance(config, dict):
        name, inner = config.get("class_name"), config.get("config")
        found += [name] if isinstance(name, str) else []
        config = next((inner[key] for key in _INNER if key in inner), None) if isinstance(inner, dict) else None
    return [*found, config] if isinstance(config, str) else found


def _plain(names: list[str]) -> tuple[str, ...]:
    return tuple(name.rpartition(">")[2] for name in names if _SCALING not in name)


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
    layers = [layer for layer in layers_in(model) if layer is not model]
    flags = dict(described.layers)
    if len(flags) != len(described.layers):  # two of one name
        return None
    own = [raw_variable(variable) for layer in layers for variable in own_variables(layer, "trainable")]
    told = {id(raw) for layer in layers if layer.name in flags for raw in _all_of(layer)}
    frozen = {id(raw) for layer in layers if not flags.get(layer.name, True) for raw in _all_of(layer)}
    if any(id(raw) not in told for raw in own):
        return None
    return [raw for raw in own if id(raw) not in frozen]


def _all_of(layer: Any) -> list[Any]:
    return [raw_variable(variable) for each in layers_in(layer) for variable in own_variables(each, "trainable")]
