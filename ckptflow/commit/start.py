"""How a life of the job began: what it holds, restored and builds on. All later decisions start from here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ckptflow.commit.catalog import Counting, Listing, Summary, Unreadable
from ckptflow.commit.lineage import Held, is_written_by
from ckptflow.format.layout import Folder
from ckptflow.format.manifest import Reason


class Seen(NamedTuple):
    """A root as it was read: the newest claim (0 and None: there was none), and the newest checkpoint that counted."""

    number: int
    writer_id: str | None
    newest: Folder | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """The beginning of one incarnation. `held` is None where nothing was claimed, and the chief may have `seen` what
    must be so when it is; `restored` is None on a root where nothing counts.

    `save_again`: what was restored is not the newest that counted, so nothing protects it, nor the decision to start
    there, until this incarnation has saved it as its own.
    """

    held: Held | None
    reason: Reason = "start"
    restored: Summary | None = None
    lineage: frozenset[Folder] = frozenset()
    barrier: int = 0
    fresh_since: int = 0
    sound_since: int = 0
    save_again: bool = False
    seen: Seen | None = None


def begun(held: Held, reason: Reason, restored: Summary, lineage: frozenset[Folder], counting: Counting) -> Start:
    """What an incarnation builds on that has restored a checkpoint, by what counted once it had claimed."""
    return Start(
        held=held,
        reason=reason,
        restored=restored,
        lineage=lineage,
        barrier=held.number if reason == "rollback" else max(counting.barrier, restored.barrier),
        fresh_since=max(counting.fresh_since, restored.fresh_since),
        sound_since=restored.sound_since if reason == "resume" else held.number,
    )


def count_own(start: Start, held: Held, listing: Listing, found: Mapping[Folder, Summary | Unreadable]) -> Counting:
    """What counts for this incarnation: its own, one that was thought lost and landed late too, and its lineage."""
    counts = {folder for folder, summary in found.items() if is_written_by(held, folder, summary, listing)}
    counts |= start.lineage & found.keys()
    return Counting(
        incarnation=held.number,
        run_id=held.run_id,
        folders=tuple(sorted(counts, reverse=True)),
        outside=tuple(sorted(found.keys() - counts, reverse=True)),
        barrier=start.barrier,
        fresh_since=start.fresh_since,
    )
