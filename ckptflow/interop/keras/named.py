"""Which layer of a model is which in a file of Keras's: by the names that user code gave them, else by their places.

Keras itself goes by the places alone. Names that it made itself, as `dense_3`, say nothing: they count layers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import h5py

from ckptflow.interop.keras.hdf5 import text_of

_LAYERS = "layers"  # of a model: where its layers lie, in its config and in its weights
_VARIABLES = "vars"
LOOKUPS = frozenset({"TextVectorization", "StringLookup", "IntegerLookup"})
_OTHERWISE = {"functional": "model"}  # how tf_keras names what is of that class


def pairs_of(theirs: Sequence[str], layers: Sequence[Any]) -> list[tuple[str, Any]] | None:
    """The layers of a file that has an order of them, each with the one of a model, which has as many: by the order,
    or by their names where these are the same in another one; None where the two say different things."""
    if _agree(theirs, layers):
        return list(zip(theirs, layers, strict=True))
    found = {layer.name: layer for layer in layers}
    return list(found.items()) if set(theirs) == set(found) else None


def pairs_for_a_warm_start(theirs: Sequence[str], layers: Sequence[Any]) -> list[tuple[str, Any]]:
    """The same where each may have what the other has not: by names, and where none is the same by the order."""
    same = {layer.name for layer in layers if _is_given(layer)} & set(theirs)
    if len(theirs) != len(layers) or not _agree(theirs, layers):
        return [(layer.name, layer) for layer in layers if layer.name in theirs]
    return [
        (name, layer)
        for name, layer in zip(theirs, layers, strict=True)
        if not same or name == layer.name or (not _is_given(layer) and _root(name) == _root(layer.name))
    ]


def _agree(theirs: Sequence[str], layers: Sequence[Any]) -> bool:
    """Whether the names that were given to layers and are in the file are where the file has them."""
    pairs = zip(theirs, layers, strict=True)
    return all(name == layer.name or not _is_given(layer) or layer.name not in theirs for name, layer in pairs)


def _is_given(layer: Any) -> bool:
    """Whether user code named a layer, and not Keras."""
    made = type(layer).__name__.lower()
    return _root(layer.name) not in (made, _OTHERWISE.get(made))


def _root(name: str) -> str:
    """A name without its number, and as classes are written, but for capital letters."""
    return re.sub(r"_\d+$", "", name).replace("_", "").lower()


# By places


def counterparts(layers: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str | None]:
    """The place in a file of each layer of a model, by its place in the model; None where names tell that it has none.

    `names` are those of the layers in the file, by place; where there are none, each layer has its own place.
    """
    here = {container: _by_name(places, layers) for container, places in _by_container(layers).items()}
    there = {container: _names_in(places, names) for container, places in _by_container(names).items()}
    found: dict[str, str | None] = {"": ""}
    for place in sorted(layers, key=len):
        if not place:
            continue
        above = _above(place, layers)
        beginning = found[above]
        if beginning is None:
            found[place] = None
            continue
        own = f"{beginning}{place[len(above) :]}" if above else place
        known = there.get(_container(own), {})
        same = here[_container(place)].keys() & known.keys()
        if _is_given_at(place, layers) and layers[place].name in same:
            found[place] = known[layers[place].name]
        else:
            is_known = not same or _is_attribute(place, layers) or _may_be(place, own, layers, names)
            found[place] = own if is_known else None
    return found


def _may_be(place: str, own: str, layers: Mapping[str, Any], names: Mapping[str, str]) -> bool:
    """Whether a layer may be the one in its place, where others are known by their names."""
    name = names.get(own)
    if name is None or name == layers[place].name:
        return True
    is_made = _root(name) in (segment := _root(own.rpartition("/")[2]), _OTHERWISE.get(segment))
    return is_made and not _is_given_at(place, layers)


def _by_container(places: Mapping[str, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for place in places:
        if place:
            found.setdefault(_container(place), []).append(place)
    return found


def _by_name(places: Sequence[str], layers: Mapping[str, Any]) -> dict[str, str]:
    return {layers[place].name: place for place in places if _is_given_at(place, layers)}


def _names_in(places: Sequence[str], names: Mapping[str, str]) -> dict[str, str]:
    """The places by names, without those that have the name of another one."""
    counts = Counter(names[place] for place in places)
    return {names[place]: place for place in places if counts[names[place]] == 1}


def _is_given_at(place: str, layers: Mapping[str, Any]) -> bool:
    """Whether a layer's own name tells it, and not the name of the attribute that it is."""
    layer = layers[place]
    return _root(place.rpartition("/")[2]) == type(layer).__name__.lower() and _is_given(layer)


