"""Reads the data of a run page: one listing, the manifests and the claims; no tensor data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from ckptflow.commit.catalog import Counting, Summaries, Summary, read_manifest
from ckptflow.commit.finding import read_counting
from ckptflow.commit.prune import doubt_of
from ckptflow.commit.retention import Policy
from ckptflow.errors import CorruptCheckpointError, ObjectNotFoundError, UnknownVersionError
from ckptflow.format.manifest import Claim, Manifest
from ckptflow.overview import Found, read_summaries
from ckptflow.report.run import Run, describe_run
from ckptflow.storage.redaction import redact_url
from ckptflow.storage.store import Store
from ckptflow.threads import at_once

_READERS = 8  # claims read at once


def _tell_nobody(_: int) -> None:
    pass


def read_run(
    store: Store,
    summaries: Summaries,
    policies: Sequence[Policy] = (),
    *,
    now: datetime,
    expect: Callable[[int], None] = _tell_nobody,
    advance: Callable[[int], None] = _tell_nobody,
) -> Run:
    """The run in `store` as it is now. `expect` gets the number of files to read, `advance` how many more were read.

    `summaries` are for show. A job may save and prune meanwhile: what is gone is left out. Nothing is written.
    """
    listing, counting = read_counting(store, summaries)
    doubt = doubt_of(summaries)
    expect(len(listing.committed) + len(listing.claims))
    found = read_summaries(summaries, listing, listing.committed, advance)

    def read(number: int) -> tuple[int, Claim | None]:
        claim = summaries.claim(number)
        advance(1)
        return number, claim

    claims = {number: claim for number, claim in at_once(_READERS, read, listing.claims) if claim is not None}
    newest = _read_newest(store, counting, found)
    return describe_run(
        redact_url(store.url),
        listing,
        counting,
        found,
        claims,
        newest,
        policies,
        now,
        doubt=doubt,
        refused_claims=summaries.refused_claims,
    )


def _read_newest(store: Store, counting: Counting, found: Found) -> Manifest | None:
    """The manifest of the newest current checkpoint that can be read."""
    for folder in counting.folders:
        if isinstance(found.get(folder), Summary):
            try:
                return read_manifest(store, folder)
            except (ObjectNotFoundError, CorruptCheckpointError, UnknownVersionError):
                continue
    return None
