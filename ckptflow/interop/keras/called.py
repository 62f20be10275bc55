"""How layers were called in a file of Keras's whose weights go by their places, against what they are called now."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence

import h5py

from ckptflow.format.words import some_of
from ckptflow.interop.keras.described import PLACE
from ckptflow.interop.keras.hdf5 import text_of

logger = logging.getLogger("ckptflow")

_Shapes = tuple[tuple[int, ...], ...]
_NUMBERED = re.compile(r"(?P<base>.*?)(?:_(?P<number>\d{1,9}))?", re.DOTALL)
_SHOWN = 10


def warn_of_names(where: str, pairs: Iterable[tuple[str, str, _Shapes]]) -> None:
    """Names the layers that get what another one had, by the names: (there, now, shapes of the weights), in order.

    Layers whose shapes no other has are where they belong; so are those that have other numbers in the same order,
    which Keras gives to the layers of a model that is made again.
    """
    alike: dict[_Shapes, list[tuple[str, str]]] = {}
    for there, now, shapes in pairs:
        alike.setdefault(shapes, []).append((there, now))
    renamed = [
        f"{there} -> {now}"
        for group in alike.values()
        if len(group) > 1 and _order([there for there, _ in group]) != _order([now for _, now in group])
        for there, now in group
        if there != now
    ]
    if renamed:
        logger.warning(
            "%s: its weights go by their places, as in Keras, and these layers have other names there, and the shapes "
            "of one another: %s. If that is wrong, give the layers of model= the order that they have in the file",
            where,
            some_of(renamed, _SHOWN),
        )


def _order(names: Sequence[str]) -> list[tuple[str, int]]:
    """Each name without its number, and the rank of that."""
    split = [(found["base"], int(found["number"] or 0)) for name in names if (found := _NUMBERED.fullmatch(name))]
    ranks = {number: rank for rank, number in enumerate(sorted({number for _, number in split}))}
    return [(base, ranks[number]) for base, number in split]


def pairs_by_place(
    file: h5py.File, called: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> list[tuple[str, str, _Shapes]]:
    """The pairs of a `.weights.h5`: Keras 3 writes a layer's name to its variables. `called` are the model's, by place;
    `shapes` those of the variables in the file."""
    found = []
    for place, now in called.items():
        group = file.get(place)
        if place.startswith(PLACE) or not isinstance(group, h5py.Group):
            continue
        there = text_of(group, "name")
        own = tuple(shapes[name] for key in group if (name := f"{place}/{key}") in shapes)
        if there and own:
            found.append((there, now, own))
    return found
