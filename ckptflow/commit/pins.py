"""Pins: what a person wants to keep, whatever retention says."""

from __future__ import annotations

from ckptflow.commit.catalog import Summaries, list_root
from ckptflow.commit.finding import find_folder
from ckptflow.errors import CheckpointGoneError, ObjectExistsError
from ckptflow.format.layout import pin_key
from ckptflow.storage.again import is_there
from ckptflow.storage.store import Store


def pin_checkpoint(store: Store, summaries: Summaries, step: int) -> None:
    """Pins the checkpoint of `step` that counts, then looks whether it is still there: a prune may be running.

    A prune in another process that listed pins before this one was there and deletes after the look is not seen.
    """
    folder = find_folder(store, summaries, step)
    try:
        store.create(pin_key(folder), memoryview(b"pinned\n"))
        is_ours = True
    except ObjectExistsError:
        is_ours = False
    if not is_there(store, folder.manifest_key):
        if is_ours:
            store.delete([pin_key(folder)])
        raise CheckpointGoneError(f"{store.url}/{folder} was pruned before the pin was there")


def unpin_checkpoint(store: Store, step: int) -> None:
    """Takes every pin of `step` away."""
    pins = [pin_key(folder) for folder in list_root(store).pins if folder.step == step]
    if pins:
        store.delete(pins)
