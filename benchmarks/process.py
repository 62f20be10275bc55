"""One peer's process: does a round whenever it is told to, and prints what it measured as a line of JSON.

    python -m benchmarks.process benchmarks.peers.ours:Ckptflow '{"url": …, "size_bytes": …, …}'

Peers live beside each other and take turns, because a disk's speed drifts by a factor of two within minutes: what is
compared has been measured within the same seconds.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

from benchmarks.meters import drop_from_page_cache, metered, resident_bytes
from benchmarks.peers.base import Peer, Point


def main() -> None:
    target, text = sys.argv[1:3]
    answers = os.fdopen(os.dup(1), "w")  # whatever a library prints goes elsewhere
    os.dup2(2, 1)
    module, _, name = target.partition(":")
    point = Point(**json.loads(text))
    if point.storage == "local":
        os.makedirs(point.url, exist_ok=True)
    peer = getattr(importlib.import_module(module), name)(point)

    def answer(**what: Any) -> None:
        print(json.dumps(what), file=answers, flush=True)

    answer(note=peer.note, is_limit=peer.is_limit)
    for line in sys.stdin:
        if line.strip() == "close":
            break
        answer(**do_round(peer, point, int(line)))
    peer.prove()
    peer.close()
    answer()


def do_round(peer: Peer, point: Point, number: int) -> dict[str, float]:
    """Change, save, spoil, restore from cold and from warm, and check. A peer that measures by itself does so.

    Memory is looked at in the first round alone, the one that warms up. Later a process keeps what it has freed, so
    that a save would be charged for the restore before it.
    """
    if (found := peer.measure(number)) is not None:
        return found
    peer.change()
    is_first = number == 0
    before_bytes = resident_bytes() if is_first else 0
    with metered() as save:
        peer.save(number)
        blocked_s = save.lap()
        peer.finish()
    measures: dict[str, float] = {"blocked_s": blocked_s, "durable_s": save.wall_s, "save_cpu_s": save.cpu_s}
    if is_first:
        measures["peak_save_bytes"] = save.peak_bytes - before_bytes
    peer.tidy()
    for how in point.restores:
        peer.spoil()
        if how == "cold":
            drop_from_page_cache(point.url)
        if is_first:
            resident_bytes()
        with metered() as restore:
            peer.restore()
        peer.check()
        measures[f"restore_{how}_s"] = restore.wall_s
        measures.setdefault("restore_cpu_s", restore.cpu_s)
        if is_first:
            measures.setdefault("peak_restore_bytes", restore.peak_bytes - before_bytes)
    if peer.is_limit:  # memory that it has once is no measure of anything, and it blocks nobody
        measures = {name: value for name, value in measures.items() if name != "blocked_s" and "peak" not in name}
    return {**measures, **peer.counters()}


if __name__ == "__main__":
    main()
