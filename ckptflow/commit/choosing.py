"""What the chief decides during a restore: which checkpoint is next, by what it lists and by what was tried in vain.

Rules 1, 3 and 4 of the protocol. Every decision comes back as numbers, which all workers get from the chief.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

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


@dataclass(slots=True)
class View:
    """The chief's view of the root during one restore: the newest listing, what counts, what was tried in vain."""

    listing: Listing
    counting: Counting
    damaged: dict[Folder, str] = field(default_factory=dict)
    lineage: frozenset[Folder] = frozenset()
    gone: int = 0
    is_stale: bool = False
    is_last: bool = False


class Chooser:
    """The chief's decisions during one restore. `view` is None until the root was listed, and on the other workers."""

    def __init__(self, store: Store, summaries: Summaries) -> None:
        self._store = store
        self._summaries = summaries
        self.view: View | None = None

    def refuse_used_root(self, held: Held | None = None) -> tuple[int, ...]:
        committed = self._list_root(held).committed
        if committed:
            raise UsageError(
                f"{self._store.url} holds {len(committed)} checkpoint(s), the newest {committed[-1]}: call "
                "restore_latest() before the first save, or open the manager with fresh=True to start over"
            )
        return ()

    def warn_of_fresh(self, held: Held) -> tuple[int, ...]:
        committed = self._list_root(held).committed
        if committed:
            logger.warning(
                "%s: fresh=True starts over; %d checkpoint(s), the newest %s, no longer count and are deleted only by "
                "hand. Take fresh=True out of the script, or every restart starts over",
                self._store.url,
                len(committed),
                committed[-1],
            )
        return ()

    def choose(self, step: int | None, held: Held | None) -> tuple[int, ...]:
        """(found, incarnation, step, call, save again?, outside?) of what to restore next."""
        view = self.view
        if view is None or view.is_stale:
            view = self.list_anew(held)
        if view.gone > _MAX_GONE:
            raise CheckpointGoneError(f"{self._store.url}: checkpoints go faster than they can be read; pin one")
        if step is not None:
            return self._at_step(view, step)
        folder = next((f for f in view.counting.folders if f not in view.damaged), None)
        if folder is not None:
            return (1, folder.incarnation, folder.step, folder.call, int(folder != view.counting.newest), 0)
        if not view.is_last and (view.damaged or view.counting.outside):
            view = self.list_anew(held)  # a commit may have landed, which goes before anything outside
            view.is_last = True
            return self.choose(step, held)
        return self._outside(view)

    def list_anew(self, held: Held | None) -> View:
        """Lists after the claim, and decides what counts."""

        def find_run(listing: Listing) -> str | None:
            return held.run_id if held is not None else find_run_id(self._store, listing, self._summaries)

        listing, counting = count_root(self._store, lambda: self._list_root(held), find_run, self._summaries.get)
        strange = [str(f) for f in counting.outside if f.incarnation >= counting.incarnation and counting.folders]
        if strange:
            logger.warning(
                "%s: passed over, since they are of another run, or of a job that held the same number: %s",
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
            check_listing(self._store, held, listing.claims, listing.top_number)
        return listing

    def _count(self, listing: Listing, run_id: str | None) -> Counting:
        return find_counting_now(self._store, listing, run_id, self._summaries.get)

    def _at_step(self, view: View, step: int) -> tuple[int, ...]:
        same = [f for f in view.counting.folders if f.step == step and f not in view.damaged]
        others = [f for f in view.counting.outside if f.step == step]
        folder = next(iter(same + sorted(others, key=lambda f: (f.incarnation, f.call), reverse=True)), None)
        if folder is None:
            steps = sorted({f.step for f in view.listing.committed})
            raise CheckpointNotFoundError(f"{self._store.url}: no checkpoint of step {step}; there are steps {steps}")
        again = folder != view.counting.newest
        return (1, folder.incarnation, folder.step, folder.call, int(again), int(folder not in same))

    def _outside(self, view: View) -> tuple[int, ...]:
        """Rule 4's last resort: the newest valid one outside what counts, but never past a rollback or fresh start."""
        counting = view.counting
        barrier = max(counting.barrier, self._barrier_by_claim(counting))
        listing = view.listing.only(f for f in counting.outside if f not in view.damaged)
        open_listing = listing.only(f for f in listing.folders if f.incarnation >= barrier)
        rest = self._count(open_listing, counting.run_id)
        for folder in (*rest.folders, *rest.outside):
            if folder not in view.damaged:
                return (1, folder.incarnation, folder.step, folder.call, 1, 1)
        if not view.damaged and not counting.outside:
            return (0, 0, 0, 0, 0, 0)
        barred = sorted({f.step for f in listing.folders} - {f.step for f in open_listing.folders})
        hint = (
            f" Steps {barred} were cut off by a rollback or a fresh start and are not taken by themselves: "
            f"restore({barred[-1]}) would take one."
            if barred
            else ""
        )
        raise CorruptCheckpointError(
            f"{self._store.url}: no valid checkpoint is left, and the state may hold a mixture of those that were "
            "tried: do not go on with it. " + " | ".join(view.damaged.values()) + hint
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
