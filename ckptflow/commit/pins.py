"""Pins: what a person wants to keep, whatever retention says, and by which names."""

from __future__ import annotations

from contextlib import suppress

from ckptflow.commit.catalog import Summaries, list_root
from ckptflow.commit.finding import find_folder
from ckptflow.commit.listing import list_pin_names
from ckptflow.errors import CheckpointGoneError, CheckpointNotFoundError, ObjectExistsError
from ckptflow.format.layout import Folder, check_pin_name, pin_key, pin_name_key
from ckptflow.format.words import some_of
from ckptflow.storage.again import is_there
from ckptflow.storage.store import Store


def pin_checkpoint(store: Store, summaries: Summaries, step: int, name: str | None = None) -> list[Folder]:
    """Pins the checkpoint of `step` that counts, then looks whether it is still there: a prune may be running.

    A prune in another process that listed pins before this one was there and deletes after the look is not seen.
    With `name` the pin has that name, too, and those that had it before, which are returned, only lose it: they stay
    pinned. Raises ValueError for what cannot be a name.
    """
    if name is not None:
        check_pin_name(name)
    folder = find_folder(store, summaries, step)
    try:
        store.create(pin_key(folder), memoryview(b"pinned\n"))
        is_ours = True
    except ObjectExistsError:
        is_ours = False
    if not is_there(store, folder.manifest_key):
        if is_ours:
            store.delete([pin_key(folder)])
        raise CheckpointGoneError(f"{store.url}/{folder} was pruned before it could be pinned")
    return _name_pin(store, folder, name) if name is not None else []


def _name_pin(store: Store, folder: Folder, name: str) -> list[Folder]:
    """The name is written before it is taken from others: of two who do this at once none loses it."""
    before = [other for other, names in list_pin_names(store).items() if name in names and other != folder]
    with suppress(ObjectExistsError):
        store.create(pin_name_key(folder, name), memoryview(b"pinned\n"))
    if before:
        store.delete([pin_name_key(other, name) for other in before])
    return before


def unpin_checkpoint(store: Store, step: int) -> None:
    """Takes every pin of `step` away, with its names."""
    listing = list_root(store)
    _unpin(store, {folder: listing.pin_names[folder] for folder in listing.pins if folder.step == step})


def unpin_name(store: Store, name: str) -> list[int]:
    """Takes a name away, and the pin with it if that has no other; returns the steps that are no longer pinned.

    Raises `CheckpointNotFoundError` if no pin has the name: it tells which there are.
    """
    pins = list_pin_names(store)
    named = {folder: names for folder, names in pins.items() if name in names}
    if not named:
        known = sorted({each for names in pins.values() for each in names})
        there = f"the names here are {some_of(known, 20)}" if known else "no pin here has a name"
        raise CheckpointNotFoundError(f"{store.url}: no pin has the name {name!r}; {there}")
    store.delete([pin_name_key(folder, name) for folder in named])
    unpinned = [folder for folder, names in named.items() if names == (name,)]
    _unpin(store, dict.fromkeys(unpinned, ()))
    return sorted(folder.step for folder in unpinned)


def _unpin(store: Store, pins: dict[Folder, tuple[str, ...]]) -> None:
    keys = [pin_name_key(folder, name) for folder, names in pins.items() for name in names]
    keys += [pin_key(folder) for folder in pins]
    if keys:
        store.delete(keys)
