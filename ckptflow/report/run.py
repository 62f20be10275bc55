"""A run as storage shows it: typed data, made of a listing, manifests and claims. Pure.

Storage has what was committed and what was begun, not what happened to the processes: it does not tell a crash from a
clean end, nor whether the newest incarnation still runs, nor all that was pruned. What it does not tell is None here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType
from typing import Literal

from ckptflow.commit.catalog import Checkpoint, Counting, Listing, Summary, Unreadable
from ckptflow.commit.freed import freed_bytes
from ckptflow.commit.prune import Decision, plan_prune, refuse_by_hand
from ckptflow.commit.retention import Policy
from ckptflow.errors import StorageError
from ckptflow.format.manifest import Claim, Manifest
from ckptflow.overview import Found, Overview, Row, committed_row, partial_row
from ckptflow.report.attempts import RunAttempt, list_incarnations

TENSORS_SHOWN = 50
UNDECIDED = "depends on the job's policies, which are not in storage"


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """A folder with a manifest. `problem` is what can be seen to be wrong with it without reading its shards.

    `keep` and `reason` are what a prune by hand would decide; `keep` is None if no policies were given and only they
    would tell. Of `size_bytes`, `copied_bytes` were copied inside the storage and not sent. `save_s`: from the call of
    `save` to the manifest, by the coordinator's clock. `write_s`: until the shards of the slowest worker were durable.
    `blocked_s`: how long `save` blocked training on the slowest worker. These three are None if they were not
    recorded.
    """

    folder: str
    step: int
    incarnation: int
    state: Literal["newest", "counts", "outside"]
    why_outside: str | None
    problem: str | None
    pinned: bool
    keep: bool | None
    reason: str
    created_at: datetime | None
    size_bytes: int
    copied_bytes: int
    shards: int
    workers: int | None
    metrics: Mapping[str, float]
    save_s: float | None
    write_s: float | None
    blocked_s: float | None

    @property
    def sent_bytes(self) -> int:
        return self.size_bytes - self.copied_bytes


@dataclass(frozen=True, slots=True)
class PartialFolder:
    """A folder without a manifest. `is_orphaned`: a newer incarnation has begun, so nobody will commit it."""

    folder: str
    step: int
    incarnation: int
    size_bytes: int
    file_count: int
    is_orphaned: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as the manifest has it; `size_bytes` counts all its components."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Tensors:
    """The tensors of one checkpoint: the largest, and the others summed."""

    folder: str
    step: int
    count: int
    size_bytes: int
    largest: tuple[Tensor, ...]
    other_count: int
    other_bytes: int


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that the page shows, oldest first.

    `size_bytes` counts every file in the run's checkpoint folders, `stored_bytes` one that several share once.
    `freed_bytes` would become free by the prune that `policies` ask for.
    """

    url: str
    run_id: str | None
    made_at: datetime
    incarnation: int
    resumes_from: str | None
    doubt: str | None
    size_bytes: int
    stored_bytes: int
    freed_bytes: int
    policies: tuple[str, ...]
    prune_refused: str | None
    incarnations: tuple[RunAttempt, ...]
    checkpoints: tuple[SavedCheckpoint, ...]
    partial: tuple[PartialFolder, ...]
    tensors: Tensors | None

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return name_of(self.url)

    @property
    def newest(self) -> SavedCheckpoint | None:
        return next((each for each in reversed(self.checkpoints) if each.state == "newest"), None)

    @property
    def restart(self) -> SavedCheckpoint | None:
        """What `resumes_from` names."""
        return next((each for each in self.checkpoints if each.folder == self.resumes_from), None)

    @property
    def counting(self) -> list[SavedCheckpoint]:
        return [each for each in self.checkpoints if each.state != "outside"]

    @property
    def damaged(self) -> list[SavedCheckpoint]:
        return [each for each in self.checkpoints if each.problem is not None]

    @property
    def orphaned(self) -> list[PartialFolder]:
        return [each for each in self.partial if each.is_orphaned]


def name_of(url: str) -> str:
    """What a run is called: the last part of its URL."""
    return url.removesuffix("?***").rstrip("/").rpartition("/")[2] or url  # so ends what was redacted


