"""Renaming: what `rename=` makes of a source's names, and which one would make all of them fit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

from ckptflow.errors import UsageError
from ckptflow.format.offer import Offer
from ckptflow.format.spec import Rename
from ckptflow.state.walker import path_of_slot

_TRIES = 4


def likely_renames(missing: Collection[str], unexpected: Collection[str]) -> Iterator[dict[str, str]]:
    """Renames of one prefix that may make names of a source those that the state lacks, the likeliest first. Pure.

    Two names that end alike tell the prefix: model/dense/kernel and net/dense/kernel.
    """
    found: dict[tuple[str, str], None] = {}
    by_end: dict[str, list[str]] = {}
    for name in sorted(unexpected):
        by_end.setdefault(name.rpartition("/")[2], []).append(name)
    for new in itertools.islice(sorted(missing, key=lambda name: (name.count("/"), name)), _TRIES):
        alike = by_end.get(new.rpartition("/")[2], ())
        pairs = (_without_common_end(old, new) for old in alike)
        found |= dict.fromkeys(sorted(pairs, key=lambda pair: (sum(map(len, pair)), pair))[:_TRIES])
    yield from ({old: new} for old, new in itertools.islice(found, _TRIES) if old and new)


def _without_common_end(a: str, b: str) -> tuple[str, str]:
    """Both paths without the last parts that they share."""
    parts = a.split("/"), b.split("/")
    while all(parts) and parts[0][-1] == parts[1][-1]:
        parts[0].pop(), parts[1].pop()
    return "/".join(parts[0]), "/".join(parts[1])


def renamer(rename: Rename | None, offer: Offer) -> Callable[[str], str]:
    """The name in the state for each name of a source: `rename` as `match` takes it. Raises `UsageError`."""
    if rename is None:
        return lambda name: name
    names = [name for record in offer.tensors for name in (record.name, *record.aliases)]
    names += offer.python_state
    is_map = isinstance(rename, Mapping) and all(isinstance(name, str) for pair in rename.items() for name in pair)
    if not is_map and not callable(rename):
        raise UsageError(f"rename is a map from names to names, or a function of a name, not {rename!r}")
    renamed = rename if callable(rename) else _by_prefix(rename, names, _slot_names(offer))
    for name in names:
        if not isinstance(renamed(name), str):
            raise UsageError(
                f"rename makes {name!r} into {renamed(name)!r}, which is not a valid name; return it unchanged"
            )
    for kind in ([record.name for record in offer.tensors], offer.python_state):
        targets: dict[str, str] = {}
        for name in kind:
            other = targets.setdefault(renamed(name), name)
            if other != name:
                raise UsageError(f"rename makes both {other!r} and {name!r} into {renamed(name)!r}")
    return renamed


def _by_prefix(rename: Mapping[str, str], names: list[str], slots: Mapping[str, _SlotName]) -> Callable[[str], str]:
    for old in rename:
        if not any(name == old or name.startswith(old.rstrip("/") + "/") for name in names):
            raise UsageError(f"rename: the checkpoint has nothing that is called, or begins with, {old!r}")
    longest_first = sorted(rename, key=len, reverse=True)

    def key_of(name: str) -> str:
        fitting = (old for old in longest_first if name == old or name.startswith(old.rstrip("/") + "/"))
        return next(fitting, "")

    def by_key(name: str) -> str:
        old = key_of(name)
        if not old or name == old:
            return rename.get(old, name)
        return rename[old].rstrip("/") + name[len(old.rstrip("/")) :]

    def renamed(name: str) -> str:
        slot = slots.get(name)
        if slot is None or len(key_of(name).rstrip("/")) > len(slot.optimizer):
            return by_key(name)
        return f"{by_key(slot.optimizer)}/{path_of_slot(slot.slot, by_key(slot.of), by_key(slot.owner))}"

    return renamed


class _SlotName(NamedTuple):
    """A slot's name in its parts: the optimizer's path, the slot, its variable's name, the path of the model that holds
    the optimizer."""

    optimizer: str
    slot: str
    of: str
    owner: str


def _slot_names(offer: Offer) -> dict[str, _SlotName]:
    """The parts, by each name and alias of an optimizer's slot: a variable's slots are renamed with it."""
    kinds = {path: entry.get("kind") for path, entry in offer.models.items() if isinstance(entry, dict)}
    variables = {record.name for record in offer.tensors}
    found = {}
    for record in offer.tensors:
        optimizer = _nearest(record.name, kinds, "optimizer")
        slot, _, rest = record.name[len(optimizer) + 1 :].partition("/")
        owned = f"{_nearest(optimizer, kinds, 'model')}/{rest}"
        of = owned if owned in variables else rest
        if not optimizer or of not in variables:
            continue
        for name in (record.name, *record.aliases):
            owner = _nearest(name, kinds, "model")
            end = f"/{path_of_slot(slot, of, owner)}"
            if name.endswith(end):
                found[name] = _SlotName(name.removesuffix(end), slot, of, owner)
    return found


def _nearest(name: str, kinds: Mapping[str, object], kind: str) -> str:
    """The longest path of that kind that a name is, or begins with."""
    while name and kinds.get(name) != kind:
        name = name.rpartition("/")[0]
    return name
