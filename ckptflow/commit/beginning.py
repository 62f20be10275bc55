"""How an incarnation begins where nothing is loaded: on an empty root, over what is there, or from what was only read.

Rules 2, 3 and 5 of the protocol. All workers run this in lockstep on the main thread; the chief alone lists and claims.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ckptflow.commit.catalog import Counting, Listing, Summaries, Summary, find_counting_now
from ckptflow.commit.choosing import Chooser
from ckptflow.commit.lineage import Held, claim_next, find_run_id, newest_claim
from ckptflow.commit.start import Seen, Start, begun
from ckptflow.commit.together import check_claim_is_seen
from ckptflow.errors import FencedError, UsageError
from ckptflow.format.manifest import Reason
from ckptflow.peers.team import Call, Done, Team, chief_says
from ckptflow.storage.store import Store


class Beginning:
    """The begin of one incarnation, on all workers. `may_have_claimed`: whether a claim of it may be there."""

    def __init__(self, store: Store, cluster: Team, summaries: Summaries, *, claim_timeout_s: float = 60.0) -> None:
        self._store = store
        self._cluster = cluster
        self._summaries = summaries
        self._claim_timeout_s = claim_timeout_s
        self._chooser = Chooser(store, summaries)
        self.may_have_claimed = False

    def start_anew(self, *, fresh: bool) -> Start:
        """Claims without restoring: on an empty root, or over what is there with `fresh`."""
        reason: Reason = "fresh" if fresh else "start"
        if not fresh:
            self._chief_does(self._chooser.refuse_used_root)
        held = self._claim(reason)
        self._chief_does(lambda: (self._chooser.warn_of_fresh if fresh else self._chooser.refuse_used_root)(held))
        barrier = held.number if fresh else 0
        return Start(held, reason, barrier=barrier, fresh_since=barrier, sound_since=barrier)

    def take_up(self, read: Start) -> Start:
        """Claims for what `Resume.read` has brought back, and loads nothing: the save that comes next is the first of
        the new incarnation, and with it what came after `read` no longer counts.

        Raises `FencedError` where another job has claimed the root since it was read, or has saved: what the person who
        went back did not know of is not cut off. Nothing is claimed then, unless it saved in the very moment.
        """
        restored, seen = read.restored, read.seen
        if restored is None:
            raise UsageError("nothing was restored that could be taken up")

        def check(listing: Listing) -> None:
            if seen is not None:
                self._check_unchanged(listing, self._count(listing), seen, restored)

        try:
            held = self._claim(read.reason, check)
        except FencedError:  # by `check`: no claim of ours is there
            self.may_have_claimed = False
            raise
        start = Start(held, read.reason, restored)

        def begin() -> None:
            nonlocal start
            view = self._chooser.list_anew(held)
            if seen is not None:
                before = replace(view.listing, claims=tuple(n for n in view.listing.claims if n != held.number))
                self._check_unchanged(before, view.counting, seen, restored)
            start = begun(held, read.reason, restored, self._chooser.lineage_of(restored, view), view.counting)

        self._chief_does(begin)
        return start

    def _check_unchanged(self, listing: Listing, counting: Counting, seen: Seen, restored: Summary) -> None:
        """Raises `FencedError` unless the newest claim, and the newest that counts, are those that were seen."""
        number, writer_id = newest_claim(listing, self._summaries)
        if (number, writer_id) != (seen.number, seen.writer_id):
            claim = self._summaries.claim(number) if number else None
            who = f" ({claim.host}, process {claim.pid}, since {claim.created_at})" if claim else ""
            what = f"another job has started{who}" if number else "the root or lineage/ was deleted or replaced"
        elif counting.newest != seen.newest:
            what = f"the newest checkpoint was {seen.newest or 'none'} and is {counting.newest or 'none'}"
        else:
            return
        step = restored.folder.step
        raise FencedError(
            f"{self._store.url}: since restore({step}) has read it, {what}: nothing was saved, and nothing is "
            "superseded. If another job works there, leave it the root. To go on with this one all the same, end the "
            f"other and call rollback({step}), which claims at once, or restore_latest()"
        )

    def _count(self, listing: Listing) -> Counting:
        run_id = find_run_id(self._store, listing, self._summaries)
        return find_counting_now(listing, run_id, self._summaries.get, self._summaries.holder)

    def _chief_does(self, do: Callable[[], None]) -> None:
        def done() -> Done:
            do()
            return Done()

        chief_says(self._cluster, Call.START, done, Done)

    def _claim(self, reason: Reason, check: Callable[[Listing], None] = lambda listing: None) -> Held:
        def claim() -> Held:
            return claim_next(self._store, self._summaries, reason, self._claim_timeout_s, check)

        self.may_have_claimed = True  # from here on, whatever is raised: a claim that is there fences who made it, too
        held = chief_says(self._cluster, Call.CLAIM, claim, Held)
        check_claim_is_seen(self._cluster, self._store, held)
        return held
