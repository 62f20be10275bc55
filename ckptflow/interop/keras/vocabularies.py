"""The vocabularies that a file of Keras's has for a model's layers: found, and tried, before anything is changed."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ckptflow.format.dtypes import Array
from ckptflow.interop.keras.described import Described
from ckptflow.interop.keras.hdf5 import check_assets, damage
from ckptflow.interop.keras.places import Places
from ckptflow.interop.untrusted.keras_trust import Framework
from ckptflow.state.bundles import VocabularyBundle
from ckptflow.state.leaves import PartLeaf
from ckptflow.state.private.kerases import LOOKUP
from ckptflow.state.tree import walk

logger = logging.getLogger("ckptflow")

_MEMBER = "/vocabulary.txt"  # of an adapted layer, in a .keras
_ASSETS = "assets/"
_SPECIAL = ("num_oov_indices", "mask_token", "oov_token")


@dataclass(frozen=True, slots=True)
class Vocabularies:
    """What of them a file has for a model. `problems`: what the model cannot take, in words. `layers`: the identities
    of the layers that get one. `given`: what Keras itself does not load, being in the config."""

    problems: list[str] = field(default_factory=list)
    layers: set[int] = field(default_factory=set)
    given: list[tuple[VocabularyBundle, dict[str, Array]]] = field(default_factory=list)

    def refuse(self, place: str, why_not: str) -> None:
        """Notes why the layer there cannot take a vocabulary, if there is a reason."""
        if why_not:
            self.problems.append(f"{place}: its vocabulary: {why_not}")

    def write(self) -> None:
        """Gives the layers what is not loaded by Keras. They were found to take it."""
        for bundle, parts in self.given:
            bundle.write(parts)


def vocabularies_in(
    path: str,
    kind: str,
    model: Any,
    framework: Framework,
    places: Places,
    described: Described,
    there: Mapping[str, str | None],
) -> Vocabularies:
    """What a file that was looked over has for a live model, whose layers are `there` in it."""
    found = Vocabularies()
    bundles = {
        id(leaf.bundle.obj): leaf.bundle
        for leaf in walk({"model": model}).leaves
        if isinstance(leaf, PartLeaf) and isinstance(leaf.bundle, VocabularyBundle)
    }
    here = {other: getattr(places.layers[place], LOOKUP, places.layers[place]) for place, other in there.items()}
    for config in described.others:
        if not any(_is_there(bundle, config) for bundle in bundles.values()):
            found.problems.append(f"{config.get('name')!r:.100}: which layer its vocabulary is for is not known")
    for place, config in described.lookups.items():
        if here.get(place) is None:
            _tell_left(path, place)
            continue
        bundle = bundles.get(id(here[place]))
        why_not = _given(found, bundle, config) if bundle is not None else "in the file, not in the model"
        found.refuse(place, why_not)
    if kind == "keras":
        with damage(path), zipfile.ZipFile(path) as archive:
            check_assets(archive, path)
            for name in archive.namelist():
                if name.startswith(_ASSETS) and name.endswith(_MEMBER):
                    place = name.removeprefix(_ASSETS).removesuffix(_MEMBER)
                    text = archive.read(name).decode()
                    if here.get(place) is None:
                        _tell_left(path, place)
                        continue
                    bundle = bundles.get(id(here[place]))
                    why_not = _adapted(found, bundle, text, framework) if bundle is not None else ""
                    found.refuse(place, why_not)
    return found


def _tell_left(path: str, place: str) -> None:
    """Of a layer that looks words up, which the model has not, as where its input does that now: it has no weights."""
    logger.warning("%s: the vocabulary of %s does not come: model= has no layer for it", path, place)


def _given(found: Vocabularies, bundle: VocabularyBundle, config: Mapping[str, Any]) -> str:
    """Notes a vocabulary that a config has; says why it cannot be taken."""
    own = bundle.obj.get_config()
    other = [key for key in _SPECIAL if key in config and key in own and config[key] != own[key]]
    if other:
        return f"{other[0]} is {config[other[0]]!r:.50} in the file, {own[other[0]]!r:.50} in the model"
    try:
        parts = bundle.parts_of(config["vocabulary"], config.get("idf_weights"))
    except Exception as error:  # whatever Keras makes of such words
        return str(error)[:300]
    found.layers.add(id(bundle.obj))
    found.given.append((bundle, parts))
    return bundle.misfit(parts)


def _is_there(bundle: VocabularyBundle, config: Mapping[str, Any]) -> bool:
    try:
        parts = bundle.parts_of(config["vocabulary"], config.get("idf_weights"))
    except Exception:  # words that are none for that layer
        return False
    return np.array_equal(bundle.read()["vocabulary"], parts["vocabulary"])


def _adapted(found: Vocabularies, bundle: VocabularyBundle, text: str, framework: Framework) -> str:
    """Notes a vocabulary that Keras will load; says why the layer cannot take it."""
    lines = text.split("\n") if framework == "tf_keras" else text.splitlines()
    while framework == "keras" and lines and not lines[-1]:
        lines.pop()
    dtype = bundle.dtypes["vocabulary"]
    try:
        words = [line.encode() for line in lines] if dtype == "string" else [int(line) for line in lines]
        parts: dict[str, Array] = {"vocabulary": np.array(words, object if dtype == "string" else dtype)}
    except (ValueError, OverflowError) as error:
        return str(error)[:300]
    if not words:
        return "it is empty"
    if "idf_weights" in bundle.dtypes:  # which come with the weights
        parts["idf_weights"] = np.zeros(len(words), bundle.dtypes["idf_weights"])
    own = bundle.read()["vocabulary"]
    if bundle.obj.get_config().get("vocabulary") is not None and not np.array_equal(own, parts["vocabulary"]):
        return "the layer of the model was given another one when it was made"
    found.layers.add(id(bundle.obj))
    return bundle.misfit(parts)
