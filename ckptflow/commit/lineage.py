"""Claims and fencing: which incarnation holds a root.

A claim is a create-only file with a number above every number in a claim or a folder's name. It fences older
incarnations and decides nothing else. No clock, no lock: an incarnation learns that it was fenced by listing after it
has written.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime

from ckptflow.commit.catalog import (
    Listing,
    Summaries,
    Summary,
    Unreadable,
    list_claims,
    list_root,
    read_claim,
    read_manifest,
)
from ckptflow.errors import (
    CorruptCheckpointError,
    FencedError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageAccessError,
    StorageError,
    StorageUnavailableError,
    UnknownVersionError,
)
from ckptflow.format.layout import MAX_NUMBER, Folder, claim_key, writer_tag
from ckptflow.format.manifest import Claim, Reason, encode
from ckptflow.stops import awake_s
from ckptflow.storage.again import agreed, read_small
from ckptflow.storage.store import Store

logger = logging.getLogger("ckptflow")

NOT_EXCLUSIVE = (
    "%s cannot create a file only where none is: if two copies of this job ever run at once, neither may "
    "notice. Make sure that only one does"
)
SETTLE_S = 1.0  # longer than from a rival's listing to its create
_LONGEST_PAUSE_S = 2.0


@dataclass(frozen=True, slots=True)
class Held:
    """The claim that this incarnation holds."""

    number: int
    run_id: str
    writer_id: str
    is_exclusive: bool = True  # whether a create is refused if the object is there: found out when it was claimed

    @property
    def tag(self) -> str:
        """What the names of its shards and receipts end with."""
        return writer_tag(self.writer_id)


@dataclass(frozen=True, slots=True)
class Own:
    """The claims of one process: `held` is the one that it acts by, or has acted by last.

    `tried` are the writer ids of those that came to nothing. They may be there all the same, or come late: to this
    process they are nobody else's.
    """

    held: Held | None = None
    tried: frozenset[str] = frozenset()

    def but_tried(self, writer_id: str) -> Own:
        """The same after one more claim that came to nothing."""
        return Own(self.held, self.tried | {writer_id})


NO_CLAIMS = Own()


def is_written_by(held: Held, folder: Folder, summary: Summary | Unreadable, listing: Listing) -> bool:
    """Whether this incarnation committed `folder`, by its manifest, or, if that cannot be read, by the names in it.

    The number alone does not show it: another job may have held the same one, if claims were deleted by hand.
    """
    if isinstance(summary, Summary):
        return summary.writer_id == held.writer_id
    return folder.incarnation == held.number and held.tag in listing.tags(folder)


def now_text() -> str:
    """The time now in UTC, ISO 8601: for people, never compared by the protocol."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def new_writer_id() -> str:
    """124 random bits in hex."""
    return f"{secrets.randbits(62):016x}{secrets.randbits(62):016x}"


def create_once(store: Store, key: str, data: bytes, deadline: Callable[[], float]) -> bool:
    """Creates `key` and says whose it is: True if `data` is there by our hand, False if another's object is.

    `data` must hold a random id, so that equal bytes mean our own write whose reply was lost. If the storage cannot
    be reached, asks again until `deadline()` (by `awake_s`; it may come nearer meanwhile).
    `StorageUnavailableError` means that the outcome is unknown, and the object may still appear; any other
    `StorageError`, that nothing was created.
    """
    unknown: StorageError | None = None  # once a try was not answered, no later refusal says that nothing is there
    while True:
        refused: StorageError | None = None
        try:
            store.create(key, memoryview(data))
            return True
        except ObjectExistsError:
            pass
        except StorageUnavailableError as error:
            unknown = error
        except StorageError as error:
            refused = error
        try:
            is_ours = holds(store, key, data)
            if not (is_ours and refused):  # there, but not durable
                return is_ours
        except ObjectNotFoundError:  # absent: the create can be sent again, it is create-only
            if refused and not unknown:
                raise refused from None
        except StorageUnavailableError as error:
            unknown = error
        except StorageError as error:
            if isinstance(refused, StorageAccessError) and not unknown:
                raise refused from None
            refused = refused or error
        if refused or awake_s() >= deadline():
            why = refused or unknown or "it was created and not found again"
            raise StorageUnavailableError(f"{store.url}/{key} may be there or not: {why}") from (refused or unknown)
        time.sleep(0.05)


