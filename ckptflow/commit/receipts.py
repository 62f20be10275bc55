"""The other workers' receipts of one save: waited for, found by listing, each read once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from ckptflow.commit.assembly import Draft, refuse_receipt
from ckptflow.commit.lineage import Held
from ckptflow.errors import (
    CkptflowError,
    CommitTimeoutError,
    CorruptCheckpointError,
    ObjectNotFoundError,
    SaveFailedError,
    UnknownVersionError,
)
from ckptflow.format.layout import Folder, receipt_name
from ckptflow.format.manifest import (
    LINE_END,
    MAX_RECEIPT_BYTES,
    Receipt,
    decode,
    decode_digests,
)
from ckptflow.format.words import NAMED, some_of, workers_text
from ckptflow.peers.watch import ASK_EVERY_S
from ckptflow.stops import awake_s
from ckptflow.storage.again import read_record
from ckptflow.storage.store import Store
from ckptflow.threads import at_once

READERS = 32  # receipts read at once
_PAGE = 1000  # objects that come with one request of a listing
_FEW = 8  # files on a disk that are asked for sooner than threads are started, or a folder is listed

FindLost = Callable[[Sequence[int]], Mapping[int, str]]  # which of these are waited for in vain, and why
BeginWait = Callable[[], FindLost]
FindFailure = Callable[[Folder], CkptflowError | None]


class Receipts:
    """Those of the saves of one incarnation. On the chief, in one thread."""

    def __init__(
        self,
        store: Store,
        held: Held,
        commit_timeout_s: float,
        begin_wait: BeginWait,
        find_failure: FindFailure,
    ) -> None:
        self._store = store
        self._held = held
        self._commit_timeout_s = commit_timeout_s
        self._begin_wait = begin_wait
        self._find_failure = find_failure
        # What the last listing cost, in questions for one name: its pages, or its files, since a disk is asked for the
        # size of each. The folder grows while it is written.
        self._listing_cost = 1 if store.is_object_store else _FEW

    def collect(self, draft: Draft, deadline: float, hurry_deadline: Callable[[], float]) -> list[Receipt]:
        """Looks for the other workers' receipts, with back-off, until all are there or a deadline has passed.

        Raises `CommitTimeoutError` (who is missing), or why the save has failed, as a worker or a note of one says.
        """
        missing = set(range(1, draft.world_size))
        found: list[Receipt] = []
        pause_s = 0.05 if self._store.is_object_store else 0.002
        find_lost, ask_at = self._begin_wait(), time.monotonic() + ASK_EVERY_S
        while missing:
            # Before looking for the receipts: they may be the last that it wrote.
            found_lost: Mapping[int, str] = {}
            if time.monotonic() >= ask_at:
                ask_at = time.monotonic() + ASK_EVERY_S
                if (failure := self._find_failure(draft.folder)) is not None:
                    raise failure
                found_lost = find_lost(sorted(missing))
            is_last = self._is_over(deadline, hurry_deadline)
            found += self._look(draft, sorted(missing), by_name=is_last or bool(found_lost))
            missing -= {receipt.worker for receipt in found}
            if missing and is_last:
                raise CommitTimeoutError(
                    f"{self._store.url}/{draft.folder}: {workers_text(sorted(missing))} of "
                    f"{draft.world_size} did not report {self._limit(deadline, hurry_deadline)}; this step was not "
                    "saved, older checkpoints are untouched"
                )
            lost = {worker: why for worker, why in found_lost.items() if worker in missing}
            if lost:
                raise SaveFailedError(
                    f"{self._store.url}/{draft.folder}: "
                    f"{some_of([f'worker {worker} {why}' for worker, why in lost.items()], NAMED)} and did not report "
                    f"(of {draft.world_size} workers); this step was not saved, older checkpoints are untouched"
                )
            if missing:
                time.sleep(pause_s)
                pause_s = min(pause_s * 1.5, 1.0 if self._store.is_object_store else 0.05)
        return sorted(found, key=lambda receipt: receipt.worker)

    def with_differences(
        self,
        draft: Draft,
        own: Receipt,
        alike: Mapping[str, int],
        others: Sequence[Receipt],
        deadline: float,
        hurry_deadline: Callable[[], float],
    ) -> list[Receipt]:
        """All receipts, the chief's first, their `digests` with those by which copies differ that must be alike.

        `alike` are the chief's. The second line of a receipt is read only where its digest is another one. Raises
        `CommitTimeoutError` where a deadline passes before all of these are read; the first of them always are.
        """
        odd = [receipt for receipt in others if receipt.digest != own.digest]
        differing: dict[str, int] = {}  # one of each name: that it is not the chief's says all that is asked
        for first in range(0, len(odd), READERS):
            if first and self._is_over(deadline, hurry_deadline):
                raise CommitTimeoutError(
                    f"{self._store.url}/{draft.folder}: what differs between workers, of whom {len(odd)} do not hold "
                    f"what the chief holds, was not found {self._limit(deadline, hurry_deadline)}; this step was not "
                    "saved, older checkpoints are untouched"
                )
            for digests in at_once(READERS, self._differ(draft, alike), odd[first : first + READERS]):
                differing |= digests
        holders = [_and_digests(each, differing) if each is odd[0] else each for each in others] if odd else others
        return [_and_digests(own, alike), *holders]

    def _is_over(self, deadline: float, hurry_deadline: Callable[[], float]) -> bool:
        """Whether it is past a deadline, by `awake_s`."""
        return awake_s() >= min(deadline, hurry_deadline())

    def _limit(self, deadline: float, hurry_deadline: Callable[[], float]) -> str:
        if hurry_deadline() < deadline:
            return "in the time that an error has left them"
        return f"within commit_timeout_s={self._commit_timeout_s:g}"

    def _differ(self, draft: Draft, alike: Mapping[str, int]) -> Callable[[Receipt], dict[str, int]]:
        """Reads what a worker's digest is of; returns what of it is not as the chief's."""

        def differ(receipt: Receipt) -> dict[str, int]:
            where = self._where(draft, receipt.worker)
            try:
                key = self._key(draft, receipt.worker)
                digests = read_record(
                    self._store, key, MAX_RECEIPT_BYTES, lambda data: decode_digests(data, receipt, where)
                )
            except (CorruptCheckpointError, UnknownVersionError, ObjectNotFoundError) as error:
                raise SaveFailedError(f"worker {receipt.worker}'s digests cannot be used: {error}") from error
            return {name: digest for name, digest in digests.items() if alike.get(name, digest) != digest}

        return differ

    def _look(self, draft: Draft, missing: Sequence[int], *, by_name: bool) -> list[Receipt]:
        """Those of the missing receipts that are there, several read at once.

        By one listing, or by name where that costs no more, and all before a save is given up: that a listing lacks
        them is no proof. On a disk it is listed before that, too: a client of a network file system that was asked for
        a name too early goes on saying that there is none until the folder is opened.
        """
        there = missing
        if by_name and not self._store.is_object_store:
            self._store.list(f"{draft.folder}/")
        if len(missing) > self._listing_cost and not by_name:
            listed = {entry.key for entry in self._store.list(f"{draft.folder}/")}
            self._listing_cost = max(1, -(-len(listed) // _PAGE)) if self._store.is_object_store else len(listed)
            there = [worker for worker in missing if self._key(draft, worker) in listed]
        if len(there) <= (1 if self._store.is_object_store else _FEW):
            read = [self._read(draft, worker) for worker in there]
        else:
            read = at_once(READERS, lambda worker: self._read(draft, worker), there)
        return [receipt for receipt in read if receipt is not None]

    def _read(self, draft: Draft, worker: int) -> Receipt | None:
        where = self._where(draft, worker)
        try:
            receipt = read_record(
                self._store,
                self._key(draft, worker),
                MAX_RECEIPT_BYTES,
                lambda data: decode(data, Receipt, where),
                may_be_missing=True,
                end=LINE_END,
            )
        except ObjectNotFoundError:
            return None
        except (CorruptCheckpointError, UnknownVersionError) as error:
            raise SaveFailedError(f"worker {worker}'s receipt cannot be used: {error}") from error
        why_not = refuse_receipt(draft, self._held, receipt, worker)
        if why_not is not None:
            cause = receipt.failure.rebuild() if receipt.failure is not None else None
            raise SaveFailedError(f"{self._store.url}/{draft.folder}: {why_not}") from cause
        return receipt

    def _key(self, draft: Draft, worker: int) -> str:
        return draft.folder.key(receipt_name(worker, draft.world_size, self._held.tag))

    def _where(self, draft: Draft, worker: int) -> str:
        return f"{self._store.url}/{self._key(draft, worker)}"


def _and_digests(receipt: Receipt, digests: Mapping[str, int]) -> Receipt:
    return msgspec.structs.replace(receipt, digests={**receipt.digests, **digests}) if digests else receipt
