"""How layers were called in a file of Keras's whose weights go by their places, against what they are called now."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence

from ckptflow.format.words import some_of
from ckptflow.interop.keras.optimizer import is_at
from ckptflow.interop.keras.places import Places

logger = logging.getLogger("ckptflow")

_Shapes = tuple[tuple[int, ...], ...]
NamedNow = tuple[str, str, _Shapes]  # a layer's name there and now, and the shapes of its weights
_NUMBERED = re.compile(r"(?P<base>.*?)(?:_(?P<number>\d{1,9}))?", re.DOTALL)
_SHOWN = 10


def warn_of_names(where: str, pairs: Iterable[NamedNow]) -> None:
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
    ranks = {}  # each class is counted by itself
    for name in {base for base, _ in split}:
        ranks[name] = {number: rank for rank, number in enumerate(sorted(n for base, n in set(split) if base == name))}
    return [(base, ranks[base][number]) for base, number in split]


def pairs_by_place(places: Places, names: Mapping[str, str], there: Mapping[str, str | None]) -> list[NamedNow]:
    """The pairs of a file of Keras 3: `names` are those of its layers by place, `there` where each layer of a model is
    in it, by its place in the model."""
    shapes: dict[str, _Shapes] = {}
    for place, shape in places.shapes.items():
        layer = place.rpartition("/vars/")[0]
        shapes[layer] = (*shapes.get(layer, ()), shape)
    found = []
    for place, layer in places.layers.items():
        name = names.get(there.get(place) or "")
        if name is not None and place in shapes and not is_at(place, places.optimizers):
            found.append((name, layer.name, shapes[place]))
    return found
