"""What the chief decides during a restore: which checkpoint is next, by what it lists and by what was tried in vain.

Rules 1, 3 and 4 of the protocol. `choose` decides, by what is known alone; `Chooser` gets to know it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from ckptflow.commit.catalog import (
    Counting,
    Listing,
    Summaries,
    Summary,
    count_root,
    find_counting_now,
    list_root,
    read_claim,
)
from ckptflow.commit.lineage import Held, check_fence, check_listing, find_run_id
from ckptflow.errors import (
    CheckpointGoneError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UsageError,
)
from ckptflow.format.layout import Folder
from ckptflow.format.words import some_of
from ckptflow.storage.store import Store

logger = logging.getLogger("ckptflow")

_NAMES_SHOWN = 5
_MAX_GONE = 20  # listings in a row that name a checkpoint which is gone when it is read


class Next(StrEnum):
    """What comes next in a restore."""

    RESTORE = "restore"
    START = "start anew: the root holds no checkpoint"
    LIST_AGAIN = "list again"
    LOOK_OUTSIDE = "look at superseded checkpoints"
    NO_SUCH_STEP = "no checkpoint of this step"
    ALL_DAMAGED = "no valid checkpoint is left"


@dataclass(frozen=True, slots=True)
class Choice:
    """What comes next, and why. `save_again`: it is not the newest that counts; `is_outside`: it does not count."""

    next: Next
    reason: str
    folder: Folder | None = None
    save_again: bool = False
    is_outside: bool = False


def choose(
    counting: Counting, damaged: Mapping[Folder, object], step: int | None, *, is_last: bool, rest: Counting | None
) -> Choice:
    """What to restore of what counts, or else, of what is outside it. Rules 3 and 4; reads nothing.

    `damaged`: what was tried in vain. `is_last`: the root was listed again since the last of what counts was. `rest`:
    what counts among what is outside and was not cut off by a rollback or a fresh start; None while it is not known.
    """
    if step is not None:
        same = [f for f in counting.folders if f.step == step and f not in damaged]
        others = sorted((f for f in counting.outside if f.step == step), key=lambda f: (f.incarnation, f.call))
        if not same and not others:
            return Choice(Next.NO_SUCH_STEP, f"no checkpoint of step {step}")
        asked_for = same[0] if same else others[-1]
        return Choice(
            Next.RESTORE,
            f"step {step} was asked for" + ("" if same else ", and is superseded"),
            asked_for,
            save_again=asked_for != counting.newest,
            is_outside=not same,
        )
    folder = next((f for f in counting.folders if f not in damaged), None)
    if folder is not None:
        is_newest = folder == counting.newest
        reason = "it is the newest current checkpoint" if is_newest else "newer current ones are damaged"
        return Choice(Next.RESTORE, reason, folder, save_again=not is_newest)
    if not is_last and (damaged or counting.outside):
        return Choice(Next.LIST_AGAIN, "a commit may have landed, which goes before any superseded checkpoint")
    if rest is None:
        return Choice(Next.LOOK_OUTSIDE, "no current checkpoint can be restored")
    for other in (*rest.folders, *rest.outside):
        if other not in damaged:
            reason = "no current checkpoint can be restored, and this is the newest superseded one"
            return Choice(Next.RESTORE, reason, other, save_again=True, is_outside=True)
    if not damaged and not counting.outside:
        return Choice(Next.START, "the root holds no checkpoint")
    return Choice(Next.ALL_DAMAGED, "all that may be restored was tried and is damaged, or was superseded on purpose")


@dataclass(slots=True)
class View:
    """The chief's view of the root during one restore: the newest listing, what counts, what was tried in vain."""

    listing: Listing
    counting: Counting
    damaged: dict[Folder, str] = field(default_factory=dict)
    lineage: frozenset[Folder] = frozenset()
    rest: Counting | None = None
    barred: tuple[int, ...] = ()
    gone: int = 0
    is_stale: bool = False
    is_last: bool = False
    is_own: bool = False  # `counting.outside` is without what was copied here from another run, if it need not be taken


