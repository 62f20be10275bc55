"""Whether all workers see one storage: asked at the start, of what the chief has there.

Workers that write to a disk of each would otherwise learn it when their first save has waited for them in vain.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from ckptflow.commit.catalog import read_claim, read_manifest
from ckptflow.commit.lineage import Held
from ckptflow.commit.team import Cluster, Outcome, Vote, raise_together, vote, vote_for
from ckptflow.errors import CorruptCheckpointError, ObjectNotFoundError, StorageError
from ckptflow.format.layout import Folder, claim_key
from ckptflow.storage.store import Store

_PAUSES_S = (0.05, 0.1, 0.2, 0.5, 1.0, 1.0, 2.0)  # for a client of a network file system that holds on to what it knew


def check_claim_is_seen(cluster: Cluster, store: Store, held: Held) -> None:
    """Raises `StorageError` on all workers unless each finds the chief's claim. A collective."""

    def sees() -> bool:
        claim = read_claim(store, held.number)
        return claim is not None and claim.writer_id == held.writer_id

    _check(cluster, store, claim_key(held.number), sees)


def check_manifest_is_seen(cluster: Cluster, store: Store, folder: Folder, votes: list[Vote]) -> None:
    """The same of a manifest that some worker did not find when the chief had read it. A collective where that is so.

    A prune may have deleted it in between: then the chief does not find it any more, and nothing is said.
    """

    def sees() -> bool:
        try:
            read_manifest(store, folder)
        except ObjectNotFoundError:
            return False
        except CorruptCheckpointError:
            pass
        return True

    if votes[0].outcome is not Outcome.GONE and any(v.outcome is Outcome.GONE for v in votes):
        _check(cluster, store, folder.manifest_key, sees)


def _check(cluster: Cluster, store: Store, key: str, sees: Callable[[], bool]) -> None:
    if cluster.world_size == 1:
        return
    error: Exception | None = None
    try:
        found = sees() or (not cluster.is_chief and any(_after(pause_s, sees) for pause_s in _PAUSES_S))
        mine = Vote(Outcome.FINE, f"{store.url} on {socket.gethostname()}", (int(found),))
    except Exception as caught:
        error, mine = caught, vote_for(caught)
    votes = vote(cluster, mine)
    raise_together(votes, error, worker=cluster.worker)
    blind = [f"worker {worker} ({v.text})" for worker, v in enumerate(votes) if not v.numbers[0]]
    if blind and votes[0].numbers[0]:
        raise StorageError(
            f"these workers do not see the same storage: worker 0 ({votes[0].text}) has {key}, which is not found by "
            f"{', '.join(blind)}. Give every worker the URL of one storage that all of them reach: a bucket, or a "
            "folder of a shared file system, not a disk of each"
        )


def _after(pause_s: float, sees: Callable[[], bool]) -> bool:
    time.sleep(pause_s)
    return sees()
