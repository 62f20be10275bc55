"""Claims and fencing: which incarnation holds a root.

A claim is a create-only file with a number above every number in a claim or a folder's name. It fences older
incarnations and decides nothing else. No clock, no lock: an incarnation learns that it was fenced by listing after it
has written.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from ckptflow.commit.catalog import Listing, Summaries, Summary, list_claims, list_root, newest_claim, read_claim
from ckptflow.errors import (
    FencedError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageUnavailableError,
)
from ckptflow.format.layout import claim_key
from ckptflow.format.manifest import Claim, Reason, encode
from ckptflow.storage.store import Store, read_small


@dataclass(frozen=True, slots=True)
class Held:
    """The claim that this incarnation holds."""

    number: int
    run_id: str
    writer_id: str


def now_text() -> str:
    """The time now in UTC, ISO 8601: for people, never compared by the protocol."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def new_writer_id() -> str:
    """124 random bits in hex: two numbers that fit the rows which workers exchange."""
    return pack_writer_id((secrets.randbits(62), secrets.randbits(62)))


def pack_writer_id(numbers: tuple[int, int]) -> str:
    """The writer id made of two numbers below 2**62."""
    return f"{numbers[0]:016x}{numbers[1]:016x}"


def unpack_writer_id(writer_id: str) -> tuple[int, int]:
    """The two numbers of a writer id."""
    return int(writer_id[:16], 16), int(writer_id[16:], 16)


def create_once(store: Store, key: str, data: bytes, deadline: float) -> bool:
    """Creates `key` and says whose it is: True where `data` is there by our hand, False where another's object is.

    `data` must hold a random id, so that equal bytes mean our own write whose reply was lost. Where the storage cannot
    be reached, asks again until `deadline` (by `time.monotonic`), then raises `StorageUnavailableError`: the outcome is
    unknown, and the object may still appear.
    """
    while True:
        unknown: StorageUnavailableError | None = None
        try:
            store.create(key, memoryview(data))
            return True
        except ObjectExistsError:
            pass
        except StorageUnavailableError as error:
            unknown = error
        try:
            return read_small(store, key, len(data) + 1) == data
        except ValueError:
            return False  # longer than ours
        except ObjectNotFoundError:
            pass  # absent: the create can be sent again, it is create-only
        except StorageUnavailableError as error:
            unknown = error
        if time.monotonic() >= deadline:
            raise unknown or StorageUnavailableError(f"{store.url}/{key}: created and not found again")
        time.sleep(0.05)


def claim_next(store: Store, summaries: Summaries, reason: Reason, timeout_s: float) -> Held:
    """Claims the next incarnation number, racing fairly with others; the loser of a number lists again and goes on.

    The run id is drawn with a run's first claim and copied from the newest claim after; where claims were lost, from
    the newest manifest. Raises `StorageUnavailableError` where the storage did not say within `timeout_s` who holds it.
    """
    writer_id = new_writer_id()
    deadline = time.monotonic() + timeout_s
    while True:
        listing = list_root(store)  # lineage/ is in it; what it misses, the create runs into
        number = 1 + listing.top_number
        claim = Claim(
            number=number,
            run_id=find_run_id(store, listing, summaries) or new_writer_id(),
            writer_id=writer_id,
            reason=reason,
            host=socket.gethostname(),
            pid=os.getpid(),
            created_at=now_text(),
        )
        if create_once(store, claim_key(number), encode(claim), deadline):
            return Held(number, claim.run_id, writer_id)


def find_run_id(store: Store, listing: Listing, summaries: Summaries) -> str | None:
    """The run that this root belongs to: the newest claim's, else the newest readable manifest's, else None."""
    claim = newest_claim(store, listing.claims)
    if claim is not None:
        return claim.run_id
    newest_first = sorted(listing.committed, key=lambda folder: (folder.incarnation, folder), reverse=True)
    read = (summaries.get(folder) for folder in newest_first)
    return next((summary.run_id for summary in read if isinstance(summary, Summary)), None)


def check_fence(store: Store, held: Held, listing: Listing | None = None) -> None:
    """Raises `FencedError` where a newer claim, or a folder of a newer incarnation in `listing`, is there.

    Lists `lineage/` itself, so that whatever was created before this call is seen. A claim that was removed (the newest
    hundred stay) or cannot be read still fences by its number, and by its folders.
    """
    newest = max([*list_claims(store), listing.top_number if listing else 0], default=0)
    if newest > held.number:
        raise fenced(store, held, newest)


def fenced(store: Store, held: Held, newest: int) -> FencedError:
    """The error that tells who holds the root now, and what to do."""
    claim = read_claim(store, newest)
    who = f"{claim.host}, process {claim.pid}, since {claim.created_at}" if claim else "its claim cannot be read"
    return FencedError(
        f"{store.url}: another copy holds this root: incarnation {newest} ({who}); this one is incarnation "
        f"{held.number}, and what it saves no longer counts. Stop this job and do not restart it: two jobs on one "
        "root fence each other for ever (a job per worker without TF_CONFIG looks the same). An evaluation job opens "
        "the root with read_only=True, which never fences."
    )
