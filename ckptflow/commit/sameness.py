"""Whether all workers hold the same state: one number in a message says that it differs, and then this says where."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import msgspec

from ckptflow.errors import UsageError
from ckptflow.format.words import some_of
from ckptflow.peers.team import Call, Team, agree, chief_says

_SHOWN = 6  # differences of one worker that are told


class _Lines(msgspec.Struct, frozen=True):
    """What a worker holds, as a checksum of each line."""

    lines: list[str]


class _Difference(msgspec.Struct, frozen=True):
    """What a worker has and the chief lacks, to be read; and what it lacks, as checksums."""

    more: str
    lacking: list[str]


def checksum(lines: Iterable[str]) -> str:
    """A text that is equal where the lines are, in any order, and else differs for all that ever happens."""
    return _hash("\n".join(sorted(lines)))


def raise_differences(cluster: Team, lines: Sequence[str]) -> None:
    """Raises `UsageError` on every worker, naming what some have and others lack. Called by all workers.

    `lines` describe what this worker holds: "model/kernel: float32 (3, 4)". Each is compared with the chief's.
    """
    mine = {_hash(line): line for line in lines}
    of_chief = chief_says(cluster, Call.COMPARE, lambda: _Lines(sorted(mine)), _Lines).lines
    there = set(of_chief)

    def compare() -> _Difference:
        more = sorted(f"{line} (not on worker 0)" for number, line in mine.items() if number not in there)
        return _Difference(some_of(more, _SHOWN, "; "), [number for number in of_chief if number not in mine])

    found = agree(cluster, Call.COMPARE, compare)

    def lacked() -> str:
        lacking = {
            line: ", ".join(str(worker) for worker, each in enumerate(found) if number in each.lacking)
            for number, line in mine.items()
        }
        return some_of([f"{line} (not on worker {who})" for line, who in sorted(lacking.items()) if who], _SHOWN, "; ")

    more = [chief_says(cluster, Call.COMPARE, lacked, str), *(each.more for each in found[1:])]
    raise UsageError(
        "the workers hold different states, and nothing was saved or restored. "
        + ". ".join(f"Worker {worker} has {text}" for worker, text in enumerate(more) if text)
        + ". Make the same objects, and build them, on every worker; what is a worker's own goes into PerWorker"
    )


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
