"""From which checkpoint the next one may copy what has not changed: a pure choice, with its reason.

Where copies share bytes, as hard links do, one damaged file damages every checkpoint that has it. So the checkpoints of
a disk are of two families, which never share a file, and the next one is of the other family than the newest that stays
beside it: what it falls back to is another physical copy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import msgspec

from ckptflow.commit.catalog import Checkpoint, Summary
from ckptflow.commit.retention import Policy, reasons_to_keep
from ckptflow.commit.start import Start
from ckptflow.format.layout import Folder


class Existing(NamedTuple):
    """A committed checkpoint that is there, its family, and whether it may be copied from."""

    folder: Folder
    family: int
    is_source: bool = True


class Reuse(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the chief tells all workers before a save: its family, and the folder to copy from, None for no copies."""

    family: int = 0
    source: str | None = None
    reason: str = ""


def choose_reuse(existing: Sequence[Existing], kept: Collection[Folder], *, is_shared: bool) -> Reuse:
    """The family of the next checkpoint and its source. `existing`, oldest first, are those that it builds on; `kept`
    those of them that will stay once it is committed; `is_shared` says whether a copy shares bytes with its source.

    Any two or more that stay, the next one among them, are then of two families.
    """
    if not existing:
        return Reuse(reason="nothing is here to copy from")
    newest = existing[-1]
    if not is_shared:
        return Reuse(0, str(newest.folder), "the newest; a copy is one of its own")
    staying = [each for each in existing if each.folder in kept]
    family = 1 - staying[-1].family if staying else newest.family
    beside = f"{staying[-1].folder} stays, of family {1 - family}" if staying else "none stays: one family is enough"
    source = next((each.folder for each in reversed(existing) if each.is_source and each.family == family), None)
    if source is None:
        return Reuse(family, None, f"{beside}; none of family {family} is to be copied from")
    return Reuse(family, str(source), f"{beside}; the newest of family {family}")


def reuse_restored(restored: Summary | None, *, is_shared: bool) -> Reuse:
    """For the first save of a life that has gone back to `restored`, which was read whole, so that it is a source. On a
    disk it is one of the save after: this one is of the other family, in files of its own."""
    if restored is None:
        return Reuse()
    return Reuse(1 - restored.family) if is_shared else Reuse(source=str(restored.folder))


def as_existing(known: Iterable[Summary], start: Start) -> list[Existing]:
    """What this incarnation builds on, and whether it may be copied from where a copy shares bytes with its source.

    An older one than `sound_since` may have the damaged file that a fallback, or a person by a rollback, has left
    behind; not the one that was restored, which was read whole.
    """
    restored = start.restored.folder if start.restored is not None else None
    return [
        Existing(each.folder, each.family, each.folder.incarnation >= start.sound_since or each.folder == restored)
        for each in known
    ]


def staying_beside(coming: Checkpoint, known: Sequence[Summary], policies: Sequence[Policy]) -> frozenset[Folder]:
    """Those of `known`, oldest first, that the policies keep once `coming` is there too: of each step the newest.

    Raises what a policy raises.
    """
    by_step = {each.folder.step: each for each in known if each.folder.step != coming.step}
    others = [by_step[step] for step in sorted(by_step)]
    reasons = reasons_to_keep([*(each.checkpoint for each in others), coming], policies)[:-1]
    return frozenset(each.folder for each, reason in zip(others, reasons, strict=True) if reason)


def staying_all_the_same(
    known: Sequence[Summary], policies: Sequence[Policy], pins: frozenset[Folder]
) -> frozenset[Folder]:
    """What stays where the policies will keep none of `known`, oldest first: what is pinned; or else all, while one is
    there that the last prune should have deleted, since the next one may not succeed either.

    Raises what a policy raises.
    """
    folders = frozenset(each.folder for each in known)
    if not known or pins & folders:
        return pins
    newest = known[-1]
    return folders if folders - {newest.folder} - staying_beside(newest.checkpoint, known, policies) else frozenset()
