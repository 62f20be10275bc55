"""From receipts to a manifest: one incarnation's commits, each acknowledged only once it is known not to be fenced.

Rules 7 to 9 of the protocol, run by the chief in the background: no messages here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from ckptflow.commit.assembly import Draft, assemble
from ckptflow.commit.catalog import (
    Checkpoint,
    Counting,
    Listing,
    Summaries,
    Summary,
    list_pins,
    list_root,
    summarize,
)
from ckptflow.commit.freed import freed_bytes
from ckptflow.commit.lineage import (
    Held,
    check_fence,
    check_own_claim,
    create_once,
    fenced,
    newer_number,
)
from ckptflow.commit.prune import act, doubt_newest, listed_again, plan_prune
from ckptflow.commit.receipts import BeginWait, FindFailure, Receipts
from ckptflow.commit.retention import Policy, reasons_to_keep
from ckptflow.commit.reuse import Reuse, as_existing, choose_reuse, staying_all_the_same, staying_beside
from ckptflow.commit.start import Start, count_own
from ckptflow.commit.unknown_metrics import UnknownMetrics
from ckptflow.errors import (
    CommitUnknownError,
    CorruptCheckpointError,
    FencedError,
    ObjectNotFoundError,
    StorageError,
    StorageUnavailableError,
)
from ckptflow.events import Pruned, Tell, tell_nobody
from ckptflow.format.layout import Folder, claim_key, parse_tag
from ckptflow.format.manifest import Receipt, encode
from ckptflow.printable import said
from ckptflow.spans import span
from ckptflow.stops import awake_s
from ckptflow.storage.again import is_there
from ckptflow.storage.store import Store
from ckptflow.storage.wrappers import can_copy

logger = logging.getLogger("ckptflow")

_READ_AT_ONCE = 8  # manifests that the first save after a restart may wait for
_WRITTEN_WHOLE = (
    "%s: step %d: unchanged data is written again, since the policies have retained only one of its two physical "
    "copies; it is copied if they retain at least the last two checkpoints (KeepLast(2))"
)
NO_DIGESTS: Mapping[str, int] = MappingProxyType({})


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
        begin_wait: BeginWait = lambda: lambda workers: {},
        find_failure: FindFailure = lambda folder: None,
        tell: Tell = tell_nobody,
    ) -> None:
        """`begin_wait()` begins to wait for other workers; what it returns tells which of them are waited for in vain.

        `find_failure(folder)`: why the save into it has failed, if a worker said so otherwise than by its receipt.
        """
        if start.held is None:
            raise ValueError("a reader commits nothing")
        self._store = store
        self._start = start
        self._held: Held = start.held
        self._summaries = summaries
        self._policies = policies
        self._unknown_metrics = UnknownMetrics(store.url, policies)
        self._commit_timeout_s = commit_timeout_s
        self._receipts = Receipts(store, start.held, commit_timeout_s, begin_wait, find_failure)
        self._tell = tell
        self._committed: list[Summary] = []
        self._given_up: set[Folder] = set()
        self._gone: set[Folder] = set()
        self._unsure: list[Summary] = []  # sent, and not known to be there
        self._families: set[int] = set()  # met so far, where copies share bytes
        self._has_told = False
        self._hurry_deadline = math.inf
        self._may_prune = False  # after the last commit
        self._is_swept = False  # nothing is left outside what counts that a later save could delete

    def commit(
        self,
        draft: Draft,
        own: Receipt,
        *,
        alike: Mapping[str, int] = NO_DIGESTS,
        prune: bool = True,
        is_checked: bool = False,
    ) -> Summary:
        """Waits for the receipts, creates the manifest, checks the fence, and only then returns: acknowledged.

        `alike`: this worker's digests of what all workers must hold alike, that the one in its receipt is of. Without
        `prune` the call of that, which comes next, does nothing. `is_checked`: `check_claim_before` was called when
        this worker's shards were there.

        Raises `CommitTimeoutError` (who is missing), `SaveFailedError` (a worker reported a failure, or what they wrote
        does not fit together), `CommitUnknownError` (it was sent, and either no reply came or nothing told whether it
        counts), `FencedError` (it may be there, and does not count), or a `StorageError` (it is not there).
        """
        deadline = awake_s() + self._commit_timeout_s
        try:
            with span("await"):
                limits = deadline, lambda: self._hurry_deadline
                others = self._receipts.collect(draft, *limits)
                receipts = self._receipts.with_differences(draft, own, alike, others, *limits)
        except BaseException:
            self.give_up(draft.folder)
            raise
        with span("commit"):
            summary = self._create_manifest(draft, receipts, deadline, is_checked and self._held.is_exclusive)
            try:
                check_fence(self._store, self._held)
            except FencedError:
                raise
            except BaseException as error:  # it is there, and the next restore takes it if nothing newer is
                raise CommitUnknownError(
                    f"{self._store.url}/{draft.folder} is complete, but whether it is current is not known: "
                    f"{error!r}; the next restore finds out"
                ) from error
        self._may_prune = prune
        return summary

    def prune(self) -> None:
        """Deletes what need not stay after the last commit. Nobody waits for it who waits for the save.

        A failure is logged and never fails the save; the next prune tries again. Where a newer claim is listed nothing
        is deleted: it was made after the save was found to count, and fences the next one. Raises `FencedError` if a
        checkpoint shows a newer incarnation whose claim is gone: of the save it cannot be said that it counts.
        """
        may_prune, self._may_prune = self._may_prune, False
        listing = self._list_to_prune() if may_prune and not self._is_hurried else None
        if listing is None:
            return
        with span("prune"):
            try:
                newer = newer_number(self._store, self._held, listing)
                if newer in listing.claims:
                    logger.warning(
                        "%s: another job has claimed this root since (%s): what was saved is current, nothing is "
                        "pruned, and the next save will be fenced",
                        self._store.url,
                        claim_key(newer),
                    )
                    return
                if newer:
                    raise fenced(self._store, self._held, newer)
            except FencedError:
                raise
            except BaseException as error:
                logger.warning("%s: pruning failed, the next save tries again: %s", self._store.url, said(error))
                return
            self._prune(listing)

    def _create_manifest(self, draft: Draft, receipts: list[Receipt], deadline: float, is_checked: bool) -> Summary:
        try:
            manifest = assemble(draft, receipts, self._start, self._held, self._store.url)
            data, summary = encode(manifest), summarize(manifest, self._store.url)
            if not is_checked:
                self.check_claim_before()
        except BaseException:
            self.give_up(draft.folder)
            raise
        try:
            self._create(draft.folder, data, deadline)
        except CommitUnknownError:
            self._unsure.append(summary)
            raise
        self._summaries.add(summary)
        self._committed.append(summary)
        return summary

    def check_claim_before(self) -> None:
        """Before a manifest is created, once some of its folder is there. It may decide what counts, also against a job
        that claimed a lower number after claims were deleted; where creates replace, it would be in another's place.

        That job lists after its claim: it saw the folder, and took a number above, or its claim came after this look.
        """
        check_own_claim(self._store, self._held)

    def choose_reuse(self, step: int, metrics: Mapping[str, float], metadata: Any = None) -> Reuse:
        """From which checkpoint the next one, of this step, may copy. Called between saves, on the training thread.

        On a disk the policies are asked what will stay beside it, and manifests that were not read yet are read; on an
        object store nothing is asked. Whatever a policy or the storage does, it raises nothing: then there is no copy.
        """
        if not can_copy(self._store):
            return Reuse(reason="the storage cannot copy")
        try:
            reuse = self._choose_reuse(step, metrics, metadata)
        except (Exception, SystemExit) as error:  # as in a prune: a policy may raise anything
            logger.warning("%s: nothing is copied into step %d: %s", self._store.url, step, said(error))
            return Reuse(reason="what stays is not known")
        logger.debug("%s: step %d copies from %s: %s", self._store.url, step, reuse.source or "nothing", reuse.reason)
        return reuse

    def _choose_reuse(self, step: int, metrics: Mapping[str, float], metadata: Any) -> Reuse:
        restored = self._start.restored
        if self._store.is_object_store:
            newest = self._committed[-1] if self._committed else restored
            return choose_reuse(as_existing([newest] if newest else [], self._start), (), is_shared=False)
        landed = [each for each in self._unsure if is_there(self._store, each.folder.manifest_key)]
        known = sorted([*self._known_lineage(_READ_AT_ONCE), *self._committed, *landed], key=lambda each: each.folder)
        known = known or ([restored] if restored else [])
        coming = Checkpoint(step, self._held.number, metrics, metadata, datetime.now(UTC), 0, self._store.url)
        kept = staying_beside(coming, known, self._policies)
        if not kept:  # a pin may be taken back: it decides only if no policy keeps one
            kept = staying_all_the_same(known, self._policies, list_pins(self._store))
        reuse = choose_reuse(as_existing(known, self._start), kept, is_shared=True)
        families = {each.family for each in known}
        if reuse.source is None and reuse.family in self._families - families and not self._has_told:
            self._has_told = True
            logger.info(_WRITTEN_WHOLE, self._store.url, step)
        self._families |= families
        return reuse

    @property
    def has_committed(self) -> bool:
        """Whether a checkpoint of this incarnation is acknowledged."""
        return bool(self._committed)

    def hurry(self, timeout_s: float) -> None:
        """From any thread: the commit under way, and later ones, wait at most `timeout_s` from now for receipts, and
        nothing more is deleted."""
        self._hurry_deadline = awake_s() + timeout_s

    @property
    def _is_hurried(self) -> bool:
        return self._hurry_deadline != math.inf

    def give_up(self, folder: Folder) -> None:
        """No manifest of this folder was or will be sent: what is in it may be deleted.

        Those given up before are deleted now, so that save after save that fails leaves no more than one behind. Of
        this one, other workers may still be writing.
        """
        if not self._is_hurried:
            self._delete_given_up(self._given_up - {folder})
        self._given_up.add(folder)

    def _delete_given_up(self, folders: Collection[Folder]) -> None:
        """Deletes our own files in these folders, by their names: nobody else has written or needs them.

        Not where a manifest is there all the same, whatever the storage said when it was sent.
        """
        try:
            for folder in sorted(folders):
                if is_there(self._store, folder.manifest_key):
                    logger.warning("%s/%s is committed, though a save into it failed", self._store.url, folder)
                    self._given_up.discard(folder)
                    continue
                entries = self._store.list(f"{folder}/")
                self._store.delete([e.key for e in entries if parse_tag(e.key.rpartition("/")[2]) == self._held.tag])
                self._given_up.discard(folder)
        except StorageError as error:
            logger.info("%s: leftovers of a failed save stay for now: %s", self._store.url, said(error))

    def sweep_partials(self) -> int:
        """Makes room on a full storage: deletes what dead incarnations and own failures left uncommitted.

        Allowed before the first commit, too; what a listing shows as uncommitted is asked for again. Returns the bytes
        freed; raises `FencedError` like a commit.
        """
        listing = self._list_root()
        check_fence(self._store, self._held, listing)
        if listing is None or self._is_hurried:
            return 0
        partials = listing.only(set(listing.folders) - set(listing.committed))
        plan = plan_prune(
            Listing(partials.folders, (), partials.pins),
            Counting(),
            self._summaries.get,
            (),
            incarnation=self._held.number,
            given_up=self._given_up,
        )
        plan = listed_again(self._store, plan, listing, {})
        act(self._store, plan, listing.folders)
        return sum(freed_bytes(listing, plan.deletions).values())

    def _create(self, folder: Folder, data: bytes, deadline: float) -> None:
        """Creates the manifest. Once a try was not answered this incarnation never sweeps the folder: it may land."""
        key = folder.manifest_key
        deadline = max(deadline, awake_s() + 10.0)
        try:
            is_ours = create_once(self._store, key, data, lambda: min(deadline, self._hurry_deadline))
        except BaseException as error:
            if isinstance(error, StorageError) and not isinstance(error, StorageUnavailableError):
                self.give_up(folder)
                raise
            raise CommitUnknownError(
                f"{self._store.url}/{key} was sent and no reply came: the checkpoint may or may not be committed; the "
                f"next restore finds out ({error!r})"
            ) from error
        if not is_ours:
            raise FencedError(
                f"{self._store.url}/{key} is there and is another's: another copy of this job writes to this root. "
                "Stop this one and do not restart it"
            )

    def _list_to_prune(self) -> Listing | None:
        """Lists the root where there may be something to delete: at the first commit, and when a policy lets one go.

        Never raises: the commit is acknowledged. Who holds the root by now is looked up in what this returns.
        """
        try:
            if not self._is_swept or self._given_up:
                return self._list_root()
            known = [*self._known_lineage(), *self._committed]
            by_step = {summary.folder.step: summary.checkpoint for summary in known}
            checkpoints = [by_step[step] for step in sorted(by_step)]
            self._unknown_metrics.warn(known)
            keeps_all = len(by_step) == len(known) and all(reasons_to_keep(checkpoints, self._policies)[:-1])
            return None if keeps_all else self._list_root()
        except BaseException as error:  # a policy may raise anything, SystemExit too
            logger.warning("%s: nothing is pruned now, the next save tries again: %s", self._store.url, said(error))
            return None

    def _list_root(self) -> Listing | None:
        """The root, or None if the answer cannot be one: what does not show our claim may lack anything."""
        listing = list_root(self._store)
        if self._held.number in listing.claims:
            return listing
        logger.warning("%s: nothing is pruned now: a listing does not show this job's claim", self._store.url)
        return None

    def _known_lineage(self, at_most: float = math.inf) -> list[Summary]:
        """Summaries of the lineage, oldest first, each manifest read once; one deleted by hand is passed over.

        Only the newest, where more than `at_most` were to be read for the others.
        """
        found: list[Summary] = []
        for folder in sorted(self._start.lineage - self._gone, reverse=True):
            at_most -= not self._summaries.has_read(folder)
            if at_most < 0:
                break
            try:
                summary = self._summaries.get(folder)
            except ObjectNotFoundError:
                self._gone.add(folder)
                continue
            if isinstance(summary, Summary) and summary.run_id == self._held.run_id:
                found.append(summary)
        return found[::-1]

    def _prune(self, listing: Listing) -> None:
        try:
            found = self._summaries.read_there(listing)
            listing = listing.without(set(listing.committed) - set(found))  # deleted by hand since it was listed
            counting = count_own(self._start, self._held, listing, found)
            self._unknown_metrics.warn(found[folder] for folder in counting.folders)
            plan = plan_prune(
                listing,
                counting,
                found.__getitem__,
                self._policies,
                incarnation=self._held.number,
                given_up=self._given_up,
            )
            plan = listed_again(self._store, plan, listing, found)
            why_not = doubt_newest(self._store, listing, counting.newest) if plan.deletions else None
            if why_not is not None:
                raise CorruptCheckpointError(f"nothing is deleted: {why_not}")
            check_own_claim(self._store, self._held)
            if self._is_hurried:
                return
            act(self._store, plan, listing.folders)
        except BaseException as error:  # a policy may raise anything, SystemExit too
            logger.warning("%s: pruning failed, the next save tries again: %s", self._store.url, said(error))
            return
        gone = set(plan.deletions)
        freed = freed_bytes(listing, gone)
        for decision in plan.decisions:
            if not decision.keep:
                self._tell(
                    Pruned(
                        step=decision.folder.step,
                        folder=str(decision.folder),
                        size_bytes=sum(listing.folders[decision.folder].values()),
                        freed_bytes=freed[decision.folder],
                        reason=decision.reason,
                    )
                )
        self._is_swept = not counting.outside
        self._given_up -= gone
        there = found.keys() - gone  # others may have been deleted by hand
        self._gone = {*self._start.lineage} - there
        ours = (found[f] for f in sorted(there & {*counting.folders}) if f.incarnation == self._held.number)
        self._committed = [summary for summary in ours if isinstance(summary, Summary)]
        self._unsure = [summary for summary in self._unsure if summary.folder not in found]
        self._summaries.forget(gone)
