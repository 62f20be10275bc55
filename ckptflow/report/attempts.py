"""The run attempts of a job, one incarnation each, from claims, manifests and folders. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import zip_longest

from ckptflow.commit.catalog import Listing, Summary
from ckptflow.commit.checkpoint import as_time
from ckptflow.commit.prune import unread
from ckptflow.errors import StorageError
from ckptflow.format.layout import Folder
from ckptflow.format.manifest import Claim, Reason
from ckptflow.overview import Found

_DISCARDING = ("rollback", "damage", "outside")  # these start at something older than the newest current checkpoint


@dataclass(frozen=True, slots=True)
class RunAttempt:
    """One attempt of the job. None: not in storage, or no longer there.

    `reason`, why it started where it did, and `restored` come from its manifests; without a manifest `reason` comes
    from its claim. `checkpoints` to `last_saved_at` describe what is still stored; `pruned` counts the checkpoints that
    are gone and that a later manifest names, and `pruned_steps` are their steps. `previous` is the last attempt before
    it of which any checkpoint is known, and `previous_step` the highest of those. `given_up_steps`: how far below that
    this one began, which is committed work that was discarded; what the attempt before trained after its last save is
    not in storage. `next`: the incarnation that claimed the root after it; None for the newest, of which nobody knows
    whether it still runs. `claim_problem`: why its claim cannot be read, if so.
    """

    number: int
    reason: Reason | None
    claimed_at: datetime | None
    host: str | None
    pid: int | None
    restored: str | None
    restored_step: int | None
    checkpoints: int
    first_step: int | None
    last_step: int | None
    first_saved_at: datetime | None
    last_saved_at: datetime | None
    pruned: int
    pruned_steps: tuple[int, ...]
    partial: int
    partial_bytes: int
    previous: int | None
    previous_step: int | None
    given_up_steps: int | None
    next: int | None
    claim_problem: str | None


def list_incarnations(
    listing: Listing, found: Found, claims: Mapping[int, Claim], refused: Mapping[int, StorageError]
) -> Iterator[RunAttempt]:
    """Every incarnation that has a claim or a folder, oldest first."""
    numbers = sorted({*listing.claims, *(folder.incarnation for folder in listing.folders)})
    folders: dict[int, list[Folder]] = {number: [] for number in numbers}
    for folder in sorted(listing.folders):
        folders[folder.incarnation].append(folder)
    known = _known(folders, found)
    before: tuple[int, int] | None = None  # the last of which any checkpoint is known, and its highest step
    for number, following in zip_longest(numbers, numbers[1:]):
        attempt = _attempt(number, folders[number], listing, found, claims.get(number))
        if number in refused:
            attempt = replace(attempt, claim_problem=unread(refused[number]))
        saved = known.get(number, set())
        gone = tuple(folder.step for folder in sorted(saved - found.keys()))
        attempt = replace(attempt, next=following, pruned=len(gone), pruned_steps=gone)
        yield _after(attempt, *before) if before else attempt
        if saved:
            before = (number, max(saved).step)


def _known(folders: Mapping[int, list[Folder]], found: Found) -> dict[int, set[Folder]]:
    """Every checkpoint that is known to have been committed, by its incarnation: those there, and those that a
    manifest names as what its attempt began with, which all manifests of an attempt name alike."""
    known: dict[int, set[Folder]] = {}
    for folders_of_one in folders.values():
        committed = [folder for folder in folders_of_one if folder in found]
        summary = next((summary for folder in committed if isinstance(summary := found[folder], Summary)), None)
        named = (*summary.lineage, *((summary.restored,) if summary.restored else ())) if summary else ()
        for folder in (*committed, *named):
            known.setdefault(folder.incarnation, set()).add(folder)
    return known


def _attempt(number: int, folders: list[Folder], listing: Listing, found: Found, claim: Claim | None) -> RunAttempt:
    committed = [folder for folder in folders if folder in found]
    partial = [folder for folder in folders if folder not in found]
    summaries = [summary for folder in committed if isinstance(summary := found[folder], Summary)]
    saved_at = [summary.checkpoint.created_at for summary in summaries]
    restored = summaries[0].restored if summaries else None
    reason = summaries[0].reason if summaries else claim.reason if claim else None
    return RunAttempt(
        number=number,
        reason=reason,  # type: ignore[arg-type]  # a Summary has it as text; its manifest was checked
        claimed_at=_parse_time(claim.created_at) if claim else None,
        host=claim.host if claim else None,
        pid=claim.pid if claim else None,
        restored=str(restored) if restored else None,
        restored_step=restored.step if restored else None,
        checkpoints=len(committed),
        first_step=committed[0].step if committed else None,
        last_step=committed[-1].step if committed else None,
        first_saved_at=min(saved_at, default=None),
        last_saved_at=max(saved_at, default=None),
        pruned=0,
        pruned_steps=(),
        partial=len(partial),
        partial_bytes=sum(sum(listing.folders[folder].values()) for folder in partial),
        previous=None,
        previous_step=None,
        given_up_steps=None,
        next=None,
        claim_problem=None,
    )


def _after(attempt: RunAttempt, previous: int, last_step: int) -> RunAttempt:
    """With what is known of the attempt before it, and how far back from there it began."""
    given_up: int | None = None
    if attempt.reason == "fresh":
        given_up = last_step  # all of it
    elif attempt.restored_step is not None:
        given_up = max(0, last_step - attempt.restored_step)
        if given_up == 0 and attempt.reason in _DISCARDING:
            given_up = None  # what was superseded has been pruned since
    return replace(attempt, previous=previous, previous_step=last_step, given_up_steps=given_up)


def _parse_time(text: str) -> datetime | None:
    try:
        return as_time(text)
    except ValueError:
        return None
