"""From which checkpoint the next one may copy what has not changed: a pure choice, with its reason.

Where copies share bytes, as hard links do, one damaged file damages every checkpoint that has it. So the checkpoints of
a disk are of two families, which never share a file, and the next one is of the other family than the newest that stays
beside it: what it falls back to is another physical copy.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import msgspec

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
