"""From receipts to a manifest: one incarnation's commits, each acknowledged only once it is known not to be fenced.

Rules 7 to 9 of the protocol, run by the chief in the background: no collective here.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence

from ckptflow.commit.assembly import Draft, assemble
from ckptflow.commit.catalog import Counting, Listing, Summaries, Summary, list_root, summarize
from ckptflow.commit.lineage import Held, check_fence, create_once, fenced
from ckptflow.commit.prune import act, plan_prune
from ckptflow.commit.resume import Start
from ckptflow.commit.retention import Policy, reasons_to_keep
from ckptflow.errors import (
    CommitTimeoutError,
    CommitUnknownError,
    CorruptCheckpointError,
    FencedError,
    ObjectNotFoundError,
    SaveFailedError,
    StorageUnavailableError,
    UnknownVersionError,
)
from ckptflow.events import Pruned, Tell, tell_nobody
from ckptflow.format.layout import Folder, receipt_name
from ckptflow.format.manifest import (
    MAX_RECEIPT_BYTES,
    Receipt,
    decode,
    encode,
)
from ckptflow.spans import span
from ckptflow.storage.again import read_record
from ckptflow.storage.store import Store
from ckptflow.threads import at_once

logger = logging.getLogger("ckptflow")

_READERS = 8  # receipts read at once, where there are more
_ASK_EVERY_S = 2.0
_DEAD_AFTER_S = 6.0  # of silence, so that no hiccup of a network is a death


class Coordinator:
    """Commits the checkpoints of one incarnation, in the order of saves, and prunes: on the chief, in one thread."""

    def __init__(
        self,
        store: Store,
        start: Start,
        summaries: Summaries,
        policies: Sequence[Policy],
        *,
        commit_timeout_s: float,
        is_alive: Callable[[int], bool] = lambda worker: True,
        tell: Tell = tell_nobody,
    ) -> None:
        """`is_alive`: whether a worker's process still answers; one that has died is not waited for."""
        if start.held is None:
            raise ValueError("a reader commits nothing")
        self._store = store
        self._start = start
        self._held: Held = start.held
        self._summaries = summaries
        self._policies = policies
        self._commit_timeout_s = commit_timeout_s
        self._is_alive = is_alive
        self._tell = tell
        self._committed: list[Summary] = []
        self._given_up: set[Folder] = set()
        self._gone: set[Folder] = set()
        self._hurry_deadline = math.inf
        self._listing: Listing | None = None  # of the last commit, until it is pruned by
        self._is_swept = False  # nothing is left outside what counts that a later save could delete

    def commit(self, draft: Draft, own: Receipt, *, prune: bool = True) -> Summary:
        """Waits for the receipts, creates the manifest, checks the fence, and only then returns: acknowledged.

        With `prune` it lists the root, for `prune` to be called next.

        Raises `CommitTimeoutError` (who is missing), `SaveFailedError` (a worker reported a failure, or what they wrote
        does not fit together), `CommitUnknownError` (sent, no reply), `FencedError` (it may be there, and does not
        count), or a `StorageError`.
        """
        deadline = time.monotonic() + self._commit_timeout_s
        try:
            with span("await"):
                receipts = [own, *self._collect(draft, deadline)]
        except BaseException:
            self.give_up(draft.folder)
            raise
        with span("commit"):
            summary = self._create_manifest(draft, receipts, deadline)
            listing = self._list_to_prune() if prune else None
            if listing is not None and listing.top_number > self._held.number:
                raise fenced(self._store, self._held, listing.top_number)
            check_fence(self._store, self._held)
        self._listing = listing
        return summary

    def prune(self) -> None:
        """Deletes what need not stay, by the listing of the commit before. Nobody waits for it who waits for the save.

        A failure is logged and never fails the save; the next prune tries again.
        """
        listing, self._listing = self._listing, None
        if listing is not None:
            with span("prune"):
                self._prune(listing)

    def _create_manifest(self, draft: Draft, receipts: list[Receipt], deadline: float) -> Summary:
        try:
            manifest = assemble(draft, receipts, self._start, self._held, self._store.url)
            data = encode(manifest)
        except BaseException:
            self.give_up(draft.folder)
            raise
        self._create(draft.folder, data, deadline)
        summary = summarize(manifest, self._store.url)
        self._summaries.add(summary)
        self._committed.append(summary)
        return summary

    @property
    def has_checkpoints(self) -> bool:
        """Whether this incarnation builds on a checkpoint: one that it restored, or one of its own."""
        return self._start.restored is not None or bool(self._committed)

    def hurry(self, timeout_s: float) -> None:
        """From any thread: the commit under way, and later ones, wait at most `timeout_s` from now for receipts."""
        self._hurry_deadline = time.monotonic() + timeout_s

    def give_up(self, folder: Folder) -> None:
        """No manifest of this folder was or will be sent: what is in it may be deleted."""
        self._given_up.add(folder)

    def sweep_partials(self) -> int:
        """Makes room on a full storage: deletes what dead incarnations and own failures left uncommitted.

        Allowed before the first commit, too. Returns the bytes freed; raises `FencedError` like a commit.
        """
        listing = list_root(self._store)
        check_fence(self._store, self._held, listing)
        partials = listing.only(set(listing.folders) - set(listing.committed))
        plan = plan_prune(
            Listing(partials.folders, (), partials.pins),
            Counting(),
            self._summaries.get,
            (),
            incarnation=self._held.number,
            given_up=self._given_up,
        )
        return act(self._store, plan, listing.folders)

    def _collect(self, draft: Draft, deadline: float) -> list[Receipt]:
        """Polls the other workers' receipts by name, with back-off, until all are there or the deadline has passed."""
        missing = set(range(1, draft.world_size))
        found: list[Receipt] = []
        pause_s = 0.05 if self._store.is_object_store else 0.002
        heard = time.monotonic()  # when all that are missing were last known to live
        asked = heard
        while missing:
            dead_s = time.monotonic() - heard  # before looking for the receipts: they may be the last it wrote
            found += self._read_receipts(draft, sorted(missing))
            missing -= {receipt.worker for receipt in found}
            if missing and time.monotonic() >= min(deadline, self._hurry_deadline):
                raise CommitTimeoutError(
                    f"{self._store.url}/{draft.folder}: worker(s) {', '.join(map(str, sorted(missing)))} of "
                    f"{draft.world_size} did not report within commit_timeout_s={self._commit_timeout_s:g}; this "
                    "step was not saved, older checkpoints are untouched"
                )
            if missing and time.monotonic() - asked >= _ASK_EVERY_S:
                asked = time.monotonic()
                silent = [worker for worker in sorted(missing) if not self._is_alive(worker)]
                if not silent:
                    heard = asked
                elif dead_s >= _DEAD_AFTER_S:
                    raise SaveFailedError(
                        f"{self._store.url}/{draft.folder}: worker(s) {', '.join(map(str, silent))} of "
                        f"{draft.world_size} ended before they reported; this step was not saved, older checkpoints "
                        "are untouched"
                    )
            if missing:
                time.sleep(pause_s)
                pause_s = min(pause_s * 1.5, 1.0 if self._store.is_object_store else 0.05)
        return sorted(found, key=lambda receipt: receipt.worker)

    def _read_receipts(self, draft: Draft, workers: Sequence[int]) -> list[Receipt]:
        """Those of these workers' receipts that are there: of many workers several at once, or a look takes seconds."""
        if len(workers) <= _READERS:
            read = [self._read_receipt(draft, worker) for worker in workers]
        else:
            read = at_once(_READERS, lambda worker: self._read_receipt(draft, worker), workers)
        return [receipt for receipt in read if receipt is not None]

    def _read_receipt(self, draft: Draft, worker: int) -> Receipt | None:
        key = draft.folder.key(receipt_name(worker, draft.world_size))
        where = f"{self._store.url}/{key}"
        try:
            receipt = read_record(
                self._store, key, MAX_RECEIPT_BYTES, lambda data: decode(data, Receipt, where), may_be_missing=True
            )
        except ObjectNotFoundError:
            return None
        except (CorruptCheckpointError, UnknownVersionError) as error:
            raise SaveFailedError(f"worker {worker}'s receipt cannot be used: {error}") from error
        self._check_receipt(draft, receipt, worker)
        return receipt

    def _check_receipt(self, draft: Draft, receipt: Receipt, worker: int) -> None:
        expected = (str(draft.folder), self._held.writer_id, worker, draft.world_size)
        if (receipt.folder, receipt.writer_id, receipt.worker, receipt.world_size) != expected:
            raise SaveFailedError(f"{self._store.url}/{draft.folder}: worker {worker}'s receipt is not of this save")
        if receipt.failure is not None:
            raise SaveFailedError(
                f"{self._store.url}/{draft.folder}: worker {worker} could not save: {receipt.failure}"
            )

    def _create(self, folder: Folder, data: bytes, deadline: float) -> None:
        """Creates the manifest. From the first try on this incarnation never sweeps the folder: it may land late."""
        key = folder.manifest_key
        deadline = max(deadline, time.monotonic() + 10.0)
        while True:
            try:  # in bits: `hurry` may come while it goes on
                is_ours = create_once(self._store, key, data, min(deadline, time.monotonic() + _ASK_EVERY_S))
                break
            except StorageUnavailableError as error:
                if time.monotonic() < min(deadline, self._hurry_deadline):
                    continue
                raise CommitUnknownError(
                    f"{self._store.url}/{key} was sent and no reply came: the checkpoint may or may not count; the "
                    "next restore finds out"
                ) from error
        if not is_ours:
            raise FencedError(
                f"{self._store.url}/{key} is there and is another's: another copy of this job writes to this root. "
                "Stop this one and do not restart it"
            )

    def _list_to_prune(self) -> Listing | None:
        """Lists the root where there may be something to delete: at the first commit, and when a policy lets one go.

        Never raises: the commit stands, and its fence check is still to come.
        """
        try:
            if not self._is_swept:
                return list_root(self._store)
            known = [*self._known_lineage(), *self._committed]
            by_step = {summary.folder.step: summary.checkpoint for summary in known}
            checkpoints = [by_step[step] for step in sorted(by_step)]
            keeps_all = len(by_step) == len(known) and all(reasons_to_keep(checkpoints, self._policies)[:-1])
            return None if keeps_all and not self._given_up else list_root(self._store)
        except BaseException as error:  # a policy may raise anything, SystemExit too
            logger.warning("%s: nothing is pruned now, the next save tries again: %s", self._store.url, error)
            return None

    def _known_lineage(self) -> list[Summary]:
        """Summaries of the lineage, each manifest read once; one that was deleted by hand is passed over."""
        found: list[Summary] = []
        for folder in sorted(self._start.lineage - self._gone):
            try:
                summary = self._summaries.get(folder)
            except ObjectNotFoundError:
                self._gone.add(folder)
                continue
            if isinstance(summary, Summary):
                found.append(summary)
        return found

    def _prune(self, listing: Listing) -> None:
        committed = listing.committed
        number = self._held.number  # an own manifest that was thought lost and has landed late counts, too
        counts = {folder for folder in committed if folder.incarnation == number or folder in self._start.lineage}
        counting = Counting(
            incarnation=self._held.number,
            run_id=self._held.run_id,
            folders=tuple(sorted(counts, reverse=True)),
            outside=tuple(sorted(set(committed) - counts, reverse=True)),
            barrier=self._start.barrier,
            fresh_since=self._start.fresh_since,
        )
        try:
            self._summaries.read_ahead(committed)
            plan = plan_prune(
                listing,
                counting,
                self._summaries.get,
                self._policies,
                incarnation=self._held.number,
                given_up=self._given_up,
            )
            act(self._store, plan, listing.folders)
        except BaseException as error:  # a policy may raise anything, SystemExit too
            logger.warning("%s: pruning failed, the next save tries again: %s", self._store.url, error)
            return
        for decision in plan.decisions:
            if not decision.keep:
                folder, size_bytes = decision.folder, sum(listing.folders[decision.folder].values())
                self._tell(Pruned(step=folder.step, folder=str(folder), size_bytes=size_bytes, reason=decision.reason))
        gone = set(plan.deletions)
        self._is_swept = not counting.outside
        self._gone |= gone & self._start.lineage
        self._given_up -= gone
        self._committed = [summary for summary in self._committed if summary.folder not in gone]
        self._summaries.forget(gone)
