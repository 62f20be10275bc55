"""Pins: what a person wants to keep, whatever retention says, and by which names."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from ckptflow.commit.catalog import Summaries
from ckptflow.commit.finding import find_folder
from ckptflow.errors import CheckpointGoneError, CheckpointNotFoundError, ObjectExistsError
from ckptflow.format.layout import (
    PINS_PREFIX,
    Folder,
    check_pin_name,
    parse_pin_key,
    parse_pin_name_key,
    pin_key,
    pin_name_key,
)
from ckptflow.format.words import some_of
from ckptflow.storage.again import is_there
from ckptflow.storage.store import Store


def pin_checkpoint(store: Store, summaries: Summaries, step: int, name: str | None = None) -> list[Folder]:
    """Pins the checkpoint of `step` that counts, then looks whether it is still there: a prune may be running.

    A prune in another process that listed pins before this one was there and deletes after the look is not seen.
    With `name` the pin has that name, too, and those that had it before, which are returned, only lose it: they stay
    pinned. Names that an earlier pin has left behind do not come back. Raises ValueError for what cannot be a name.
    """
    if name is not None:
        check_pin_name(name)
    folder = find_folder(store, summaries, step)
    pins, named = _list_pins(store)
    if folder not in pins:
        _delete(store, [pair for pair in named if pair[0] == folder])
    try:
        store.create(pin_key(folder), memoryview(b"pinned\n"))
        is_ours = True
    except ObjectExistsError:
        is_ours = False
    if not is_there(store, folder.manifest_key):
        if is_ours:
            store.delete([pin_key(folder)])
        raise CheckpointGoneError(f"{store.url}/{folder} was pruned before it could be pinned")
    if name is None:
        return []
    # The name is written before it is taken from others: of two who do this at once none loses it.
    with suppress(ObjectExistsError):
        store.create(pin_name_key(folder, name), memoryview(b"pinned\n"))
    before = [other for other, its_name in named if its_name == name and other != folder]
    _delete(store, [(other, name) for other in before])
    return [other for other in before if other in pins]


def unpin_checkpoint(store: Store, step: int) -> list[int]:
    """Takes every pin of `step` away, with its names; returns the steps that were pinned: this one, or none."""
    pins, named = _list_pins(store)
    of_step = [folder for folder in pins if folder.step == step]
    _delete(store, [pair for pair in named if pair[0].step == step], of_step)
    return [step] if of_step else []


def unpin_name(store: Store, name: str) -> list[int]:
    """Takes a name away, and no pin; returns the steps that had it, which are still pinned.

    Raises `CheckpointNotFoundError` if no pin has the name: it tells which there are.
    """
    pins, named = _list_pins(store)
    having = [folder for folder, its_name in named if its_name == name]
    _delete(store, [(folder, name) for folder in having])
    steps = sorted(folder.step for folder in having if folder in pins)
    if not steps:
        known = sorted({its_name for folder, its_name in named if folder in pins})
        there = f"the names here are {some_of(known, 20)}" if known else "no pin here has a name"
        raise CheckpointNotFoundError(f"{store.url}: no pin has the name {name!r}; {there}")
    return steps


def _list_pins(store: Store) -> tuple[set[Folder], list[tuple[Folder, str]]]:
    """The folders that are pinned, and every name, also of a folder that is not pinned any more."""
    keys = sorted(entry.key for entry in store.list(PINS_PREFIX))
    return set(filter(None, map(parse_pin_key, keys))), list(filter(None, map(parse_pin_name_key, keys)))


def _delete(store: Store, named: list[tuple[Folder, str]], pins: Sequence[Folder] = ()) -> None:
    """Names go before pins: no name is left without its pin."""
    keys = [pin_name_key(folder, name) for folder, name in named] + [pin_key(folder) for folder in pins]
    if keys:
        store.delete(keys)
