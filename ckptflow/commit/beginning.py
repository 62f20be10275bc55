"""How an incarnation begins where nothing is loaded: on an empty root, over what is there, or from what was only read.

Rules 2, 3 and 5 of the protocol. All workers run this in lockstep on the main thread; the chief alone lists and claims.
"""

from __future__ import annotations

from collections.abc import Callable

from ckptflow.commit.catalog import Counting, Listing, Summaries, find_counting_now
from ckptflow.commit.choosing import Chooser
from ckptflow.commit.lineage import NO_CLAIMS, Held, Own, claim_next, find_run_id, new_writer_id, newest_claim
from ckptflow.commit.start import Seen, Start, begun
from ckptflow.commit.together import check_claim_is_seen
from ckptflow.errors import FencedError, UsageError
from ckptflow.format.manifest import Reason
from ckptflow.peers.team import Call, Done, Team, chief_says
from ckptflow.storage.store import Store


class Beginning:
    """The beginning of one incarnation, on all workers, in a process that has the claims `own`.

    `may_have_claimed`: whether a claim of it may be there; it is the one of `writer_id`.
    """

    def __init__(
        self, store: Store, cluster: Team, summaries: Summaries, *, own: Own = NO_CLAIMS, claim_timeout_s: float = 60.0
    ) -> None:
        self._store = store
        self._cluster = cluster
        self._summaries = summaries
        self._claim_timeout_s = claim_timeout_s
        self._chooser = Chooser(store, summaries)
        self._own = own
        self.writer_id = new_writer_id()
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
        went back did not know of is not cut off. Nothing is claimed then, unless it saved at that very moment. Whatever
        is raised, it can be tried again with the same `read`, once the claim that was tried is among `own`.
        """
        restored = read.restored
        if restored is None:
            raise UsageError("nothing was restored that could be taken up")
        held = self._claim(read.reason, lambda listing: self.check_unchanged(read, listing, self._count(listing)))
        start = Start(held, read.reason, restored)

        def begin() -> None:
            nonlocal start
            view = self._chooser.list_anew(held)
            self.check_unchanged(read, view.listing, view.counting)
            start = begun(held, read.reason, restored, self._chooser.lineage_of(restored, view), view.counting)

        self._chief_does(begin, Call.TAKE_UP)
        return start

    def check_unchanged(self, read: Start, listing: Listing, counting: Counting) -> None:
        """Raises `FencedError` unless the newest claim that is not ours, and the newest that counts, are those that
        were seen with `read`."""
        number, writer_id = newest_claim(listing.claims, self._summaries, self._own.tried | {self.writer_id})
        what = changed_since(read.seen, Seen(number, writer_id, counting.newest))
        if not what:
            return
        step = read.restored.folder.step if read.restored is not None else "step"
        left = max((claim for claim in listing.claims if claim > number), default=0)
        superseded = (
            f"superseded. Claim {left} of this process was left behind, by which a job that works there ends at its "
            "next save: it has lost nothing, start that job again"
            if left
            else "superseded. If another job works there, leave it the root"
        )
        raise FencedError(
            f"{self._store.url}: since restore({step}) has read it, {what}: nothing was saved, and nothing is "
            f"{superseded}. To go on with this one all the same, end the other and call rollback({step}), which claims "
            "at once, or restore_latest()"
        )

    def _count(self, listing: Listing) -> Counting:
        run_id = find_run_id(self._store, listing, self._summaries)
        return find_counting_now(listing, run_id, self._summaries.get, self._summaries.holder)

    def _chief_does(self, do: Callable[[], None], call: Call = Call.START) -> None:
        def done() -> Done:
            do()
            return Done()

        chief_says(self._cluster, call, done, Done)

    def _claim(self, reason: Reason, check: Callable[[Listing], None] = lambda listing: None) -> Held:
        def claim() -> Held:
            return claim_next(self._store, self._summaries, reason, self._claim_timeout_s, check, self.writer_id)

        self.may_have_claimed = True  # from here on, whatever is raised: a claim that is there fences who made it, too
        held = chief_says(self._cluster, Call.CLAIM, claim, Held)
        check_claim_is_seen(self._cluster, self._store, held)
        return held


def changed_since(seen: Seen | None, now: Seen) -> str:
    """What forbids to take up what was read when the root was as `seen`; empty where nothing does."""
    if seen is None:
        return "it cannot be told what has changed"
    if (now.number, now.writer_id) != (seen.number, seen.writer_id):
        is_there = f"another job has started, as incarnation {now.number}"
        return is_there if now.number else "the root or lineage/ was deleted or replaced"
    if now.newest != seen.newest:
        return f"the newest checkpoint was {seen.newest or 'none'} and is {now.newest or 'none'}"
    return ""