def holds(store: Store, key: str, data: bytes) -> bool:
    """Whether the object at `key` is `data`: not, only where the same other bytes came twice.

    Raises `ObjectNotFoundError` if there is none.
    """

    def ask() -> bytes | None:
        try:
            return read_small(store, key, len(data) + 1)
        except ValueError:
            return None  # longer

    return agreed(store, key, ask, lambda answer: answer == data) == data


def claim_next(
    store: Store,
    summaries: Summaries,
    reason: Reason,
    timeout_s: float,
    check: Callable[[Listing], None] = lambda listing: None,
    writer_id: str | None = None,
) -> Held:
    """Claims the next incarnation number, racing fairly with others; the loser of a number lists again and goes on.

    The run id is drawn with a run's first claim and copied from the newest claim after; if claims were lost, from
    the newest manifest. `check` is called with each listing, and raises where nothing is to be claimed after it: what
    is claimed in between takes the number. `writer_id` is drawn where none is given. Raises `StorageUnavailableError`
    if the storage did not say within `timeout_s` who holds it.
    """
    writer_id = writer_id or new_writer_id()
    deadline = awake_s() + timeout_s
    is_warned = not store.is_create_only  # by the manager
    lost = 0
    while True:
        listing = _list_past(store, lost, deadline)
        summaries.hold_against(listing)
        check(listing)
        number = 1 + listing.top_number
        if number >= MAX_NUMBER:
            raise StorageError(
                f"{store.url}: no number is left after {number - 1}: delete that claim or folder by hand"
            )
        claim = Claim(
            number=number,
            run_id=find_run_id(store, listing, summaries) or new_writer_id(),
            writer_id=writer_id,
            reason=reason,
            host=socket.gethostname(),
            pid=os.getpid(),
            created_at=now_text(),
        )
        key, data = claim_key(number), encode(claim)
        if create_once(store, key, data, lambda: deadline):
            is_exclusive = is_create_exclusive(store, key, data, deadline)
            if not is_exclusive and not is_warned:
                logger.warning(NOT_EXCLUSIVE, store.url)
                is_warned = True
            if is_exclusive or stays_ours(store, key, data):
                return Held(number, claim.run_id, writer_id, is_exclusive)
        if awake_s() >= deadline:
            raise StorageUnavailableError(f"{store.url}: others took number after number, the last is {number}")
        lost = number


def _list_past(store: Store, lost: int, deadline: float) -> Listing:
    """The root as listed once it shows number `lost`, which another holds."""
    pause_s = 0.01
    while True:
        listing = list_root(store)  # lineage/ is in it; what it misses, the create runs into
        if listing.top_number >= lost:
            return listing
        if awake_s() >= deadline or pause_s > _LONGEST_PAUSE_S:
            raise StorageUnavailableError(_unseen(store, lost))
        time.sleep(pause_s)
        pause_s *= 2


def is_create_exclusive(store: Store, key: str, data: bytes, deadline: float) -> bool:
    """Whether `create` refuses what was just created, as it must. Servers that ignore the condition do not say so."""
    while store.is_create_only:  # no longer, if the server has just refused the condition
        try:
            store.create(key, memoryview(data))
        except (ObjectExistsError, StorageAccessError):  # the first was allowed: what is refused is to replace it
            return True
        except StorageUnavailableError:
            if awake_s() >= deadline:
                raise
            time.sleep(0.05)
        else:
            break
    return False


def stays_ours(store: Store, key: str, data: bytes) -> bool:
    """Without an exclusive create the last writer holds a claim: whether that is still us after a pause."""
    time.sleep(SETTLE_S)
    try:
        return holds(store, key, data)
    except ObjectNotFoundError:
        return False


def newest_claim(
    numbers: Collection[int], summaries: Summaries, besides: Collection[str] = ()
) -> tuple[int, str | None]:
    """The number of the newest claim `besides` those of these writers, 0 if there is none, and who wrote it, None where
    that cannot be read."""
    for number in sorted(numbers, reverse=True):
        writer_id = summaries.holder(number)
        if writer_id not in besides:
            return number, writer_id
    return 0, None


