"""How one worker's part of reading a checkpoint went, as the others are told."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from ckptflow.errors import CorruptCheckpointError, ObjectNotFoundError
from ckptflow.peers.exchange import Terms


class Outcome(StrEnum):
    """How one worker's part of reading a checkpoint went, if the restore can go on."""

    FINE = "fine"
    GONE = "gone"
    DAMAGED = "damaged"


class PartResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """One worker's outcome, and why; of a check that went well, a checksum of what it would take; or what it wants.

    `is_missing`: the damage is that a file is not there.
    """

    outcome: Outcome = Outcome.FINE
    why: str = ""
    taken: str = ""
    is_missing: bool = False
    terms: Terms | None = None


def outcome_of(error: BaseException) -> PartResult | None:
    """What an error in reading a checkpoint says of it: gone, damaged, or nothing at all, and the restore ends."""
    if isinstance(error, ObjectNotFoundError):
        return PartResult(Outcome.GONE, str(error))
    if isinstance(error, CorruptCheckpointError):
        is_missing = isinstance(error.__cause__, ObjectNotFoundError)
        return PartResult(Outcome.DAMAGED, str(error), is_missing=is_missing)
    return None


def are_fine(parts: Sequence[PartResult]) -> bool:
    return all(part.outcome is Outcome.FINE for part in parts)