def describe_run(
    url: str,
    listing: Listing,
    counting: Counting,
    found: Found,
    claims: Mapping[int, Claim],
    newest: Manifest | None,
    policies: Sequence[Policy],
    now: datetime,
    *,
    doubt: str | None = None,
    refused_claims: Mapping[int, StorageError] = MappingProxyType({}),
) -> Run:
    """The run in `listing`. Folders that have a manifest and are not in `found` were pruned meanwhile: left out.

    `newest` is the manifest whose tensors are described; `doubt`, why it is not certain which checkpoints are current.
    Raises what a policy raises.
    """
    gone = set(listing.committed) - found.keys()
    listing = listing.only(listing.folders.keys() - gone)
    counting = replace(
        counting,
        folders=tuple(folder for folder in counting.folders if folder in found),
        outside=tuple(folder for folder in counting.outside if folder in found),
    )
    plan = plan_prune(listing, counting, found.__getitem__, policies or (_undecided,), incarnation=counting.incarnation)
    decisions = {decision.folder: decision for decision in plan.decisions}
    rows = [committed_row(folder, found[folder], listing, counting) for folder in listing.committed]
    partial = sorted(listing.folders.keys() - found.keys())
    partial_rows = [partial_row(folder, listing) for folder in partial]
    resumes_from = Overview(url, counting.run_id, listing.top_number, tuple(rows), {}, doubt).resumes_from
    return Run(
        url=url,
        run_id=counting.run_id,
        made_at=now,
        incarnation=listing.top_number,
        resumes_from=str(resumes_from.folder) if resumes_from else None,
        doubt=doubt,
        size_bytes=sum(sum(files.values()) for files in listing.folders.values()),
        stored_bytes=sum(freed_bytes(listing, listing.folders).values()),
        freed_bytes=sum(freed_bytes(listing, plan.deletions).values()),
        policies=tuple(map(repr, policies)),
        prune_refused=refuse_by_hand(listing, counting) or doubt,
        incarnations=tuple(list_incarnations(listing, found, claims, refused_claims)),
        checkpoints=tuple(_saved(row, found[row.folder], decisions[row.folder]) for row in rows),
        partial=tuple(_partial(row, listing, decisions[row.folder]) for row in partial_rows),
        tensors=_tensors(newest) if newest is not None else None,
    )


def _undecided(checkpoints: Sequence[Checkpoint]) -> Sequence[str]:
    """The policy if none was given: what only a policy could decide is marked as such."""
    return [UNDECIDED] * len(checkpoints)


def _saved(row: Row, summary: Summary | Unreadable, decision: Decision) -> SavedCheckpoint:
    created_at = row.checkpoint.created_at if row.checkpoint else None
    began_at = summary.began_at if isinstance(summary, Summary) else None
    save_s = (created_at - began_at).total_seconds() if created_at and began_at else None
    timings = summary.timings if isinstance(summary, Summary) else ()
    return SavedCheckpoint(
        folder=str(row.folder),
        step=row.folder.step,
        incarnation=row.folder.incarnation,
        state="outside" if row.state == "partial" else row.state,  # it has a manifest, so it is not partial
        why_outside=row.why,
        problem=row.problem,
        pinned=row.is_pinned,
        keep=None if decision.reason == UNDECIDED else decision.keep,
        reason=decision.reason,
        created_at=created_at,
        size_bytes=row.size_bytes,
        copied_bytes=row.copied_bytes,
        shards=row.shard_count,
        workers=row.worker_count,
        metrics=dict(row.checkpoint.metrics) if row.checkpoint else {},
        save_s=save_s if save_s is not None and save_s >= 0 else None,  # below: the clock was set back meanwhile
        write_s=max((timing.write_s for timing in timings), default=None),
        blocked_s=max((timing.blocked_s for timing in timings), default=None),
    )


def _partial(row: Row, listing: Listing, decision: Decision) -> PartialFolder:
    files = listing.folders[row.folder]
    return PartialFolder(
        folder=str(row.folder),
        step=row.folder.step,
        incarnation=row.folder.incarnation,
        size_bytes=sum(files.values()),
        file_count=len(files),
        is_orphaned=row.folder.incarnation < listing.top_number,
        reason=decision.reason,
    )


def _tensors(manifest: Manifest) -> Tensors:
    by_size = sorted(manifest.tensors, key=lambda tensor: (-tensor.size_bytes, tensor.name))
    largest = tuple(Tensor(t.name, t.dtype, t.shape, t.size_bytes) for t in by_size[:TENSORS_SHOWN])
    size_bytes = sum(tensor.size_bytes for tensor in by_size)
    return Tensors(
        folder=manifest.folder,
        step=manifest.step,
        count=len(by_size),
        size_bytes=size_bytes,
        largest=largest,
        other_count=len(by_size) - len(largest),
        other_bytes=size_bytes - sum(tensor.size_bytes for tensor in largest),
    )