def find_run_id(store: Store, listing: Listing, summaries: Summaries) -> str | None:
    """The run that this root belongs to: the newest claim's, or the newest readable manifest's if there is no claim.

    If the two disagree, one of them was copied here from another run: the one that more claims name is believed.
    """
    readable = (claim for n in sorted(listing.claims, reverse=True) if (claim := summaries.claim(n)) is not None)
    claim, made = next(readable, None), _newest_run(listing, summaries)
    if claim is None or made is None or claim.run_id == made:
        return claim.run_id if claim is not None else made
    named = Counter(each.run_id for number in listing.claims if (each := summaries.claim(number)) is not None)
    if named[made] < named[claim.run_id] or not named[made]:
        return claim.run_id
    logger.warning("%s: skipped, since it belongs to another run: %s", store.url, claim_key(claim.number))
    return made


def _newest_run(listing: Listing, summaries: Summaries) -> str | None:
    for folder in sorted(listing.committed, key=lambda folder: (folder.incarnation, folder), reverse=True):
        with contextlib.suppress(ObjectNotFoundError):  # deleted since it was listed
            summary = summaries.get(folder)
            if isinstance(summary, Summary):
                return summary.run_id
    return None


def check_fence(store: Store, held: Held, listing: Listing | None = None) -> None:
    """Raises unless `held` is the newest claim, is listed, and is still this incarnation's.

    Lists `lineage/` itself, so that whatever was created before this call is seen. A claim that cannot be read still
    fences by its number; one that was deleted by hand only by its checkpoints in `listing`, where that is given. Raises
    `FencedError` if another holds the root, or the claim was deleted; `StorageError` if the storage contradicts itself.
    """
    if listing is not None and (newer := newer_number(store, held, listing)):
        raise fenced(store, held, newer)
    claims = list_claims(store)
    check_listing(store, held, claims, max(claims, default=0))
    check_own_claim(store, held)


def newer_number(store: Store, held: Held, listing: Listing) -> int:
    """The highest number above ours that has a claim, or a checkpoint that may be of this run; 0 if there is none.

    A folder alone fences nobody: it is of a job whose claim is gone, which reads it back before each manifest.
    """
    if listing.top_number <= held.number:
        return 0
    newer = [number for number in listing.claims if number > held.number]
    newer += [f.incarnation for f in listing.committed if f.incarnation > held.number and _may_be_of(store, held, f)]
    return max(newer, default=0)


def _may_be_of(store: Store, held: Held, folder: Folder) -> bool:
    """Whether a checkpoint is of our run, as far as is known."""
    try:
        return read_manifest(store, folder).run_id == held.run_id
    except ObjectNotFoundError:
        return False
    except (CorruptCheckpointError, UnknownVersionError):
        return True


def check_listing(store: Store, held: Held, claims: Collection[int], top_number: int) -> None:
    """Raises unless a listing shows nothing newer than our own claim, and that one."""
    if top_number > held.number:
        raise fenced(store, held, top_number)
    if held.number not in claims:
        check_own_claim(store, held)
        raise StorageUnavailableError(_unseen(store, held.number))


def check_own_claim(store: Store, held: Held) -> None:
    """Raises unless the claim is there with our writer id. What is wrong once is asked again."""
    for is_last in (False, True):
        claim = read_claim(store, held.number)
        if claim is not None and claim.writer_id == held.writer_id:
            return
        if is_last:
            raise fenced(store, held, held.number)


def _unseen(store: Store, number: int) -> str:
    return (
        f"{store.url}: a listing does not show {claim_key(number)}, which is there, so nothing can be decided by it. "
        "Is it the storage that answers (and not a proxy), and is lineage/ a folder (and not a link)?"
    )


def fenced(store: Store, held: Held, newest: int) -> FencedError:
    """The error that tells who holds the root now, and what to do."""
    claim = read_claim(store, newest)
    if newest == held.number and claim is None:
        return FencedError(
            f"{store.url}/{claim_key(newest)}, the claim of this job, is gone or cannot be read: the root or lineage/ "
            "was deleted or replaced while this job ran. What it saves is superseded, and it deletes nothing. Stop "
            "it, and check what is there before you start it again"
        )
    who = f"{claim.host}, process {claim.pid}, since {claim.created_at}" if claim else "its claim cannot be read"
    return FencedError(
        f"{store.url}: another copy holds this root: incarnation {newest} ({who}); this one is incarnation "
        f"{held.number}, and what it saves is superseded. Stop this job and do not restart it: two jobs on one "
        "root fence each other forever (a job per worker without TF_CONFIG looks the same). An evaluation job opens "
        "the root with read_only=True, which never fences."
    )
