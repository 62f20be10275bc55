"""Whether all workers hold the same state: one number in a message says that it differs, and then this says where."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import msgspec

from ckptflow.errors import UsageError
from ckptflow.format.words import alike, some_of, workers_text
from ckptflow.peers.team import Call, Team, agree, chief_says

_SHOWN = 6  # differences of one worker that are told


class _Lines(msgspec.Struct, frozen=True):
    """What a worker holds, as a checksum of each line, in the order of the lines."""

    lines: list[str]


class _Difference(msgspec.Struct, frozen=True):
    """What a worker has and the chief lacks, to be read; and of what it lacks the first ones, by their places among
    the chief's lines, and how many they are. A few thousand bytes, however much differs: every worker gets it."""

    more: str
    lacking: list[int]
    lacking_count: int


def checksum(lines: Iterable[str]) -> str:
    """A text that is equal where the lines are, in any order, and else differs for all that ever happens."""
    return _hash("\n".join(sorted(lines)))


def raise_differences(cluster: Team, lines: Sequence[str]) -> None:
    """Raises `UsageError` on every worker, naming what some have and others lack. Called by all workers.

    `lines` describe what this worker holds: "model/kernel: float32 (3, 4)". Each is compared with the chief's.
    """
    mine = {_hash(line): line for line in sorted(lines)}
    of_chief = chief_says(cluster, Call.COMPARE, lambda: _Lines(list(mine)), _Lines).lines
    there = set(of_chief)

    def compare() -> _Difference:
        more = [f"{line} (not on worker 0)" for number, line in mine.items() if number not in there]
        lacking = [place for place, number in enumerate(of_chief) if number not in mine]
        return _Difference(some_of(more, _SHOWN, "; "), lacking[:_SHOWN], len(lacking))

    found = agree(cluster, Call.COMPARE, compare)

    def lacked() -> str:
        who = {place: [w for w, each in enumerate(found) if place in each.lacking] for place in _first_lacking(found)}
        held = list(mine.values())
        more = max(each.lacking_count for each in found) - len(who)
        told = "; ".join(f"{held[place]} (not on {workers_text(workers)})" for place, workers in who.items())
        return told + (f" and at least {more} more" if more > 0 else "")

    of_all = [chief_says(cluster, Call.COMPARE, lacked, str), *(each.more for each in found[1:])]
    groups = alike((worker, text) for worker, text in enumerate(of_all) if text)
    told = [f"{workers_text(who).capitalize()} {'has' if len(who) == 1 else 'have'} {text}" for who, text in groups]
    raise UsageError(
        "the workers hold different states, and nothing was saved or restored. "
        + some_of(told, _SHOWN, ". ")
        + ". Make the same objects, and build them, on every worker; what is a worker's own goes into PerWorker"
    )


def _first_lacking(found: Sequence[_Difference]) -> list[int]:
    """The places of the chief's first lines that some worker lacks: each is among the first that this worker lacks."""
    return sorted({place for each in found for place in each.lacking})[:_SHOWN]


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
