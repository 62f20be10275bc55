"""Deleting the checkpoints of steps that a person names: a plan, which `prune_by_hand` carries out by its rules."""

from __future__ import annotations

from collections.abc import Collection

from ckptflow.commit.catalog import Counting, Listing, SummaryReader
from ckptflow.commit.finding import no_checkpoint
from ckptflow.commit.prune import Decision, Planner, PrunePlan, decide_counting, decide_partial, unread
from ckptflow.errors import CorruptCheckpointError, StorageError, UnknownVersionError
from ckptflow.format.layout import Folder


def deletion_of(url: str, steps: Collection[int]) -> Planner:
    """The plan by which the checkpoints of these steps go, all or none; `url` is for the message.

    It raises `CheckpointNotFoundError` for a step of which nothing is there. The newest, pinned ones, and what may
    still be committed stay. What is superseded, damaged, of another run or from before a fresh start may go.
    """

    def plan(listing: Listing, counting: Counting, read: SummaryReader) -> PrunePlan:
        decided, newest = decide_counting(listing, counting, read, ())
        named: list[Folder] = []
        for step in sorted(set(steps)):
            there = [folder for folder in listing.folders if folder.step == step]
            if not there:
                raise no_checkpoint(url, step, listing.committed)
            named += _of_step(there, counting)
        kept = {counting.newest, newest}
        decisions = (
            _decide(folder, listing, counting, read, decided.get(folder), is_newest=folder in kept)
            for folder in sorted(named)
        )
        return PrunePlan(tuple(decisions), is_asked_for=True)

    return plan


def _of_step(there: Collection[Folder], counting: Counting) -> list[Folder]:
    """Of the folders of one step those that the step stands for: what counts, else what is outside, else the rest."""
    for some in (counting.folders, counting.outside, there):
        if found := [folder for folder in there if folder in some]:
            return found
    return []


def _decide(
    folder: Folder,
    listing: Listing,
    counting: Counting,
    read: SummaryReader,
    decided: Decision | None,
    *,
    is_newest: bool,
) -> Decision:
    if is_newest:
        return Decision(folder, True, "the newest, from which a restart begins: save another one first")
    if folder in listing.pins:
        return Decision(folder, True, f"pinned: unpin step {folder.step} first")
    if folder not in listing.committed:
        return decide_partial(folder, counting.incarnation, is_given_up=False, is_pinned=False)
    summary = read(folder)
    if isinstance(summary, UnknownVersionError):
        return Decision(folder, True, "written by a newer ckptflow: delete it with that version")
    if isinstance(summary, StorageError):
        return Decision(folder, True, unread(summary))
    if isinstance(summary, CorruptCheckpointError):
        return Decision(folder, False, "asked for; its manifest is damaged")
    return Decision(folder, False, "asked for" if decided else "asked for; it is superseded")
