"""Whether all workers hold the same state: one number in a vote says that it differs, and then this says where."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from ckptflow.commit.team import Cluster, Outcome, Vote, vote
from ckptflow.errors import UsageError
from ckptflow.format.words import some_of

_BITS = 62  # of a number that can be exchanged
_SHOWN = 6  # differences that one worker tells the others


def checksum(lines: Iterable[str]) -> int:
    """A number that is equal where the lines are, in any order, and else differs for all that ever happens."""
    return _hash("\n".join(sorted(lines)))


def raise_differences(cluster: Cluster, lines: Sequence[str]) -> None:
    """Raises `UsageError` on every worker, naming what some have and others lack. Three exchanges, on all workers.

    `lines` describe what this worker holds: "model/kernel: float32 (3, 4)".
    """
    mine = {_hash(line): line for line in lines}
    counts = [row[0] for row in cluster.exchange([len(mine)])]
    hashes = [*mine, *[0] * (max(counts) - len(mine))]
    held = [set(row[:count]) for row, count in zip(cluster.exchange(hashes), counts, strict=True)]
    lacking = {line: [str(w) for w, other in enumerate(held) if number not in other] for number, line in mine.items()}
    found = [f"{line} (not on worker {', '.join(workers)})" for line, workers in sorted(lacking.items()) if workers]
    told = vote(cluster, Vote(Outcome.FINE, some_of(found, _SHOWN, "; ")))
    raise UsageError(
        "the workers hold different states, and nothing was saved or restored. "
        + ". ".join(f"Worker {worker} has {v.text}" for worker, v in enumerate(told) if v.text)
        + ". Make the same objects, and build them, on every worker; what is a worker's own goes into PerWorker"
    )


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> (64 - _BITS)