def _is_attribute(place: str, layers: Mapping[str, Any]) -> bool:
    """Whether a place is an attribute's name, which user code gave, and not a class's with a number."""
    made = type(layers[place]).__name__.lower()
    return _root(place.rpartition("/")[2]) not in (made, _OTHERWISE.get(made))


def _container(place: str) -> str:
    return place.rpartition("/")[0]


def _above(place: str, layers: Mapping[str, Any]) -> str:
    while place := _container(place):
        if place in layers:
            return place
    return ""


# What files say


def names_in_weights(file: h5py.File) -> dict[str, str]:
    """The names of the layers in a weights file of Keras 3, by place. The file was looked over: groups end."""
    found = {}
    waiting: list[tuple[str, h5py.Group]] = [("", file)]
    while waiting:
        path, group = waiting.pop()
        for name, inside in group.items():
            if isinstance(inside, h5py.Group) and name == _VARIABLES:
                text = text_of(inside, "name")
                if text is not None:
                    found[path] = text
            elif isinstance(inside, h5py.Group):
                waiting.append((f"{path}/{name}" if path else name, inside))
    return found


def names_in_config(config: Any) -> dict[str, str]:
    """The names of the layers of a functional or sequential model, and of those in it, by place, as its config says."""
    named = ((place, _own(layer).get("name")) for place, layer in _layers_in(config))
    return {place: name for place, name in named if isinstance(name, str)}


def lookups_in_config(config: Any) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """The configs of the layers that have a list of words in them, by place, and of those whose place is not known."""
    found = {place: _own(layer) for place, layer in _layers_in(config) if _has_words(layer)}
    known = {id(each) for each in found.values()}
    others = []
    waiting = [config]
    while waiting:  # no recursion: it may be deep
        value = waiting.pop()
        if isinstance(value, dict):
            others += [_own(value)] if _has_words(value) and id(_own(value)) not in known else []
            waiting += value.values()
        elif isinstance(value, list) and value and isinstance(value[0], (dict, list)):
            waiting += value
    return found, others


def _has_words(layer: Any) -> bool:
    is_lookup = str(layer.get("class_name")).rpartition(">")[2] in LOOKUPS
    return is_lookup and isinstance(_own(layer).get("vocabulary"), list)


def _own(layer: Any) -> dict[str, Any]:
    own = layer.get("config")
    return own if isinstance(own, dict) else {}


def _layers_in(config: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    waiting = [("", config)]
    while waiting:
        above, model = waiting.pop()
        inner = model.get("config") if isinstance(model, dict) else None
        layers = inner.get(_LAYERS) if isinstance(inner, dict) else None
        counts: Counter[str] = Counter()
        for layer in layers if isinstance(layers, list) else ():
            if not isinstance(layer, dict) or ".ops" in str(layer.get("module")):  # operations have no weights
                continue
            segment = _snake_case(str(layer.get("class_name")).rpartition(">")[2])
            number, counts[segment] = counts[segment], counts[segment] + 1
            place = "/".join(each for each in (above, _LAYERS, f"{segment}_{number}" if number else segment) if each)
            yield place, layer
            waiting.append((place, layer))


def _snake_case(name: str) -> str:
    """As Keras makes it of a class's name."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
