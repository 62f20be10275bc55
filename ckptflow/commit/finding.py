"""For readers, who never claim: what counts in a root, the checkpoint of a step, and the one that is awaited."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable

from ckptflow.commit.catalog import (
    Checkpoint,
    Counting,
    Listing,
    Summaries,
    Summary,
    Unreadable,
    count_root,
    read_manifest,
    summarize,
)
from ckptflow.commit.lineage import find_run_id
from ckptflow.commit.listing import list_root, list_run
from ckptflow.errors import CheckpointGoneError, CheckpointNotFoundError, CommitTimeoutError, ObjectNotFoundError
from ckptflow.format.layout import Folder
from ckptflow.format.words import some_of
from ckptflow.stops import awake_s
from ckptflow.storage.store import Store

logger = logging.getLogger("ckptflow")

_LOOK_EVERY_S = 15.0  # at a storage in which nobody has said that there is anything
TRIES = 5  # listings that name a manifest which is gone when it is read


def read_counting(store: Store, summaries: Summaries, first: Listing | None = None) -> tuple[Listing, Counting]:
    """Lists the root, unless the `first` listing is given, and decides what counts; lists again if a manifest went
    meanwhile."""
    given = [first] if first is not None else []

    def list_it() -> Listing:
        return given.pop() if given else list_run(store)

    return count_root(list_it, lambda listing: find_run_id(store, listing, summaries), summaries)


def list_counting(store: Store, summaries: Summaries) -> list[Checkpoint]:
    """The checkpoints that count and whose manifest can be read, oldest first. What is left out is logged."""
    listing, counting = read_counting(store, summaries, list_root(store))  # nothing, above runs as where nothing is
    read = list(map(counting.of_this_run, summaries.read_many(listing, reversed(counting.folders)).values()))
    found = [summary.checkpoint for summary in read if isinstance(summary, Summary)]
    if len(found) < len(read):
        others = f"; {len(counting.outside)} more exist and are superseded, as far as is known" * bool(counting.outside)
        unreadable = [str(summary) for summary in read if not isinstance(summary, Summary)]
        logger.warning("%s: not listed, since it cannot be read: %s%s", store.url, some_of(unreadable, 3), others)
    return found


def find_folder(store: Store, summaries: Summaries, step: int | None) -> Folder:
    """The folder of the newest checkpoint that counts, or of `step`.

    Raises `CheckpointNotFoundError`, or, where no manifest that would do can be read, why the first cannot:
    `CorruptCheckpointError`, `UnknownVersionError`.
    """
    for _ in range(TRIES):
        with contextlib.suppress(ObjectNotFoundError):  # deleted since it was listed
            return _find_folder(store, summaries, step)
    raise CheckpointGoneError(f"{store.url}: checkpoints are deleted faster than they can be read; pin one")


def _find_folder(store: Store, summaries: Summaries, step: int | None) -> Folder:
    _, counting = read_counting(store, summaries)
    matching = [folder for folder in counting.folders if step in (None, folder.step)]
    matching += sorted(
        (f for f in counting.outside if step == f.step), key=lambda f: _is_of_another(counting, summaries.get(f))
    )
    damaged: Unreadable | None = None
    for folder in matching:
        summary = summaries.get(folder)
        if folder in counting.folders:
            summary = counting.of_this_run(summary)
        if isinstance(summary, Summary):
            return folder
        damaged = damaged or summary
        logger.error("this checkpoint cannot be read, trying the one before: %s", summary)
    if damaged is not None:
        raise damaged
    check_root(store)
    raise no_checkpoint(store.url, step, (*counting.folders, *counting.outside))


def no_checkpoint(url: str, step: int | None, there: Iterable[Folder]) -> CheckpointNotFoundError:
    """The error of a root that has no checkpoint, or none of `step`: it names the steps that are there."""
    steps = sorted({folder.step for folder in there})
    known = ", ".join(map(str, steps)) if len(steps) <= 20 else f"{len(steps)} from {steps[0]} to {steps[-1]}"
    what = "no checkpoint" if step is None else f"no checkpoint of step {step}"
    return CheckpointNotFoundError(f"{url}: {what} is here" + (f"; there are steps {known}" if steps else ""))


def check_root(store: Store) -> None:
    """Raises `CheckpointNotFoundError` if a root on a disk is not there at all; of others only a listing can tell."""
    if not store.is_object_store and not os.path.exists(store.url):
        raise CheckpointNotFoundError(f"{store.url}: there is no such directory")


def check_run(store: Store) -> None:
    """Raises `CheckpointNotFoundError` if a root holds nothing of a run: its URL is then mistyped."""
    listing = list_run(store)
    if not (listing.folders or listing.claims or listing.pins):
        check_root(store)
        raise no_checkpoint(store.url, None, ())


def _is_of_another(counting: Counting, found: Summary | Unreadable) -> bool:
    return isinstance(found, Summary) and counting.is_of_another(found.run_id)


def find_checkpoint(store: Store, summaries: Summaries) -> Checkpoint | None:
    """The newest checkpoint that counts, or None."""
    try:
        summary = summaries.get(find_folder(store, summaries, None))
    except CheckpointNotFoundError:
        return None
    return summary.checkpoint if isinstance(summary, Summary) else None


def await_checkpoint(
    store: Store, folder: Folder, timeout_s: float, ask: Callable[[], bool] = lambda: True
) -> Checkpoint:
    """Waits for the manifest of `folder`. Raises `CommitTimeoutError` after `timeout_s` seconds, not counting time in
    which this process was stopped.

    `ask` is called again and again, with back-off: what it raises ends the waiting, and storage is looked at when it
    says that the manifest may be there; else seldom, and at the end.
    """
    deadline = awake_s() + timeout_s
    pause_s, look_at = 0.01, awake_s()
    while True:
        is_likely = ask()  # before the look: a save that was fenced has a manifest, too
        if is_likely or awake_s() >= min(look_at, deadline):
            look_at = awake_s() + _LOOK_EVERY_S
            with contextlib.suppress(ObjectNotFoundError):
                return summarize(read_manifest(store, folder, may_be_missing=True), store.url).checkpoint
            if awake_s() >= deadline:
                raise CommitTimeoutError(
                    f"{store.url}/{folder} has no manifest after {timeout_s:g} s: the save is still under way, or the "
                    "chief's log says why it has failed"
                )
        time.sleep(max(0.0, min(pause_s, deadline - awake_s())))
        pause_s = min(2 * pause_s, 1.0)
