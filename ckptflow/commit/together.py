"""Whether all workers see one storage: asked at the start, of what the chief has there.

Workers that write to a disk of each would otherwise learn it when their first save has waited for them in vain.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence

import msgspec

from ckptflow.commit.catalog import read_claim
from ckptflow.commit.lineage import Held
from ckptflow.errors import StorageError
from ckptflow.format.layout import Folder, claim_key
from ckptflow.format.words import workers_text
from ckptflow.peers.team import Call, Team, agree, chief_says
from ckptflow.storage.again import is_there
from ckptflow.storage.store import Store

_PAUSES_S = (0.05, 0.1, 0.2, 0.5, 1.0, 1.0, 2.0)  # for a client of a network file system that holds on to what it knew


class _Sight(msgspec.Struct, frozen=True):
    """Whether a worker sees what the chief has, and where it looked."""

    is_seen: bool
    where: str


def check_claim_is_seen(cluster: Team, store: Store, held: Held) -> None:
    """Raises `StorageError` on all workers unless each finds the chief's claim. Called by all workers."""

    def sees() -> bool:
        if cluster.is_chief:  # it was there, and the check of the fence that comes next reads it back
            return True
        claim = read_claim(store, held.number)
        return claim is not None and claim.writer_id == held.writer_id

    _check(cluster, store, claim_key(held.number), sees)


def check_manifest_is_seen(cluster: Team, store: Store, folder: Folder, is_gone: Sequence[bool]) -> None:
    """The same of a checkpoint that some worker did not find when the chief had read it; all workers know who.

    A prune may have deleted it in between: then the chief does not find it any more, and nothing is said.
    """

    def sees() -> bool:
        return is_there(store, folder.manifest_key)

    if not is_gone[0] and any(is_gone) and chief_says(cluster, Call.SEE, sees, bool):
        _check(cluster, store, folder.manifest_key, lambda: cluster.is_chief or sees())


def _check(cluster: Team, store: Store, key: str, sees: Callable[[], bool]) -> None:
    if cluster.world_size == 1:
        return

    def look() -> _Sight:
        found = sees() or any(_after(pause_s, sees) for pause_s in _PAUSES_S if not cluster.is_chief)
        return _Sight(found, f"{store.url} on {socket.gethostname()}")

    sights = agree(cluster, Call.SEE, look)
    blind = [worker for worker, sight in enumerate(sights) if not sight.is_seen]
    if blind and sights[0].is_seen:
        who = workers_text(blind, lambda worker: f"{worker} ({sights[worker].where})")
        raise StorageError(not_the_same_storage(f"worker 0 ({sights[0].where}) has {key}, which is not found by {who}"))


def not_the_same_storage(what: str) -> str:
    """The message; `what` is by which it is seen."""
    return (
        f"these workers do not see the same storage: {what}. Give every worker the URL of one storage that all of them "
        "reach: a bucket, or a folder of a shared file system, not a disk of each"
    )


def _after(pause_s: float, sees: Callable[[], bool]) -> bool:
    time.sleep(pause_s)
    return sees()