class Chooser:
    """The chief's decisions during one restore. `view` is None until the root was listed, and on the other workers."""

    def __init__(self, store: Store, summaries: Summaries) -> None:
        self._store = store
        self._summaries = summaries
        self.view: View | None = None

    def refuse_used_root(self, held: Held | None = None) -> None:
        committed = self._list_root(held).committed
        if committed:
            raise UsageError(
                f"{self._store.url} holds {len(committed)} checkpoint(s), the newest {committed[-1]}: call "
                "restore_latest() before the first save, or open the manager with fresh=True to start over"
            )

    def warn_of_fresh(self, held: Held) -> None:
        committed = self._list_root(held).committed
        if committed:
            logger.warning(
                "%s: fresh=True starts over; %d checkpoint(s), the newest %s, will be superseded, and are deleted only "
                "by hand. Remove fresh=True from the script, or every restart starts over",
                self._store.url,
                len(committed),
                committed[-1],
            )

    def choose(self, step: int | None, held: Held | None) -> Choice:
        """What to restore next, or to start anew. Raises if there is nothing that may be taken."""
        while True:
            view = self.view
            if view is None or view.is_stale:
                view = self.list_anew(held)
            if view.gone > _MAX_GONE:
                raise CheckpointGoneError(
                    f"{self._store.url}: checkpoints are deleted faster than they can be read; pin one"
                )
            choice = choose(view.counting, view.damaged, step, is_last=view.is_last, rest=view.rest)
            if choice.next is Next.LIST_AGAIN:
                view = self.list_anew(held)
                view.is_last = True
            elif choice.next is Next.LOOK_OUTSIDE:
                self._look_outside(view)
            elif choice.next is Next.NO_SUCH_STEP:
                steps = sorted({f.step for f in view.listing.committed})
                raise CheckpointNotFoundError(f"{self._store.url}: {choice.reason}; there are steps {steps}")
            elif choice.next is Next.ALL_DAMAGED:
                raise CorruptCheckpointError(self._nothing_left(view))
            elif choice.is_outside and not view.is_own:
                self._leave_out_others(view, step)
            else:
                return choice

    def list_anew(self, held: Held | None) -> View:
        """Lists after the claim, and decides what counts."""

        def find_run(listing: Listing) -> str | None:
            return held.run_id if held is not None else find_run_id(self._store, listing, self._summaries)

        listing, counting = count_root(lambda: self._list_root(held), find_run, self._summaries)
        strange = [str(f) for f in counting.outside if f.incarnation >= counting.incarnation and counting.folders]
        if strange:
            logger.warning(
                "%s: skipped, since they belong to another run, or to a job that held the same number: %s",
                self._store.url,
                some_of(strange, _NAMES_SHOWN),
            )
        old = self.view
        self.view = View(listing, counting)
        if old is not None:
            self.view.damaged, self.view.gone, self.view.is_last = old.damaged, old.gone, old.is_last
        return self.view

    def _list_root(self, held: Held | None) -> Listing:
        """Lists the root; with a claim, `lineage/` first, and only what shows that claim as the newest is believed."""
        if held is not None:
            check_fence(self._store, held)
        listing = list_root(self._store)
        if held is not None:
            # A folder alone fences nobody but here: its writer may have looked at its claim already, and yet commit.
            check_listing(self._store, held, listing.claims, listing.top_number)
        return listing

    def _count(self, listing: Listing, run_id: str | None) -> Counting:
        return find_counting_now(listing, run_id, self._summaries.get, self._summaries.holder)

    def _look_outside(self, view: View) -> None:
        """Rule 4's last resort: the newest valid one outside what counts, but never past a rollback or fresh start."""
        self._leave_out_others(view, None)
        counting = view.counting
        barrier = max(counting.barrier, self._barrier_by_claim(counting))
        listing = view.listing.only(f for f in counting.outside if f not in view.damaged)
        open_listing = listing.only(f for f in listing.folders if f.incarnation >= barrier)
        view.rest = self._count(open_listing, counting.run_id)
        view.barred = tuple(sorted({f.step for f in listing.folders} - {f.step for f in open_listing.folders}))

    def _leave_out_others(self, view: View, step: int | None) -> None:
        """What was copied here from another run is taken only where nothing of this run is, of the step asked for."""
        counting = view.counting
        found = self._summaries.read_there(view.listing)
        others = {f for f, s in found.items() if isinstance(s, Summary) and counting.is_of_another(s.run_id)}
        if any(folder not in others for folder in view.listing.committed if step in (None, folder.step)):
            view.counting = replace(counting, outside=tuple(f for f in counting.outside if f not in others))
        view.is_own = True

    def _nothing_left(self, view: View) -> str:
        hint = (
            f" Steps {list(view.barred)} were superseded by a rollback or a fresh start and are not restored "
            f"automatically: rollback({view.barred[-1]}) continues from one, restore({view.barred[-1]}) only reads it."
            if view.barred
            else ""
        )
        return (
            f"{self._store.url}: no valid checkpoint is left, and the state may hold a mixture of those that were "
            "tried: do not use it. " + " | ".join(view.damaged.values()) + hint
        )

    def _barrier_by_claim(self, counting: Counting) -> int:
        """A rollback whose every manifest is unreadable is still known by its claim."""
        numbers = {folder.incarnation for folder in counting.folders} if not counting.barrier else set()
        claims = [claim for n in numbers if (claim := read_claim(self._store, n)) is not None]
        return max((claim.number for claim in claims if claim.reason in ("rollback", "fresh")), default=0)

    def lineage_of(self, restored: Summary, view: View) -> frozenset[Folder]:
        """What `restored` builds on: what counts, up to it; where it is outside, what its own incarnation counted.

        Without the second half, one damaged manifest would cut off all that policies have kept, and prune it.
        """
        if restored.folder in view.counting.folders:
            return view.counting.lineage_up_to(restored.folder) - view.damaged.keys()
        counting, files, found = view.counting, view.listing.folders, set[Folder]()
        if restored.run_id != counting.run_id or restored.folder.incarnation < counting.fresh_since:
            return frozenset()  # what is there is deleted only by hand, so it must not come under the policies
        for folder in view.listing.committed:
            is_near = folder.incarnation == restored.folder.incarnation or folder in restored.lineage
            if is_near and folder <= restored.folder and folder not in view.damaged:
                summary = self._summaries.get(folder)
                if not isinstance(summary, Summary) or not summary.is_complete(files[folder]):
                    continue
                if folder in restored.lineage or summary.writer_id == restored.writer_id:
                    found.add(folder)
        return frozenset(found)
